"""`ModelDeployment` v1alpha1: what a user asks for. Only fields that work; an unknown one is an error.

Sizes, durations and processors are read as Kubernetes writes them and held as bytes, seconds and threads. Docstrings
of fields are what `kubectl explain` says: the CRD is generated from here.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from plimsoll.api import rules
from plimsoll.api.accelerator import RESOURCE, RESOURCE_WORDS
from plimsoll.api.affinity import AffinityField
from plimsoll.api.checkpoint_source import CheckpointSource, SourceAddress
from plimsoll.api.draft_model import DraftModel
from plimsoll.api.fields import (
    LAPTOP_ONLY,
    Count,
    Deadline,
    Memory,
    NodeLabels,
    ObjectName,
    Part,
    PodAnnotations,
    PodLabels,
    Processors,
    Timeout,
    Wait,
    fault_at,
    parse_processors,
)
from plimsoll.api.kv_cache import KVCache
from plimsoll.api.parallelism import Parallelism
from plimsoll.api.parsers import ReasoningParser, ToolParser
from plimsoll.api.pod import CaBundle, Limits, Proxy, SecurityContext, Spread
from plimsoll.api.precision import ActivationPrecision
from plimsoll.api.rules import RULES

API_VERSION = "plimsoll.dev/v1alpha1"
KIND = "ModelDeployment"
#: Kubernetes' own label of nodes.
ARCHITECTURE = "kubernetes.io/arch"

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Metadata(Part):
    """Name, namespace, labels and annotations of a manifest; other fields are refused."""

    name: str
    namespace: str = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _short(cls, value: str) -> str:
        # Names of Services, ReplicaSets and pods are made from it, and have 63 characters.
        if not re.fullmatch(rules.NAME, value):
            raise ValueError(rules.NAME_WORDS)
        return value

    @field_validator("namespace")
    @classmethod
    def _dns_label(cls, value: str) -> str:
        if not _DNS_LABEL.fullmatch(value):
            raise ValueError("must be up to 63 lower-case letters, digits and '-', not at an end")
        return value


class Model(CheckpointSource):
    """Which checkpoint is served, and how it is reached: exactly one of source and quantizationJob."""

    model_config = ConfigDict(json_schema_extra={RULES: [*rules.MODEL, *rules.ONE_MODEL]})

    source: SourceAddress = ""
    """Where the checkpoint is, a Hugging Face folder or one GGUF file: `hf://ORG/NAME[@REVISION][/FILE.gguf]` on a hub,
    `pvc://CLAIM/PATH` on a PersistentVolumeClaim, `s3://BUCKET/PREFIX` in object storage, or `oci://IMAGE@sha256:DIGEST`
    in an image. A branch of a hub is resolved to its commit once, when the deployment is applied."""
    served_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What clients call the model. Default: metadata.name."""
    quantization_job: Annotated[str, Field(max_length=40, pattern=f"^{rules.NAME}$")] | None = None
    """A QuantizationJob of this namespace, in place of a source: it is waited for, and exactly what it wrote is served.
    When another job of that name writes another output, that one is rolled out; while a job runs, after one that failed
    and after one that was deleted, what was served before goes on serving."""

    @model_validator(mode="after")
    def _one(self) -> "Model":
        if (self.source == "") == (self.quantization_job is None):
            raise ValueError(rules.ONE_MODEL_WORDS)
        return self


class Accelerator(Part):
    """What a pod runs on, and the memory line it never passes."""

    resource: Annotated[str, Field(max_length=63, json_schema_extra={RULES: rules.RESOURCE})]
    """The resource that pods ask the scheduler for: cpu, nvidia.com/gpu, or a MIG profile as the NVIDIA device plugin
    advertises it under the strategy `mixed`, such as nvidia.com/mig-1g.10gb."""
    memory: Memory | None = None
    """The line: memory of one device, such as 24Gi; on a CPU, of the engine, beside which a pod asks for 384Mi for its
    endpoint. Default: what the machine has; in a cluster, what the nodes say that the pod may run on. A pod on a GPU
    is placed only where the labels of GPU feature discovery show a device, or a share of one, that is as large."""

    @field_validator("resource")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(RESOURCE, value):
            raise ValueError(RESOURCE_WORDS)
        return value


class Rope(Part):
    """Scaling of positions, in place of the checkpoint's own, for prompts longer than the model was trained on."""

    type: Literal["linear", "dynamic", "yarn", "llama3"]
    """The method, as Hugging Face configurations name it."""
    factor: Annotated[float, Field(ge=1, le=1024)]
    """How many times longer than trained."""


class Context(Part):
    """How long a request may be."""

    max_length: Count | None = None
    """Longest prompt and answer together, in tokens. Default: as trained, or what the cache holds if that is less."""
    rope: Rope | None = None


