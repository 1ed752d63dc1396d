"""ModelDeployments, right and wrong: each field bent out of shape in every way that its schema knows, and by hand."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from plimsoll.api.crd import object_schema

Manifest = dict[str, Any]
DIGEST = "sha256:" + "0123456789abcdef" * 4


@dataclass(frozen=True)
class Wrong:
    """One manifest with one fault."""

    what: str
    manifest: Manifest
    field: str
    """Where it is, as people write paths."""


def manifest(spec: Manifest, name: str = "demo") -> Manifest:
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": copy.deepcopy(spec),
    }


#: Every field of the CRD is set in one of these.
ON_CPU: Manifest = {
    "model": {
        "source": "hf://org/name@main",
        "servedName": "name",
        "credentialsSecret": "token",
        "endpoint": "https://hub.example.com:8443/mirror",
        "cacheClaim": "models.cache",
        "contentVersion": "2026-01-31",
    },
    "accelerator": {"resource": "cpu", "memory": "1.5Gi"},
    "parallelism": {"tensor": "auto"},
    "precision": "bfloat16",
    "kvCache": {"ratio": 0.5, "precision": "auto", "blockSize": 64, "prefixCaching": False},
    "context": {"maxLength": 4096, "rope": {"type": "yarn", "factor": 2.5}},
    "serving": {
        "maxRunningRequests": 8,
        "maxBatchedTokens": 2048,
        "maxQueuedRequests": 9,
        "maxQueuedTokens": 10000,
        "requestTimeout": "90s",
        "schedulingPolicy": "priority",
        "restartTimeout": "20s",
        "hangTimeout": "15s",
        "speculativeTokens": 4,
        "draft": {"source": "hf://org/draft@v1"},
        "apiKeysSecret": "keys",
    },
    "replicas": 2,
    "rollout": {"strategy": "Surge", "drainTimeout": "0s", "progressDeadline": "1h30m"},
    "pod": {
        "cpu": "1500m",
        "image": "registry.example.com:5000/plimsoll/runtime:v1",
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [
            {"key": "models", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
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
        "architecture": "amd64",
        "priorityClassName": "high",
        "serviceAccountName": "models",
        "imagePullSecrets": ["registry"],
        "labels": {"team": "search"},
        "annotations": {"example.com/owner": "Search & Co."},
    },
}
ON_GPU: Manifest = {
    "model": {"source": f"oci://registry.example.com/models/qwen:7b@{DIGEST}", "credentialsSecret": "registry"},
    "accelerator": {"resource": "nvidia.com/gpu", "memory": 25769803776},
    "parallelism": {"tensor": 2},
    "kvCache": {"hostMemory": "4Gi"},
    "pod": {
        "memory": "8Gi", "cpu": 4, "tolerations": [{"operator": "Exists"}],
        "securityContext": {"assignedByCluster": True},
    },
}  # fmt: skip

OF_A_JOB: Manifest = {
    "model": {"quantizationJob": "qwen-awq", "servedName": "qwen"},
    "accelerator": {"resource": "cpu"},
}

SOURCES = (
    "hf://org/name", "hf://org/na.me-1_x@v1.0", "hf://org/name@0123abc/model-Q4_K_M.gguf", "hf://o/n@refs%2Fpr%2F1",
    "pvc://claim", "pvc://claim/", "pvc://a-claim.of/some folder/model.gguf", "s3://bucket", "s3://bucket/a/b/",
    "s3://my.bucket-1/x.gguf", f"oci://registry:5000/a/b@{DIGEST}", f"oci://alpine@{DIGEST}/models/small",
)  # fmt: skip
ENDPOINTS = ("https://hf-mirror.com", "http://minio.storage.svc:9000", "https://[fd00::1]:9000/s3", "http://10.0.0.1")

#: source, endpoint and the like: what types cannot say, with the field that is at fault.
_VERSION = "spec.model.contentVersion"
_HOST = "spec.kvCache.hostMemory"
_ARCH, _IDENTITY = "spec.pod.architecture", "spec.pod.securityContext"
_SPREAD = "spec.pod.topologySpreadConstraints[0]"
_TOLERATIONS = "spec.pod.tolerations[0]"
_TOGETHER: tuple[tuple[str, Manifest, str], ...] = (
    ("neither source nor job", {"model": {"servedName": "x"}}, "spec.model"),
    ("a source and a job", {"model": {"source": "hf://org/name", "quantizationJob": "x"}}, "spec.model"),
    ("an empty source", {"model": {"source": ""}}, "spec.model.source"),
    ("a locked job", {"model": {"quantizationJob": "x", "credentialsSecret": "s"}}, "spec.model.credentialsSecret"),
    ("a job in a claim", {"model": {"quantizationJob": "x", "cacheClaim": "c"}}, "spec.model.cacheClaim"),
    ("a job of a service", {"model": {"quantizationJob": "x", "endpoint": "https://a"}}, "spec.model.endpoint"),
    ("a job no job is called", {"model": {"quantizationJob": "Qwen_AWQ"}}, "spec.model.quantizationJob"),
    ("a path of one machine", {"model": {"source": "file:///models/a"}}, "spec.model.source"),
    ("no scheme", {"model": {"source": "org/name"}}, "spec.model.source"),
    ("an unknown scheme", {"model": {"source": "gs://bucket/prefix"}}, "spec.model.source"),
    ("a scheme alone", {"model": {"source": "hf://"}}, "spec.model.source"),
    ("upper case", {"model": {"source": "HF://org/name"}}, "spec.model.source"),
    ("a hub without a name", {"model": {"source": "hf://org"}}, "spec.model.source"),
    ("two revisions", {"model": {"source": "hf://org/name@a@b"}}, "spec.model.source"),
    ("a folder of a hub", {"model": {"source": "hf://org/name@main/folder"}}, "spec.model.source"),
    ("a way out of a hub", {"model": {"source": "hf://../name"}}, "spec.model.source"),
    ("no claim", {"model": {"source": "pvc:///path"}}, "spec.model.source"),
    ("a claim no claim is called", {"model": {"source": "pvc://My_Claim/path"}}, "spec.model.source"),
    ("a way out of a claim", {"model": {"source": "pvc://claim/../../etc"}}, "spec.model.source"),
    ("a dot of a claim", {"model": {"source": "pvc://claim/./a"}}, "spec.model.source"),
    ("an empty folder of a claim", {"model": {"source": "pvc://claim/a//b"}}, "spec.model.source"),
    ("no bucket", {"model": {"source": "s3:///prefix"}}, "spec.model.source"),
    ("half a bucket", {"model": {"source": "s3://a"}}, "spec.model.source"),
    ("a way out of a bucket", {"model": {"source": "s3://bucket/../a"}}, "spec.model.source"),
    ("an image by tag", {"model": {"source": "oci://registry/model:latest"}}, "spec.model.source"),
    ("an image with half a digest", {"model": {"source": "oci://registry/model@sha256:0123"}}, "spec.model.source"),
    ("an image without a name", {"model": {"source": f"oci://@{DIGEST}"}}, "spec.model.source"),
    ("a locked claim", {"model": {"source": "pvc://a", "credentialsSecret": "s"}}, "spec.model.credentialsSecret"),
    ("a claim on a service", {"model": {"source": "pvc://a", "endpoint": "https://a"}}, "spec.model.endpoint"),
    ("a claim in a claim", {"model": {"source": "pvc://a", "cacheClaim": "b"}}, "spec.model.cacheClaim"),
    ("a served image", {"model": {"source": f"oci://a@{DIGEST}", "endpoint": "http://a"}}, "spec.model.endpoint"),
    ("an image in a claim", {"model": {"source": f"oci://a@{DIGEST}", "cacheClaim": "b"}}, "spec.model.cacheClaim"),
    ("a version of an image", {"model": {"source": f"oci://a@{DIGEST}", "contentVersion": "b"}}, _VERSION),
    ("a version of a job", {"model": {"quantizationJob": "x", "contentVersion": "c"}}, _VERSION),
    *(
        (f"service {address!r}", {"model": {"source": "hf://a/b", "endpoint": address}}, "spec.model.endpoint")
        for address in (
            "hub.example.com", "ftp://a", "https://", "https://user:word@a", "https://a?b=c", "https://a#b",
            "https://a b", "https://a:port",
        )
    ),
    ("the host's memory on a CPU", {"pod": {"memory": "1Gi"}}, "spec.pod.memory"),
    ("two architectures", {"pod": {"architecture": "arm64", "nodeSelector": {"kubernetes.io/arch": "amd64"}}}, _ARCH),
    ("two identities", {"pod": {"securityContext": {"assignedByCluster": True, "fsGroup": 5}}}, _IDENTITY),
    ("parts of no rule", {"pod": {"topologySpreadConstraints": [{"topologyKey": "a", "minDomains": 2}]}}, _SPREAD),
    ("a proxy with a password", {"pod": {"proxy": {"http": "http://a:b@proxy:3128"}}}, "spec.pod.proxy.http"),
    (
        "rows for torch on a GPU", {"accelerator": {"resource": "nvidia.com/gpu"}, "serving": {"torchRows": 128}},
        "spec.serving.torchRows",
    ),
    (
        "equal answers of a GPU",
        {"accelerator": {"resource": "nvidia.com/gpu"}, "serving": {"deterministic": True}},
        "spec.serving.deterministic",
    ),
    (
        "equal answers and rows for torch",
        {"accelerator": {"resource": "cpu", "memory": "4Gi"}, "serving": {"deterministic": True, "torchRows": 128}},
        "spec.serving.deterministic",
    ),
    ("a draft without guesses", {"serving": {"draft": {"source": "hf://a/b@v1"}}}, "spec.serving.draft"),
    ("a host tier for no prefixes", {"kvCache": {"hostMemory": "1Gi", "prefixCaching": False}}, _HOST),
    ("a label of ours", {"pod": {"labels": {"plimsoll.dev/deployment": "x"}}}, "spec.pod.labels"),
    ("a manager", {"pod": {"labels": {"app.kubernetes.io/managed-by": "x"}}}, "spec.pod.labels"),
    ("an annotation of ours", {"pod": {"annotations": {"plimsoll.dev/x": "x"}}}, "spec.pod.annotations"),
    ("Equal to no key", {"pod": {"tolerations": [{"value": "x"}]}}, _TOLERATIONS),
    (
        "Exists with a value",
        {"pod": {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}},
        _TOLERATIONS,
    ),
    ("seconds of no eviction", {"pod": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}}, _TOLERATIONS),
    *(
        (f"memory {amount!r}", {"accelerator": {"resource": "cpu", "memory": amount}}, "spec.accelerator.memory")
        for amount in ("24GiB", "24gi", "0", "0Gi", "-1Gi", "2Pi", "1e30", "24 Gi", "")
    ),
    *(
        (f"cpu {amount!r}", {"pod": {"cpu": amount}}, "spec.pod.cpu")
        for amount in ("0", "0m", "two", "-1", "1025", "2000k")
    ),
    *(
        (f"{field} {amount!r}", {part: {field: amount}}, f"spec.{part}.{field}")
        for part, field, amounts in (
            ("serving", "requestTimeout", ("0s", "25h", "10", "-1s", "1d", "1m1h", "s", "")),
            ("rollout", "drainTimeout", ("1441m", "10", "1s1m", "two minutes")),
            ("rollout", "progressDeadline", ("0s", "0.5s", "86401s", "1w")),
        )
        for amount in amounts
    ),
)  # fmt: skip
_NAMES = ("1demo", "de.mo", "a" * 41, "x-", "demo-", "0", "d" * 60)


def wrong_manifests() -> Iterator[Wrong]:
    """One fault each: of shape for every field of the schema, of sense from the list above."""
    yield from bent(object_schema()["properties"]["spec"], (), "spec", _fullest)
    for what, change, field in _TOGETHER:
        spec = {"model": {"source": "hf://org/name"}, "accelerator": {"resource": "cpu"}} | change
        yield Wrong(what, manifest(spec), field)
    for name in _NAMES:
        yield Wrong(f"name {name[:12]}", manifest(ON_CPU, name), "metadata.name")
    for what, change in (("no spec", None), ("an empty spec", {}), ("a list", []), ("words", "serve")):
        whole = manifest({})
        whole["spec"] = change
        if change is None:
            del whole["spec"]
        yield Wrong(what, whole, "spec" if change != {} else "spec.model")
    whole = manifest(ON_CPU)
    whole["specs"] = {}
    yield Wrong("an unknown part", whole, "specs")


def bent(
    schema: Manifest, place: tuple[Any, ...], path: str, fullest: Callable[[tuple[Any, ...]], Manifest]
) -> Iterator[Wrong]:
    """Every field below `place` in every wrong shape, in the `fullest` manifest that has this place."""

    def changed(where: tuple[Any, ...], value: Any) -> Manifest:
        return _with(fullest(where), where, value)

    for name, inner in schema["properties"].items():
        here, field = (*place, name), f"{path}.{name}"
        for value in _misfits(inner):
            yield Wrong(f"{field} is {str(value)[:24]!r}", changed(here, value), field)
        if name in schema.get("required", ()):
            yield Wrong(f"{field} is missing", changed(here, _ABSENT), field)
        if "properties" in inner:
            yield from bent(inner, here, field, fullest)
        if "properties" in inner.get("items", {}):
            yield from bent(inner["items"], (*here, 0), f"{field}[0]", fullest)
    typo = f"{next(iter(schema['properties']))}s"
    yield Wrong(f"{path}.{typo} is unknown", changed((*place, typo), 1), f"{path}.{typo}")


_ABSENT = object()


def _fullest(place: tuple[Any, ...]) -> Manifest:
    return manifest(ON_GPU if place[:2] == ("pod", "memory") else ON_CPU)


def _with(found: Manifest, place: tuple[Any, ...], value: Any) -> Manifest:
    owner = found["spec"]
    for key in place[:-1]:
        owner = owner[key]
    if value is _ABSENT:
        del owner[place[-1]]
    else:
        owner[place[-1]] = value
    return found


def _misfits(schema: Manifest) -> list[Any]:
    """Values that this schema must not take."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("x-kubernetes-int-or-string"):
        return ["lots", 0, high + 1, True, [], {}]
    kind = schema["type"]
    if "enum" in schema:
        other = ["no such thing", 5] if kind == "string" else [max(schema["enum"]) + 1, str(schema["enum"][0])]
        return [*other, []]
    if kind == "string":
        found: list[Any] = [5, True, []]
        if "maxLength" in schema:
            found.append("a" * (schema["maxLength"] + 1))
        if "pattern" in schema:
            found.append("-Not This!")
        return found + ([""] if schema.get("minLength") else [])
    if kind == "integer":
        return ["7", True, 7.5, *([] if low is None else [low - 1]), *([] if high is None else [high + 1])]
    if kind == "number":
        below = low if schema.get("exclusiveMinimum") else low - 1
        return ["0.5", True, below, high + 0.5]
    if kind == "boolean":
        return ["yes", 1]
    if kind == "array":
        return [{}, "x", 5]
    if "additionalProperties" in schema:
        return [[], "x", {"a": 5}, {f"k{number}": "v" for number in range(schema["maxProperties"] + 1)}]
    return [[], "x", 5]
