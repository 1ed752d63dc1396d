"""How the draft of a deployment gets into its pods: as the model does, beside it."""

import json
from typing import Any

import pytest

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.group import POD
from plimsoll.operator import build
from plimsoll.operator.build.source import cache_folder, draft_key, draft_source
from tests.support.built import (
    COMMIT,
    DIGEST,
    INSPECTION,
    MINIMAL,
    SETTINGS,
    Object,
    Spec,
    deployment,
    inspection_of,
    replica_set,
)  # fmt: skip

HUB = {"source": "hf://org/model@v1", "credentialsSecret": "hub", "endpoint": "https://hub.example", "cacheClaim": "c"}


def drafted(draft: str, **model: str) -> Spec:
    return {**MINIMAL, "model": model or MINIMAL["model"],
            "serving": {"speculativeTokens": 4, "draft": {"source": draft}}}  # fmt: skip


def pod_of(spec: Spec, **more: Any) -> Object:
    found: Object = replica_set(spec, **more)["spec"]["template"]["spec"]
    return found


def named(items: list[Object]) -> dict[str, Object]:
    return {item["name"]: item for item in items}


def served_draft(pod: Object) -> str:
    """Where the server looks for its draft."""
    env = named(pod["containers"][0]["env"])
    return str(json.loads(env["PLIMSOLL_DEPLOYMENT"]["value"])["spec"]["serving"]["draft"]["source"])


def test_a_draft_on_a_claim_is_mounted_beside_the_model() -> None:
    pod = pod_of(drafted("pvc://models/small"))
    volumes, mounts = named(pod["volumes"]), named(pod["containers"][0]["volumeMounts"])
    assert volumes["draft"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert mounts["draft"] == {"name": "draft", "mountPath": "/draft", "readOnly": True}
    assert mounts["models"]["mountPath"] == "/models"
    assert served_draft(pod) == "file:///draft/small"
    assert "initContainers" not in pod


def test_a_draft_of_a_hub_is_fetched_after_the_model_with_what_opens_that() -> None:
    spec = drafted("hf://org/small@v2", **HUB)
    pod = pod_of(spec)
    first, second = pod["initContainers"]
    assert (first["name"], second["name"]) == ("fetch", "fetch-draft")
    parsed = ModelDeploymentSpec.model_validate(spec)
    assert parsed.serving.draft is not None
    folder = cache_folder(draft_source(parsed.model, parsed.serving.draft), INSPECTION)
    assert second["args"][:4] == ["fetch", f"hf://org/small@{COMMIT}", "--into", f"/draft/{folder}"]
    assert second["volumeMounts"][-1] == {"name": "draft", "mountPath": "/draft"}
    opened = named(second["env"])
    assert opened["HF_ENDPOINT"]["value"] == "https://hub.example"
    assert opened["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hub"
    claims = [named(pod["volumes"])[name]["persistentVolumeClaim"]["claimName"] for name in ("models", "draft")]
    assert claims == ["c", "c"]
    assert served_draft(pod) == f"file:///draft/{folder}"


def test_what_opens_the_model_opens_no_draft_of_another_kind() -> None:
    spec = drafted("s3://bucket/small", **HUB)
    _, second = pod_of(spec)["initContainers"]
    assert not {"HF_TOKEN", "HF_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"} & named(second["env"]).keys()
    assert named(pod_of(spec)["volumes"])["draft"] == {"name": "draft", "emptyDir": {}}


@pytest.mark.parametrize("image_volumes", [True, False])
def test_a_draft_in_an_image_is_a_volume_or_copied(image_volumes: bool) -> None:
    spec = drafted(f"oci://r.example/small@{DIGEST}", source=f"oci://r.example/m@{DIGEST}", credentialsSecret="pull")
    pod = pod_of(spec, image_volumes=image_volumes)
    volume, mounts = named(pod["volumes"])["draft"], named(pod["containers"][0]["volumeMounts"])
    if image_volumes:
        assert volume["image"]["reference"] == f"r.example/small@{DIGEST}"
    else:
        copy = named(pod["initContainers"])["fetch-draft"]
        assert copy["image"] == f"r.example/small@{DIGEST}"
        assert copy["volumeMounts"] == [{"name": "draft", "mountPath": "/copy"}]
        assert mounts["draft"]["mountPath"] == "/draft/models"
    assert {"name": "pull"} in pod["imagePullSecrets"]
    assert served_draft(pod).startswith("file:///draft")


def test_a_revision_without_a_draft_is_the_one_that_it_was() -> None:
    plain = {**MINIMAL, "serving": {"speculativeTokens": 4}}
    assert build.revision(drafted("pvc://models/small")) != build.revision(plain)
    assert build.revision(drafted("pvc://models/other")) != build.revision(drafted("pvc://models/small"))
    assert "draft" not in named(pod_of(plain)["volumes"])


def test_the_drafts_headers_are_looked_at_as_a_models_are() -> None:
    spec = drafted("pvc://drafts/small")
    parsed = ModelDeploymentSpec.model_validate(spec)
    look = build.inspect_pod(deployment(spec), build.of_draft(parsed), SETTINGS, True)
    assert named(look["spec"]["volumes"])["source"]["persistentVolumeClaim"]["claimName"] == "drafts"
    key = draft_key("team", spec)
    assert key is not None
    assert look["metadata"]["name"] == build.inspect_name(key)
    assert draft_key("team", MINIMAL) is None
    assert draft_key("team", drafted("nonsense")) is None
    assert draft_key("team", drafted("pvc://models/llama")) == build.source_key("team", parsed.model)


def test_a_policy_lets_a_pod_fetch_its_draft_where_its_model_is_mounted() -> None:
    def egress(spec: Spec) -> list[Any]:
        found = build.network_policy(deployment(spec), ModelDeploymentSpec.model_validate(spec), SETTINGS)
        return list(found["spec"]["egress"])

    assert egress(MINIMAL) == egress(drafted("pvc://models/small"))
    assert len(egress(drafted("hf://org/small@v1"))) > len(egress(MINIMAL))
    assert inspection_of(MINIMAL) == INSPECTION


def test_in_a_group_only_the_leader_fetches_its_draft() -> None:
    spec = {**drafted("hf://org/small@v2", **HUB), "parallelism": {"tensor": 2, "nodes": 2}}
    first, second = pod_of(spec)["initContainers"]
    assert "--leader-only" not in first["args"], "every pod has ranks of the model"
    assert second["args"][-1] == "--leader-only"
    assert named(second["env"])[POD]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    alone = pod_of(drafted("hf://org/small@v2", **HUB))["initContainers"][1]
    assert "--leader-only" not in alone["args"]
    copied = {**spec, "model": MINIMAL["model"], "serving": drafted(f"oci://r.example/small@{DIGEST}")["serving"]}
    copy = named(pod_of(copied, image_volumes=False)["initContainers"])["fetch-draft"]
    assert copy["command"][0] == "cp"
    assert "args" not in copy