class Serving(Part):
    """What the endpoint lets in."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.SERVING})

    max_running_requests: Count = 64
    """Requests that compute at once in one replica; the others wait."""
    max_batched_tokens: Annotated[int, Field(ge=16, le=1 << 20)] | None = None
    """Tokens that one step may compute: the largest piece of a prompt. Default: 8192 on a GPU, 2048 on a CPU."""
    max_queued_requests: Count = 256
    """Requests that may wait in one replica; more are answered 429."""
    max_queued_tokens: Count = 1_000_000
    """Prompt tokens that may wait in one replica; more are answered 429."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """fcfs: requests are served in order of arrival. priority: in the order of their field `priority`, lower numbers
    first. Any client may then go before the others."""
    request_timeout: Timeout = 600.0
    """What one request may take, waiting included."""
    restart_timeout: Wait = 30.0
    """How long requests wait for an engine that is being started again, while nothing of their answer was sent, before
    they are answered 503."""
    hang_timeout: Deadline = 20.0
    """After half of it without a sign of life of the engine the pod is not ready; after all of it the engine is killed
    and started again. The engine gives several signs a second, also in the middle of a long step."""
    torch_rows: Count | None = None
    """Rows of a step from which products go through torch's bfloat16. Prompts may be quicker on some CPUs, and greedy
    and seeded answers then depend on the other requests of that moment. CPU only. Default: never."""
    activation_precision: ActivationPrecision = "auto"
    """What activations become where they meet weights of 4 or 8 bits. int8: prompts are quicker, answers change a
    little. auto: int8 on CPUs with AVX2 or SDOT and without AMX, else bfloat16. CPU only."""
    deterministic: bool = False
    """Refuse to start pods whose answers might depend on load: where the native kernels cannot run, and where their
    self-test fails. CPU only; status.serving says in any case whether answers do. It makes nothing slower."""
    speculative_tokens: Annotated[int, Field(ge=0, le=16)] = 0
    """Tokens that a step guesses of each request: those that followed the last time that the same tokens stood in its
    text, or the draft's. The step keeps what it would have chosen itself, so answers stay the same. Quicker where text
    repeats, as in code that is edited. A request for which few come true is not guessed for a while. 0 guesses none."""
    draft: DraftModel | None = None
    """A smaller model that makes the guesses."""
    tool_parser: ToolParser = "auto"
    """How the model writes the functions that it calls. auto: the model's chat template decides; none: calls stay
    in the text."""
    reasoning_parser: ReasoningParser = "auto"
    """How the model marks what it thinks before it answers. auto: the model's chat template decides; none: thoughts
    stay in the text."""
    api_keys_secret: ObjectName | None = None
    """A Secret of this namespace whose key `keys` holds one API key a line. Without it everybody who reaches the port
    may ask. A change takes effect without a restart."""
    api_keys_file: Annotated[str, Field(min_length=1, json_schema_extra={LAPTOP_ONLY: True})] | None = None
    """A file on this machine with one key a line."""

    @model_validator(mode="after")
    def _guessed(self) -> "Serving":
        if self.draft is not None and not self.speculative_tokens:
            raise fault_at(("draft",), rules.DRAFT_WORDS, self.draft.source)
        return self


class Rollout(Part):
    """How a change reaches pods that are serving."""

    strategy: Literal["Auto", "Surge", "Replace"] = "Auto"
    """Surge starts a new pod before an old one goes; Replace drains one and starts its successor in its place; Auto
    surges when a device is free for one more pod and replaces otherwise."""
    drain_timeout: Wait = 120.0
    """What running requests get to finish in when their pod goes."""
    progress_deadline: Deadline = 600.0
    """A new revision has failed when no byte, phase or readiness of its pods moved for so long; the old one goes on
    serving."""


class Toleration(Part):
    """A taint that does not keep pods away, as in a pod's spec."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.TOLERATION})

    key: Annotated[str, Field(max_length=316)] | None = None
    """The taint's key; without it `operator: Exists` tolerates everything."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists takes any value of the taint."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect. Default: all of them."""
    toleration_seconds: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] | None = None
    """For NoExecute: how long a pod stays."""

    @model_validator(mode="after")
    def _coherent(self) -> "Toleration":
        if self.key is None and self.operator == "Equal":
            raise ValueError("names no key: write one, or operator: Exists")
        if self.value is not None and self.operator == "Exists":
            raise ValueError("operator Exists takes no value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with effect: NoExecute")
        return self


