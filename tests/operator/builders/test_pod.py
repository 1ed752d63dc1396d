"""The pod of a revision: what it may do, what it asks for, and how the checkpoint gets in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from plimsoll.api.budget import SERVER_BYTES
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.quantity import parse_bytes
from plimsoll.operator import build, names
from plimsoll.operator.build.common import quantity
from plimsoll.operator.build.pod import CHECKPOINT_CONTENTS
from plimsoll.operator.build.source import cache_folder
from plimsoll.operator.plan.capacity import need_of
from tests.support.built import (
    COMMIT,
    DIGEST,
    INSPECTION,
    MINIMAL,
    SETTINGS,
    Object,
    Spec,
    budget_of,
    deployment,
    everything,
    replica_set,
    specs,
)


def template(spec: Spec, **more: Any) -> Object:
    found: Object = replica_set(spec, **more)["spec"]["template"]
    return found


def server(spec: Spec, **more: Any) -> Object:
    found: Object = template(spec, **more)["spec"]["containers"][0]
    return found


def manifest(spec: Spec, **more: Any) -> Object:
    found: Object = json.loads(env(server(spec, **more))["PLIMSOLL_DEPLOYMENT"]["value"])
    return found


def env(container: Object) -> dict[str, Object]:
    return {entry["name"]: entry for entry in container["env"]}


def of_source(source: str, **model: str) -> Spec:
    return {**MINIMAL, "model": {"source": source, **model}}


def pods(spec: Spec, image_volumes: bool) -> Iterator[Object]:
    parsed = ModelDeploymentSpec.model_validate(spec)
    yield template(spec, image_volumes=image_volumes)["spec"]
    yield build.inspect_pod(deployment(spec), parsed, SETTINGS, image_volumes)["spec"]


@given(specs())
def test_no_pod_may_do_anything_it_need_not(spec: Spec) -> None:
    for image_volumes in (True, False):
        for pod in pods(spec, image_volumes):
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["readOnlyRootFilesystem"] is True
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]
                mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
                assert mounted <= {volume["name"] for volume in pod["volumes"]}


@given(specs())
def test_the_server_only_reads_the_model(spec: Spec) -> None:
    for image_volumes in (True, False):
        mounts = {m["name"]: m for m in server(spec, image_volumes=image_volumes)["volumeMounts"]}
        assert mounts["models"]["readOnly"] is True
        assert "keys" not in mounts or mounts["keys"]["readOnly"] is True


@given(specs())
def test_the_pod_reads_a_manifest_that_the_reader_takes(spec: Spec) -> None:
    wanted = ModelDeploymentSpec.model_validate(spec)
    read = parse_manifest(manifest(spec)).spec
    assert read.model.source.startswith("file:///models")
    assert (read.kv_cache, read.context) == (wanted.kv_cache, wanted.context)
    assert read.serving.api_keys_secret is None
    assert (read.serving.api_keys_file is not None) == (wanted.serving.api_keys_secret is not None)
    assert read.rollout.drain_timeout == wanted.rollout.drain_timeout
    assert read.precision == budget_of(wanted).precision
    assert read.pod.cpu == wanted.pod.cpu
    assert parse_manifest(manifest(spec)).served_name == (wanted.model.served_name or "llama")


@given(specs())
def test_the_server_is_given_every_section_of_the_spec(spec: Spec) -> None:
    # Read from the kind itself, so that a section of a later version is not left behind.
    wanted = ModelDeploymentSpec.model_validate(spec).model_dump()
    read = parse_manifest(manifest(spec)).spec.model_dump()
    decided = {"model", "precision", "parallelism", "replicas", "rollout", "pod"}
    for name in ModelDeploymentSpec.model_fields.keys() - decided:
        keys = ("api_keys_secret", "api_keys_file", "draft") if name == "serving" else ()
        for part in (wanted[name], read[name]):
            for key in keys:
                part.pop(key)
        assert read[name] == wanted[name]


@given(specs())
def test_what_differs_between_replicas_and_operators_is_not_in_the_template(spec: Spec) -> None:
    assert template({**spec, "replicas": 0}) == template({**spec, "replicas": 9})
    assert "1.2.3" not in json.dumps(template(spec))


@given(specs())
def test_secrets_are_never_in_arguments_and_never_optional(spec: Spec) -> None:
    model, serving = spec["model"], spec.get("serving", {})
    for pod in (pod for image_volumes in (True, False) for pod in pods(spec, image_volumes)):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            said = [*container.get("args", ()), *container.get("command", ())]
            for secret in (model.get("credentialsSecret"), serving.get("apiKeysSecret")):
                assert secret not in said
            for entry in container.get("env", ()):
                key = entry["name"]
                if key in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                    reference = entry["valueFrom"]["secretKeyRef"]
                    assert reference == {
                        "name": model["credentialsSecret"], "key": key, "optional": key == "AWS_SESSION_TOKEN"
                    }  # fmt: skip
            assert container["name"] != "server" or not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & env(container).keys()


@given(specs())
def test_everybody_can_be_told_apart_by_labels(spec: Spec) -> None:
    found = replica_set(spec)
    chosen, carried = found["spec"]["selector"]["matchLabels"], found["spec"]["template"]["metadata"]["labels"]
    assert chosen.items() <= carried.items()
    assert dict(names.selector("llama")).items() <= carried.items()
    for one in everything(spec):
        labels = one["metadata"]["labels"]
        assert labels[names.MANAGED_BY] == names.MANAGER
        owned = one["metadata"].get("ownerReferences", [])
        shared = labels[names.COMPONENT] == "inspect"
        assert shared == (owned == [])
        assert all(owner["controller"] and owner["uid"] == "5a1d-uid" for owner in owned)
        assert not shared or not dict(names.selector("llama")).items() <= labels.items()


def test_users_add_labels_and_have_the_last_word_on_annotations() -> None:
    autoscaler = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    meta = template({**MINIMAL, "pod": {"labels": {"team": "a"}, "annotations": {autoscaler: ""}}})["metadata"]
    assert meta["labels"]["team"] == "a"
    assert meta["annotations"][autoscaler] == ""


def test_on_a_processor_the_line_and_the_endpoint_are_the_pods_memory() -> None:
    found = server({**MINIMAL, "pod": {"cpu": "1500m"}})["resources"]
    memory = quantity((1 << 30) + SERVER_BYTES)
    assert found == {"requests": {"cpu": "1500m", "memory": memory}, "limits": {"cpu": "2", "memory": memory}}
    assert "cpu" not in server(MINIMAL)["resources"]["limits"]
    # Each rank has a line of its own, and the endpoint is there once.
    two = server({**MINIMAL, "parallelism": {"tensor": 2}})["resources"]["limits"]["memory"]
    assert two == quantity((2 << 30) + SERVER_BYTES)


def test_on_gpus_devices_are_the_line_and_host_memory_is_beside() -> None:
    spec = {**MINIMAL, "accelerator": {"resource": "nvidia.com/gpu", "memory": "24Gi"}, "parallelism": {"tensor": 2}}
    found = server(spec)
    assert found["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}
    assert found["image"] == "plimsoll.dev/runtime:cuda"
    given_memory = server({**spec, "pod": {"memory": "40Gi"}})["resources"]
    assert given_memory["limits"]["memory"] == given_memory["requests"]["memory"] == "40Gi"


def test_a_host_tier_is_in_the_line_on_a_processor_and_beside_the_card_on_a_gpu() -> None:
    tier = {"kvCache": {"hostMemory": "256Mi"}}
    assert server({**MINIMAL, **tier})["resources"] == server(MINIMAL)["resources"]
    gpu = {**MINIMAL, "accelerator": {"resource": "nvidia.com/gpu", "memory": "24Gi"}}
    plain, tiered = server(gpu)["resources"]["limits"], server({**gpu, **tier})["resources"]["limits"]
    more = parse_bytes(tiered["memory"]) - parse_bytes(plain["memory"])
    # In whole blocks.
    assert 0 < more <= 256 << 20
    own = server({**gpu, **tier, "pod": {"memory": "40Gi"}})["resources"]["limits"]["memory"]
    assert parse_bytes(own) == (40 << 30) + more


def test_files_of_a_claim_are_compared_with_what_was_inspected() -> None:
    pinned = ("hf://org/name", f"oci://r.example/m@{DIGEST}")
    for source, expected in (("pvc://models/a", "1:00ff"), *((one, None) for one in pinned)):
        found = env(server(of_source(source), contents="1:00ff")).get(CHECKPOINT_CONTENTS)
        assert (found and found["value"]) == expected, source
    assert CHECKPOINT_CONTENTS not in env(server(of_source("pvc://models/a")))


def test_a_pod_gets_its_drain_and_then_some() -> None:
    found = template({**MINIMAL, "rollout": {"drainTimeout": "90.5s"}})["spec"]
    assert found["terminationGracePeriodSeconds"] == 91 + 30
    assert found["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"] == "/drain"


def test_a_503_takes_a_pod_out_of_its_service_at_once_and_a_late_answer_does_not() -> None:
    probe = server(MINIMAL)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1
    assert probe["timeoutSeconds"] >= 30


def test_no_probe_kills_before_a_minute_of_silence() -> None:
    found = server(MINIMAL)
    for name in ("startupProbe", "livenessProbe"):
        probe = found[name]
        assert probe["httpGet"]["path"] == "/live"
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


def test_a_server_that_hangs_is_not_given_the_time_of_a_drain() -> None:
    found = server({**MINIMAL, "rollout": {"drainTimeout": "1h"}})
    assert found["livenessProbe"]["terminationGracePeriodSeconds"] == 10
    assert found["startupProbe"]["terminationGracePeriodSeconds"] == 10
    assert "terminationGracePeriodSeconds" not in found["readinessProbe"], "the API server refuses it there"


@pytest.mark.parametrize(
    ("spec", "uri"),
    [
        (of_source("pvc://models"), "/models"),
        (of_source("pvc://models/llama 3/7b"), "/models/llama%203/7b"),
        (of_source("pvc://models/some/model.gguf"), "/models/some/model.gguf"),
        (of_source("hf://org/name"), "/models"),
        (of_source("hf://org/name@main/model.gguf"), "/models/model.gguf"),
        (of_source("s3://bucket/folder/model.gguf"), "/models/model.gguf"),
        (of_source(f"oci://r.example/m@{DIGEST}/weights"), "/models/weights"),
        (of_source(f"oci://r.example/m@{DIGEST}/weights/model.gguf"), "/models/weights/model.gguf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_server_is_told_where_the_checkpoint_is(spec: Spec, uri: str) -> None:
    for image_volumes in (True, False):
        assert manifest(spec, image_volumes=image_volumes)["spec"]["model"]["source"] == f"file://{uri}"


def test_a_branch_is_fetched_as_the_commit_that_was_inspected() -> None:
    (fetch,) = template(of_source("hf://org/name@main/model.gguf"))["spec"]["initContainers"]
    source = f"hf://org/name@{COMMIT}/model.gguf"
    assert fetch["args"][:6] == ["fetch", source, "--into", "/models", "--revision", COMMIT]
    assert fetch["args"][6:] == ["--status-port", "8001", "--report", "/dev/termination-log"]
    assert env(fetch)["PLIMSOLL_FORBID_LOCAL"]["value"] == "1"


def test_a_cache_claim_keeps_each_revision_beside_the_last() -> None:
    folders = set()
    for source in ("hf://org/name@v1/a.gguf", "hf://org/name@v1/b.gguf"):
        spec = of_source(source, cacheClaim="cache")
        pod = template(spec)["spec"]
        (fetch,) = pod["initContainers"]
        folder = fetch["args"][3]
        folders.add(folder)
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "cache"}
        assert "ephemeral-storage" not in fetch["resources"]["requests"]
        assert manifest(spec)["spec"]["model"]["source"].startswith(f"file://{folder}/")
    model = ModelDeploymentSpec.model_validate(of_source("s3://bucket/folder")).model
    # Other weights of the same shape have the same digest.
    folders |= {cache_folder(model, replace(INSPECTION, revision=revision)) for revision in ("one", "other")}
    assert len(folders) == 4


def test_without_a_cache_the_nodes_disk_is_asked_for() -> None:
    need = need_of(template(of_source("hf://org/name")))
    assert 123_456_789 <= need["ephemeral-storage"] < 123_456_789 + (1 << 20)


@pytest.mark.parametrize("path", ["", "/weights/7b", "/weights/model.gguf"])
def test_an_image_looks_the_same_mounted_and_copied(path: str) -> None:
    spec = of_source(f"oci://r.example/m@{DIGEST}{path}", credentialsSecret="pull")
    mounted, copied = template(spec)["spec"], template(spec, image_volumes=False)["spec"]
    assert mounted["volumes"][0]["image"]["reference"] == f"r.example/m@{DIGEST}"
    assert "initContainers" not in mounted
    (copy,) = copied["initContainers"]
    folder = "/weights" if path.endswith("gguf") else path or "/models"
    assert copy["image"] == f"r.example/m@{DIGEST}"
    assert copy["command"] == ["cp", "-r", f"{folder}/.", "/copy/"]
    assert copied["containers"][0]["volumeMounts"][2]["mountPath"] == f"/models{folder}"
    for pod in (mounted, copied):
        assert pod["imagePullSecrets"] == [{"name": "of-the-operator"}, {"name": "pull"}]
        assert "env" not in copy


def test_keys_are_a_file_and_follow_the_secret() -> None:
    spec = {**MINIMAL, "serving": {"apiKeysSecret": "callers"}}
    (volume,) = [volume for volume in template(spec)["spec"]["volumes"] if volume["name"] == "keys"]
    assert volume["secret"]["secretName"] == "callers"
    assert "subPath" not in json.dumps(server(spec)["volumeMounts"])
    assert manifest(spec)["spec"]["serving"] == {"apiKeysFile": "/etc/plimsoll/keys/keys"}


def test_shared_memory_grows_with_the_ranks() -> None:
    gpu = {**MINIMAL, "accelerator": {"resource": "nvidia.com/gpu", "memory": "24Gi"}}
    sizes = []
    for tensor in (1, 2):
        volumes = template({**gpu, "parallelism": {"tensor": tensor}})["spec"]["volumes"]
        (shared,) = [volume["emptyDir"] for volume in volumes if volume["name"] == "shm"]
        assert shared["medium"] == "Memory"
        sizes.append(parse_bytes(shared["sizeLimit"]))
    assert sizes == [64 << 20, 1 << 30]
