"""A hash of what restarts a pod, kept for as long as clusters keep their ReplicaSets."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator import build
from tests.support.built import DIGEST, MINIMAL, Spec, replica_set, specs

#: Every field of version 0.1 that restarts a pod, each off its default.
RELEASED: Spec = {
    "model": {
        "source": "hf://org/name@v1", "servedName": "name", "credentialsSecret": "hub", "endpoint": "https://hub.example",
        "cacheClaim": "cache",
    },
    "accelerator": {"resource": "nvidia.com/gpu", "memory": "24Gi"},
    "parallelism": {"tensor": 2},
    "precision": "bfloat16",
    "kvCache": {"ratio": 0.9, "precision": "int8", "blockSize": 32, "prefixCaching": False},
    "context": {"maxLength": 8192, "rope": {"type": "yarn", "factor": 4.0}},
    "serving": {
        "maxRunningRequests": 32, "maxBatchedTokens": 4096, "maxQueuedRequests": 10, "maxQueuedTokens": 1000,
        "requestTimeout": "5m", "apiKeysSecret": "keys",
    },
    "pod": {
        "cpu": 4, "memory": "8Gi", "image": "runtime:1", "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}], "priorityClassName": "high",
        "serviceAccountName": "models", "imagePullSecrets": ["pull"], "labels": {"team": "a"},
        "annotations": {"note": "b"},
    },
}  # fmt: skip
#: With the fields that came later.
FULL: Spec = {
    **RELEASED,
    "model": {**RELEASED["model"], "contentVersion": "v1"},
    "parallelism": {"tensor": 4, "nodes": 2, "topologyKey": "rack", "exclusiveTopology": True},
    "serving": {**RELEASED["serving"], "toolParser": "hermes", "reasoningParser": "think"},
    "pod": {
        **RELEASED["pod"],
        "architecture": "amd64",
        "imagePullPolicy": "Always",
        "runtimeClassName": "nvidia",
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
                    ]
                }
            }
        },
        "limits": {"cpu": 4, "ephemeralStorage": "20Gi"},
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 1002, "supplementalGroups": [7]},
        "proxy": {"http": "http://proxy:3128", "https": "http://proxy:3128", "noProxy": "10.0.0.0/8,.example.com"},
        "caBundle": {"configMap": "authorities", "key": "ca.crt"},
        "topologySpreadConstraints": [
            {"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2}
        ],
    },
}

#: With the fields of later versions.
LATER = {"restartTimeout": "10s", "hangTimeout": "1m", "speculativeTokens": 4, "schedulingPolicy": "priority",
         "draft": {"source": "hf://org/draft@v1"}}  # fmt: skip
EVERY: Spec = {**FULL, "serving": {**FULL["serving"], **LATER}}


def test_the_hashes_of_released_specs_never_change() -> None:
    # A change here restarts every model pod of every cluster that upgrades. Add cases; never edit one.
    assert build.revision(MINIMAL) == "80b20ade30"
    assert build.revision(RELEASED) == "7d2a84d83a"
    oci = {"model": {"source": f"oci://r.example/m@{DIGEST}"}, "accelerator": {"resource": "nvidia.com/gpu"}}
    assert build.revision(oci) == "0307107f43"


def spelled_out(spec: Spec) -> Spec:
    """With every default written down."""
    found: Spec = ModelDeploymentSpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_none=True)
    # Of processors a parsed spec only knows the threads.
    found["pod"] |= {key: value for key, value in spec.get("pod", {}).items() if key == "cpu"}
    return found


@given(specs())
def test_a_default_that_is_spelled_out_changes_nothing(spec: Spec) -> None:
    full = spelled_out(spec)
    assert build.revision(full) == build.revision(spec)
    assert build.restart_part(full) == build.restart_part(spec)


@given(specs())
def test_fields_without_a_value_are_fields_left_out(spec: Spec) -> None:
    empty = {"kvCache": {}, "context": None, "serving": {"apiKeysSecret": None}, "pod": {"nodeSelector": {}}}
    assert build.revision({**empty, **spec}) == build.revision(spec)


@given(specs())
def test_how_many_pods_there_are_is_no_matter_of_the_pod(spec: Spec) -> None:
    rollout = {"strategy": "Replace", "drainTimeout": "1s", "progressDeadline": "1h"}
    assert build.revision({**spec, "replicas": 77, "rollout": rollout}) == build.revision(spec)


@given(specs())
def test_what_a_replica_set_keeps_is_a_spec_to_go_back_to(spec: Spec) -> None:
    annotations = replica_set(spec)["metadata"]["annotations"]
    kept = json.loads(annotations["plimsoll.dev/spec"])
    assert build.revision(kept) == build.revision(spec)
    assert not {"replicas", "rollout"} & kept.keys()


@pytest.mark.parametrize(
    ("one", "other"), [("1Gi", "1024Mi"), ("1Gi", 1 << 30), ("1.5Gi", "1536Mi"), ("1e9", 1_000_000_000)]
)
def test_one_amount_in_two_spellings_is_one_revision(one: str, other: str | int) -> None:
    first, second = copy.deepcopy(MINIMAL), copy.deepcopy(MINIMAL)
    first["accelerator"]["memory"], second["accelerator"]["memory"] = one, other
    assert build.revision(first) == build.revision(second)


def test_processors_are_compared_as_written() -> None:
    def revision(cpu: str | int) -> str:
        return build.revision({**MINIMAL, "pod": {"cpu": cpu}})

    assert revision(2) == revision("2") == revision("2000m") != revision("1500m")


def leaves(value: Any, *path: str) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, *path, key)]
    return [path]


#: Others to put in the place of each.
OTHER: dict[str, Any] = {
    "source": "hf://org/name@v2", "endpoint": "https://other.example", "resource": "cpu", "precision": "auto",
    "tensor": 2, "nodes": 4, "exclusiveTopology": False,
    "type": "linear", "prefixCaching": True, "tolerations": [], "imagePullSecrets": [], "requestTimeout": "6m",
    "restartTimeout": "6m", "hangTimeout": "6m", "toolParser": "none", "reasoningParser": "none",
    "schedulingPolicy": "fcfs",
    "memory": "25Gi", "ratio": 0.7, "blockSize": 64, "factor": 2.0, "maxLength": 1, "maxBatchedTokens": 64,
    "image": "runtime:2", "architecture": "arm64", "imagePullPolicy": "Never", "nodeSelectorTerms": [{}],
    "ephemeralStorage": "21Gi", "supplementalGroups": [8], "topologySpreadConstraints": [],
}  # fmt: skip


@pytest.mark.parametrize("path", leaves(EVERY), ids=".".join)
def test_every_other_field_makes_a_new_revision(path: tuple[str, ...]) -> None:
    spec = copy.deepcopy(EVERY)
    *above, last = path
    place = spec
    for name in above:
        place = place[name]
    old = place[last]
    place[last] = 5 if path == ("pod", "limits", "cpu") else OTHER.get(last, 3 if isinstance(old, int) else f"{old}-2")
    if last == "resource":
        del spec["pod"]["memory"]
        without = copy.deepcopy(EVERY)
        del without["pod"]["memory"]
        assert build.revision(spec) != build.revision(without)
    assert build.revision(spec) != build.revision(EVERY)


def test_rows_for_torch_make_a_new_revision_on_a_cpu() -> None:
    on_cpu = {**MINIMAL, "accelerator": {"resource": "cpu", "memory": "4Gi"}}
    assert build.revision({**on_cpu, "serving": {"torchRows": 128}}) != build.revision(on_cpu)


def test_a_demand_for_equal_answers_makes_a_new_revision_on_a_cpu() -> None:
    on_cpu = {**MINIMAL, "accelerator": {"resource": "cpu", "memory": "4Gi"}}
    assert build.revision({**on_cpu, "serving": {"deterministic": True}}) != build.revision(on_cpu)
    assert build.revision({**on_cpu, "serving": {"deterministic": False}}) == build.revision(on_cpu)


def test_rows_of_8_bits_make_a_new_revision_on_a_cpu() -> None:
    on_cpu = {**MINIMAL, "accelerator": {"resource": "cpu", "memory": "4Gi"}}
    assert build.revision({**on_cpu, "serving": {"activationPrecision": "int8"}}) != build.revision(on_cpu)
    assert build.revision({**on_cpu, "serving": {"activationPrecision": "auto"}}) == build.revision(on_cpu)


def test_a_host_tier_makes_a_new_revision() -> None:
    tier = {**MINIMAL, "kvCache": {"hostMemory": "1Gi"}}
    assert build.revision(tier) != build.revision(MINIMAL)
    assert build.revision(tier) == build.revision({**MINIMAL, "kvCache": {"hostMemory": 1 << 30}})
    assert build.revision(tier) != build.revision({**MINIMAL, "kvCache": {"hostMemory": "2Gi"}})


def test_no_field_is_forgotten() -> None:
    # A field added to the API is added to FULL, or said here to be no matter of the pod.
    # A job stands in a source's place; what it wrote is hashed beside the spec.
    not_the_pods = {("replicas",), ("rollout",), ("serving", "apiKeysFile"), ("model", "quantizationJob")}
    # Does not go with GPUs, which FULL is about.
    not_the_pods |= {("serving", name) for name in ("torchRows", "deterministic", "activationPrecision")}
    # Does not go without prefix caching, which FULL is without.
    not_the_pods |= {("kvCache", "hostMemory")}

    wholes = ("tolerations", "affinity", "topologySpreadConstraints")

    def fields(model: Any, *path: str) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for info in model.model_fields.values():
            kinds = (info.annotation, *getattr(info.annotation, "__args__", ()))
            inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
            here = (*path, info.alias)
            whole = inner is None or here in not_the_pods or info.alias in wholes
            found |= {here} if whole else fields(inner, *here)
        return found

    maps = {("pod", name) for name in ("nodeSelector", "labels", "annotations", "affinity")}
    known = {path[:2] if path[:2] in maps else path for path in leaves(EVERY)}
    # Goes without the identities that are in FULL.
    alone = {("pod", "securityContext", "assignedByCluster")}
    assert fields(ModelDeploymentSpec) == known | not_the_pods | alone
    assert build.revision({**MINIMAL, "pod": {"securityContext": {"assignedByCluster": True}}}) != build.revision(
        MINIMAL
    )