class PodPlacement(Part):
    """Which nodes take a pod, and who it is to them."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.POD})

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._:/@]*$")] | None = None
    """The runtime image, in place of the operator's."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When the runtime image is pulled."""
    node_selector: NodeLabels = Field(default_factory=dict)
    """Labels a node must have to run a pod."""
    architecture: Literal["amd64", "arm64"] | None = None
    """Processors that the runtime image is built for: short for the node label kubernetes.io/arch. Default: any."""
    affinity: AffinityField | None = None
    """Affinity to nodes and pods, as in a pod's spec; inspect pods take nodeAffinity of it."""
    runtime_class_name: ObjectName | None = None
    """The RuntimeClass of pods."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    """Taints of nodes that do not keep pods away."""
    priority_class_name: ObjectName | None = None
    """The PriorityClass of pods."""
    service_account_name: ObjectName | None = None
    """The ServiceAccount of pods; no token of it is mounted. Default: `default` of the namespace."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Names of pull secrets of this namespace for the runtime image."""
    labels: PodLabels = Field(default_factory=dict)
    """More labels of pods."""
    annotations: PodAnnotations = Field(default_factory=dict)
    """More annotations of pods."""
    limits: Limits = Limits()
    security_context: SecurityContext = SecurityContext()
    proxy: Proxy = Proxy()
    ca_bundle: CaBundle | None = None
    """Certificate authorities that are trusted beside the usual ones when a checkpoint or dataset is fetched."""

    @model_validator(mode="before")
    @classmethod
    def _architecture_is_a_label(cls, data: Any) -> Any:
        # One place for all that chooses nodes: the planner, admission and the scheduler read nodeSelector.
        wanted = data.get("architecture") if isinstance(data, dict) else None
        if not isinstance(wanted, str) or wanted not in ("amd64", "arm64"):
            return data
        labels = {} if data.get("nodeSelector") is None else data["nodeSelector"]
        if not isinstance(labels, dict):
            return data
        if labels.get(ARCHITECTURE, wanted) != wanted:
            raise fault_at(("architecture",), rules.ARCHITECTURE_WORDS, wanted)
        return {**data, "nodeSelector": {**labels, ARCHITECTURE: wanted}}

    @model_validator(mode="after")
    def _limit_holds_the_request(self) -> "PodPlacement":
        asked, limit = getattr(self, "cpu", None), self.limits.cpu
        # Of the request only whole threads are known here; the API server compares to the thousandth.
        if asked is not None and limit is not None and asked > parse_processors(limit):
            raise fault_at(("limits", "cpu"), f"must be at least pod.cpu, which is {asked}", limit)
        return self


class Pod(PodPlacement):
    """The few things of a pod that are the cluster's business and not the model's."""

    cpu: Processors | None = None
    """Processors of a pod, and threads of its engine. Default: what the machine or the container allows; a request of
    1 in a cluster."""
    memory: Memory | None = None
    """Host memory of a pod on a GPU; kvCache.hostMemory is added to it. On a CPU the pod's memory follows from
    accelerator.memory, and this is refused."""
    topology_spread_constraints: list[Spread] = Field(default_factory=list, max_length=8)
    """How replicas are spread over zones and nodes. Default: over nodes, where that can be had."""


class ModelDeploymentSpec(Part):
    """What is wanted."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.SPEC})

    model: Model
    accelerator: Accelerator
    parallelism: Parallelism = Parallelism()
    precision: Literal["auto", "bfloat16", "float16", "float32", "w8a16", "w4a16"] = "auto"
    """How weights are held. `auto` holds a quantized checkpoint, and a GGUF in Q4, Q5, Q6 or Q8 blocks, as it is
    stored (w4a16 or w8a16), and another in the first of bfloat16, w8a16 (8 bits) and w4a16 (4 bits) that fits;
    status.budget.rejected says what it passed over. float16: GPUs."""
    kv_cache: KVCache = Field(default=KVCache(), alias="kvCache")
    context: Context = Context()
    serving: Serving = Serving()
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Replicas that serve, each a whole copy of the model: a pod, or a group of parallelism.nodes pods. 0 stops them
    and keeps everything else; `kubectl scale` and autoscalers write it."""
    rollout: Rollout = Rollout()
    pod: Pod = Pod()

    @model_validator(mode="after")
    def _coherent(self) -> "ModelDeploymentSpec":
        if self.pod.memory is not None and self.accelerator.resource == "cpu":
            raise fault_at(("pod", "memory"), rules.ONE_MEMORY_WORDS, self.pod.memory)
        if self.serving.torch_rows is not None and self.accelerator.resource != "cpu":
            raise fault_at(("serving", "torchRows"), rules.TORCH_ROWS_WORDS, self.serving.torch_rows)
        if self.serving.deterministic and self.accelerator.resource != "cpu":
            raise fault_at(("serving", "deterministic"), rules.DETERMINISTIC_WORDS, True)
        if self.serving.deterministic and self.serving.torch_rows is not None:
            raise fault_at(("serving", "deterministic"), rules.EQUAL_WORDS, True)
        return self


class ModelDeployment(Part):
    """Serves one checkpoint behind an OpenAI-compatible endpoint, up to a line of memory and never past it."""

    api_version: Literal["plimsoll.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: ModelDeploymentSpec

    @property
    def served_name(self) -> str:
        return self.spec.model.served_name or self.metadata.name
