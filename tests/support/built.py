"""Deployments for tests of the builders: any spec that the API takes, and the values that go with it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from plimsoll.api.budget import Budget, budget
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.device import DeviceFacts
from plimsoll.api.facts import facts_from_config
from plimsoll.api.inspection import Inspection
from plimsoll.api.load import Load
from plimsoll.operator import build
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

Spec = dict[str, Any]
Object = dict[str, Any]

DIGEST = "sha256:" + "0123456789abcdef" * 4
COMMIT = "c0ffee" * 6 + "c0ff"
SETTINGS = Settings(
    cuda_runtime_image="plimsoll.dev/runtime:cuda",
    image_pull_secrets=("of-the-operator",),
    client_namespaces=("ingress",),
)
FACTS = facts_from_config(
    {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }
)  # fmt: skip
INSPECTION = Inspection(DIGEST, COMMIT, 123_456_789, "", FACTS)

MINIMAL: Spec = {"model": {"source": "pvc://models/llama"}, "accelerator": {"resource": "cpu", "memory": "1Gi"}}
SOURCES = (
    "pvc://models",
    "pvc://models/llama/3b",
    "hf://org/name",
    "hf://org/name@v1.0",
    "hf://org/name@main/model.Q4_0.gguf",
    "s3://bucket/a/folder",
    f"oci://registry.example/models/llama@{DIGEST}",
    f"oci://registry.example:5000/llama@{DIGEST}/weights/7b",
)


def deployment(spec: Mapping[str, Any], namespace: str = "team", uid: str = "5a1d-uid") -> Deployment:
    return Deployment(namespace=namespace, name="llama", uid=uid, generation=3, spec=spec)


def inspection_of(spec: Mapping[str, Any]) -> Inspection:
    """What an inspect pod would say of the source: a single file is named, a folder is not."""
    name = spec["model"]["source"].rpartition("/")[2]
    return replace(INSPECTION, path=name if name.endswith(".gguf") else "")


def draft_inspection_of(spec: ModelDeploymentSpec) -> Inspection | None:
    """What an inspect pod would say of the draft."""
    draft = spec.serving.draft
    return None if draft is None else inspection_of({"model": {"source": draft.source}})


def budget_of(spec: ModelDeploymentSpec) -> Budget:
    kind = "cpu" if spec.accelerator.resource == "cpu" else "cuda"
    tensor = 1 if spec.parallelism.tensor == "auto" else min(spec.parallelism.tensor, 2)
    device = DeviceFacts(kind, spec.accelerator.memory or 24 << 30)
    return budget(FACTS, device, Load(
        precision="bfloat16", max_length=64, tensor=tensor, host_bytes=spec.kv_cache.host_memory or 0
    ))  # fmt: skip


def replica_set(spec: Mapping[str, Any], *, image_volumes: bool = True, contents: str = "", **deployed: str) -> Object:
    parsed = ModelDeploymentSpec.model_validate(dict(spec))
    found = replace(inspection_of(spec), contents=contents)
    return build.replica_set(
        deployment(spec, **deployed), parsed, found, budget_of(parsed), SETTINGS,
        revision=build.revision(spec), number=1, replicas=parsed.replicas, image_volumes=image_volumes, version="1.2.3",
        draft=draft_inspection_of(parsed),
    )  # fmt: skip


def everything(spec: Mapping[str, Any], *, image_volumes: bool = True, **deployed: str) -> Iterator[Object]:
    """Every object that this deployment leads to."""
    parsed, found = ModelDeploymentSpec.model_validate(dict(spec)), deployment(spec, **deployed)
    yield replica_set(spec, image_volumes=image_volumes, **deployed)
    yield build.service(found)
    for hold in (True, False):
        yield build.disruption_budget(found, parsed.replicas, hold=hold)
    yield build.network_policy(found, parsed, SETTINGS)
    yield build.inspect_policy(found.namespace)
    yield build.inspect_pod(found, parsed, SETTINGS, image_volumes)
    if parsed.serving.draft is not None:
        yield build.inspect_pod(found, build.of_draft(parsed), SETTINGS, image_volumes)
    yield build.record(found.namespace, build.source_key(found.namespace, parsed.model), INSPECTION)


_names = st.sampled_from(["one", "another-name", "a.b"])
_words = st.dictionaries(st.sampled_from(["team", "example.org/cost"]), st.sampled_from(["a", "b-1"]), max_size=2)


def _some(required: Mapping[str, Any], optional: Mapping[str, Any]) -> st.SearchStrategy[Spec]:
    return st.fixed_dictionaries(dict(required), optional=dict(optional))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Raw specs, as the API server holds them."""
    source = draw(st.sampled_from(SOURCES))
    scheme = source.partition(":")[0]
    more: dict[str, Any] = {"servedName": st.sampled_from(["llama", "org/Llama 3"])}
    if scheme != "pvc":
        more["credentialsSecret"] = _names
    if scheme in ("hf", "s3"):
        more["cacheClaim"] = _names
        more["endpoint"] = st.sampled_from(
            ["https://hub.example", "http://minio.storage.svc:9000", "http://minio.storage", "https://s3.example:8443"]
        )
    on_cpu = draw(st.booleans())
    device = (
        _some({"resource": st.just("cpu")}, {"memory": st.sampled_from(["1Gi", "1536Mi", 2147483648, "3e9"])})
        if on_cpu
        else _some({"resource": st.just("nvidia.com/gpu")}, {"memory": st.sampled_from(["24Gi", 80 << 30])})
    )
    toleration = st.sampled_from(
        [
            {"operator": "Exists"},
            {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
            {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
        ]
    )
    pod: dict[str, Any] = {
        "cpu": st.sampled_from([1, "2", "400m"]),
        "image": st.just("registry.example/runtime:mine"),
        "nodeSelector": st.just({"pool": "gpu"}),
        "tolerations": st.lists(toleration, max_size=2, unique_by=str),
        "priorityClassName": st.just("system-cluster-critical"),
        "serviceAccountName": _names,
        "imagePullSecrets": st.lists(_names, max_size=2, unique=True),
        "labels": _words,
        "annotations": _words,
    }
    if not on_cpu:
        pod["memory"] = st.sampled_from(["8Gi", "3000Mi"])
    parts = {
        "parallelism": st.sampled_from([{}, {"tensor": "auto"}, {"tensor": 1}, {"tensor": 2}]),
        "precision": st.sampled_from(["auto", "bfloat16", "float32"]),
        "kvCache": _some({}, {"ratio": st.sampled_from([0.5, 0.8, 1.0]), "prefixCaching": st.booleans()}),
        "context": st.sampled_from([{}, {"maxLength": 64}, {"rope": {"type": "linear", "factor": 2.0}}]),
        "serving": _some(
            {},
            {
                "maxRunningRequests": st.just(8),
                "apiKeysSecret": _names,
                "requestTimeout": st.just("5m"),
                "speculativeTokens": st.sampled_from([1, 4]),
            },
        ),
        "replicas": st.integers(0, 3),
        "rollout": _some({}, {"strategy": st.sampled_from(["Auto", "Surge"]), "drainTimeout": st.just("1m30.5s")}),
        "pod": _some({}, pod),
    }
    model = draw(_some({"source": st.just(source)}, more))
    found = {"model": model, "accelerator": draw(device), **draw(_some({}, parts))}
    if "speculativeTokens" in found.get("serving", {}):
        found["serving"] |= draw(_some({}, {"draft": _some({"source": st.sampled_from(SOURCES)}, {})}))
    return found
