"""One look at a source for all who serve it, and what is kept of it."""

from typing import Any

import pytest

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator import build, names, parse
from tests.support.built import DIGEST, INSPECTION, MINIMAL, SETTINGS, Object, Spec, deployment


def pod(spec: Spec, image_volumes: bool = True) -> Object:
    parsed = ModelDeploymentSpec.model_validate(spec)
    return build.inspect_pod(deployment(spec), parsed, SETTINGS, image_volumes)


def key(source: str, namespace: str = "team", **model: Any) -> str:
    spec = ModelDeploymentSpec.model_validate({**MINIMAL, "model": {"source": source, **model}})
    return build.source_key(namespace, spec.model)


def test_a_source_is_looked_at_once_however_it_is_served() -> None:
    assert key("hf://org/name") == key("hf://org/name", servedName="another", cacheClaim="cache")
    asked = {
        key("hf://org/name"), key("hf://org/other"), key("hf://org/name", "elsewhere"),
        key("hf://org/name", credentialsSecret="token"), key("hf://org/name", endpoint="https://hub.example"),
        key("hf://org/name", contentVersion="2"),
    }  # fmt: skip
    assert len(asked) == 6


def test_keys_outlive_versions() -> None:
    # A change looks at every source of every cluster again.
    assert key("pvc://models/llama") == "c3e44e8852b94e4b"


@pytest.mark.parametrize(
    ("source", "argument"),
    [
        ("pvc://models/llama 3", "file:///source/llama%203"),
        ("hf://org/name@main", "hf://org/name@main"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        (f"oci://r.example/m@{DIGEST}", "file:///source"),
        (f"oci://r.example/m@{DIGEST}/weights", "file:///source/weights"),
    ],
)
def test_the_pod_looks_at_what_it_can_reach(source: str, argument: str) -> None:
    found = pod({**MINIMAL, "model": {"source": source}})["spec"]
    (container,) = found["containers"]
    assert container["args"] == ["inspect", argument, "--report", "/dev/termination-log"]
    assert found["restartPolicy"] == "Never"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert argument.startswith("file://") == ("/source" in mounts)
    assert all(mount.get("readOnly") for path, mount in mounts.items() if path != "/tmp")


def test_an_image_that_is_copied_is_found_in_the_same_place() -> None:
    found = pod({**MINIMAL, "model": {"source": f"oci://r.example/m@{DIGEST}"}}, image_volumes=False)["spec"]
    assert found["initContainers"][0]["command"] == ["cp", "-r", "/models/.", "/copy/"]
    (mount,) = [mount for mount in found["containers"][0]["volumeMounts"] if mount["name"] == "source"]
    assert mount["mountPath"] == "/source/models"


def test_it_runs_where_and_as_the_deployments_pods_do() -> None:
    wish = {
        "nodeSelector": {"kubernetes.io/arch": "arm64"}, "tolerations": [{"operator": "Exists"}],
        "labels": {"team": "a"}, "annotations": {"sidecar.istio.io/inject": "false"}, "priorityClassName": "low",
    }  # fmt: skip
    found = pod({**MINIMAL, "pod": wish})
    assert found["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert found["spec"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert found["spec"]["priorityClassName"] == "low"
    assert found["metadata"]["labels"]["team"] == "a"
    assert found["metadata"]["labels"][names.COMPONENT] == "inspect"
    assert found["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


def test_another_annotation_is_another_way_to_look() -> None:
    # A pod that waits for a sidecar gives way to one that asks for none.
    one, other = (pod({**MINIMAL, "pod": {"annotations": {"inject": value}}}) for value in ("true", "false"))
    assert build.looks_as(one) != build.looks_as(other)
    assert build.looks_as(pod(MINIMAL)) == build.looks_as(pod({**MINIMAL, "pod": {}}))


def test_a_record_reads_back() -> None:
    kept = build.record("team", "0123456789abcdef", INSPECTION)
    assert parse.inspection(kept["data"].values()) == INSPECTION
    assert kept["metadata"]["labels"][names.SOURCE] == "0123456789abcdef"
