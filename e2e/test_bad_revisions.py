"""A revision that cannot serve stops its rollout: the old one goes on, and status says why in the pod's own words."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e import volumes
from e2e.cluster import SERVING, eventually
from e2e.deployments import CLAIM, ModelDeployment, settled
from e2e.scene import Scene
from e2e.traffic import traffic
from tests.support.checkpoints import make_checkpoint

Serve = Callable[..., tuple[ModelDeployment, str]]

#: name: the change, the reason that Degraded gives, what its message quotes.
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an image that does not exist": ({"pod": {"image": "registry.invalid/nothing:1"}}, "ImagePull", "nothing"),
    "a checkpoint that breaks at load": ({"model": {"source": f"pvc://{CLAIM}/broken"}}, "CrashLoop", "tokenizer"),
    "too little memory for its process": (
        {"accelerator": {"resource": "nvidia.com/gpu", "memory": "8Gi"}, "pod": {"memory": "64Mi"}},
        "OutOfMemory",
        "memory",
    ),
    "a device that is not there": (
        {"accelerator": {"resource": "nvidia.com/gpu", "memory": "8Gi"}, "pod": {"memory": "1Gi"}},
        "CrashLoop",
        "cuda",
    ),
    "a secret that does not exist": (
        {"serving": {"apiKeysSecret": "nobody"}},
        "FailedMount",
        "nobody",
    ),
}
#: Half a minute until they are given up, or needing devices that are advertised and not there.
LONG = ("a device that is not there", "a secret that does not exist")


def broken(folder: Path) -> Path:
    """A checkpoint whose configuration and tensors read well and whose tokenizer does not load."""
    found = make_checkpoint(folder / "broken", max_position_embeddings=2048)
    (found / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    return found


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in LONG else []) for kind in BAD])
def test_a_bad_revision_leaves_the_old_one_serving(
    scene: Scene, serving: Serve, kind: str, tmp_path: Path, runtime_image: str
) -> None:
    change, reason, quoted = BAD[kind]
    if "accelerator" in change and not any("nvidia.com/gpu" in n["status"]["capacity"] for n in scene.cluster.nodes()):
        pytest.skip("no node advertises nvidia.com/gpu")
    if "model" in change:
        files = [(path, f"broken/{path.name}") for path in sorted(broken(tmp_path).iterdir()) if path.is_file()]
        volumes.put(scene.cluster, scene.namespace, CLAIM, files, runtime_image)
    deployment, url = serving()
    good = deployment.get()["spec"]
    before = deployment.identities()
    with traffic(url, deployment.name) as report:
        deployment.patch(**change)
        report.mark(kind)
        degraded = deployment.wait("Degraded", seconds=SERVING)
        eventually(lambda: _stopped(deployment, reason), SERVING, f"the rollout stops for {reason}")
        degraded = deployment.condition("Degraded") or degraded
        report.mark(f"{degraded['reason']}: {degraded['message']}")
        report.more(2)
        assert before <= deployment.identities(), "the old pod is gone"
        ready = deployment.condition("Ready")
        assert ready is not None
        assert ready["status"] == "False", "Ready of a generation that does not serve"
        back = {key: good.get(key) for key in change}
        deployment.patch(**{key: {**dict.fromkeys(change[key]), **(back[key] or {})} for key in change})
        report.mark("reverted")
        deployment.ready()
        settled(deployment, 1, SERVING)
        report.more(2)
    scene.result.note(traffic=report.figures(), degraded=degraded)
    scene.result.note(words=f"{degraded['reason']}: {degraded['message'][:90]}")
    report.assert_none_failed()
    assert deployment.identities() == before
    assert re.search(quoted, degraded["message"]), degraded["message"]


def _stopped(deployment: ModelDeployment, reason: str) -> bool:
    found = deployment.condition("Degraded")
    progressing = deployment.condition("Progressing")
    if not found or not progressing:
        return False
    assert re.search(reason, f"{found['reason']} {found['message']}"), deployment.words()
    assert progressing["status"] == "False", deployment.words()
    return True


def test_a_line_that_cannot_hold_it_is_refused_and_the_old_pods_serve_on(scene: Scene, serving: Serve) -> None:
    deployment, url = serving()
    before = deployment.identities()
    with traffic(url, deployment.name) as report:
        deployment.patch(accelerator={"memory": "200Mi"})
        refused = deployment.wait("Accepted", "False", reason="DoesNotFit")
        report.more(2)
        assert deployment.identities() == before
        deployment.patch(accelerator={"memory": "1Gi"})
        deployment.ready()
        report.more(1)
    scene.result.note(traffic=report.figures(), words=refused["message"][:100])
    report.assert_none_failed()
    assert deployment.identities() == before
    assert "200" in refused["message"]
