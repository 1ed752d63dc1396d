"""The status of a ModelDeployment: what the operator found, never what it hopes. The CRD is generated from here."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

PHASES = (
    "Pending", "Refused", "Quantizing", "Inspecting", "Downloading", "Loading", "Ready", "Updating", "Degraded",
    "Stopped",
)  # fmt: skip

Whole = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
Replicas = Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})]
Seconds = Annotated[float, Field(ge=0)]


class StatusPart(BaseModel):
    """Base of the status models: camelCase keys, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, use_attribute_docstrings=True)


class Source(StatusPart):
    """The checkpoint that is served, as it was inspected when its revision was made."""

    uri: str | None = None
    """The source that was inspected."""
    digest: str | None = None
    """sha256 over names, sizes and tensor headers; of oci:// the image's own."""
    revision: str | None = None
    """What the source resolves to for good: the commit on a hub, a digest elsewhere."""
    bytes: Whole | None = None
    """Of all files that serving needs."""


class PerDevice(StatusPart):
    """Bytes of one device, term by term; total is the sum of the others."""

    total: Whole | None = None
    """The line."""
    context: Whole | None = None
    """What the process, the runtime's libraries and the device's context take."""
    weights: Whole | None = None
    """The model's weights as they lie in memory."""
    draft: Whole | None = None
    """The weights of serving.draft."""
    workspace: Whole | None = None
    """The most that one step computes with."""
    kv_cache: Whole | None = Field(default=None, alias="kvCache")
    """Cache for keys and values: spec.kvCache.ratio of what was left, in whole blocks."""
    host_cache: Whole | None = None
    """On a CPU: spec.kvCache.hostMemory in whole blocks."""
    headroom: Whole | None = None
    """What stays free."""


class RankBudget(PerDevice):
    """Bytes of one rank of a replica that is spread over several; workspace includes what its sums over ranks take."""

    rank: Replicas | None = None
    """From 0; rank 0 also samples and answers."""


class Rejected(StatusPart):
    """An option that `auto` passed over."""

    option: str
    """What was tried, such as `precision: bfloat16`."""
    reason: str
    """Why not: the sum."""


class Budget(StatusPart):
    """The memory, worked out before any pod existed."""

    precision: str | None = None
    """How weights are held."""
    cache_precision: str | None = None
    """How keys and values are held, where they are codes: int8 or int4."""
    tensor: Replicas | None = None
    """Devices that one replica is spread over."""
    per_device: PerDevice | None = None
    ranks: list[RankBudget] | None = None
    """Each rank's bytes, where there are several; perDevice is the fullest one's."""
    kv_tokens: Whole | None = None
    """Tokens the cache of one replica holds."""
    host_tokens: Whole | None = None
    """Tokens that its host tier holds."""
    concurrent_requests: Whole | None = None
    """Requests of full length that fit one replica's cache at once."""
    max_length: Whole | None = None
    """Longest prompt and answer together, in tokens."""
    rejected: list[Rejected] | None = None
    """What `auto` passed over, best first, and why."""


class RankObserved(StatusPart):
    """Bytes of one rank as measured, the most of any replica."""

    rank: Replicas | None = None
    """From 0; the one of budget.ranks."""
    weights: Whole | None = None
    """Its part of the weights as loaded."""
    kv_cache: Whole | None = Field(default=None, alias="kvCache")
    """Its part of the cache as allocated."""
    peak: Whole | None = None
    """The most its process has held."""


class Observed(StatusPart):
    """Bytes as measured by the runtime, the most of any replica; beside budget.perDevice, which was predicted."""

    weights: Whole | None = None
    """Weights as loaded."""
    kv_cache: Whole | None = Field(default=None, alias="kvCache")
    """The cache as allocated."""
    draft: Whole | None = None
    """The draft's weights as loaded."""
    host_cache: Whole | None = None
    """The host tier as allocated."""
    peak: Whole | None = None
    """The most the process has held."""
    ranks: list[RankObserved] | None = None
    """The same of each rank, beside budget.ranks, where there are several; the fields above are rank 0's."""


class ServingKind(StatusPart):
    """Replicas that compute alike."""

    deterministic: bool | None = None
    """Whether an answer of these replicas is the same under any load."""
    kernels: str | None = None
    """The table of kernels, with the processor's instructions that it uses."""
    digest: str | None = None
    """sha256 of the self-test at start-up."""
    reason: str | None = None
    """Why they are not deterministic."""
    replicas: Replicas | None = None
    """How many they are."""


class Serving(StatusPart):
    """How the replicas compute, as each found at its start; what they do not agree in is left out."""

    deterministic: bool | None = None
    """Whether greedy and seeded answers are the same to the bit under any load, whichever replica gives them: each
    replica's kernels promise it, its self-test has found it, and all digests are equal."""
    kernels: str | None = None
    """The table of kernels, with the processor's instructions that it uses, such as native-avx512."""
    digest: str | None = None
    """sha256 of the self-test at start-up: equal on replicas whose kernels have the same bits."""
    reason: str | None = None
    """Why they are not deterministic."""
    kinds: Annotated[list[ServingKind], Field(max_length=16)] | None = None
    """Where replicas do not agree: each kind, the most frequent first."""


class Step(StatusPart):
    """A step that moves bytes."""

    bytes: Whole | None = None
    """Done so far."""
    total: Whole | None = None
    """Wanted in all."""
    seconds: Seconds | None = None
    """Taken so far."""


class Download(Step):
    """Fetching the checkpoint."""

    eta: Seconds | None = None
    """Seconds that are left at the present pace."""


class RankStep(Step):
    """One rank's part of a step."""

    rank: Replicas | None = None
    """From 0; the one of budget.ranks."""


class Taken(StatusPart):
    """A step that only takes time."""

    seconds: Seconds | None = None
    """Taken so far."""


class Startup(StatusPart):
    """How starting went, of the replica that starts now or else of the slowest one."""

    download: Download | None = None
    start: Taken | None = None
    """The process itself: imports, the checkpoint's headers."""
    load: Step | None = None
    """Reading weights into memory."""
    ranks: list[RankStep] | None = None
    """Each rank's part of `load`, where there are several; the bytes of `load` are theirs together."""
    warmup: Taken | None = None
    """From loaded weights to the first token."""


class Load(StatusPart):
    """How busy the replicas are together, in steps coarse enough that a steady load writes nothing."""

    running_requests: Whole | None = None
    """Requests that compute."""
    waiting_requests: Whole | None = None
    """Requests in queues."""
    cache_usage: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the cache that requests hold, of the fullest replica, in steps of 5."""
    summary: str | None = None
    """The same in words."""


class Condition(StatusPart):
    """metav1.Condition: what is true, why, and since when."""

    type: Annotated[str, Field(max_length=316)]
    """Accepted: the spec is coherent and the budget fits. SourceReady: the checkpoint was read and its facts are known.
    Progressing: a change is under way. Ready: every wanted replica of this generation serves. Degraded: something that
    should be there is not. Reconciling and Stalled are there only while they are true, for kstatus."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    observed_generation: Whole | None = None
    """The generation of the spec that this was found for."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One word for programs; docs/troubleshooting.md lists them."""
    message: Annotated[str, Field(max_length=32768)]
    """For people, with what to do."""


class ModelDeploymentStatus(StatusPart):
    """What the operator found. Written by it alone."""

    observed_generation: Whole | None = None
    """The generation of the spec that this status is about."""
    phase: Literal[PHASES] | None = None  # type: ignore[valid-type]
    """One word for a list; the conditions say the rest."""
    message: str | None = None
    """Why it is not ready, in one line; empty once it is."""
    endpoint: str | None = None
    """Where clients in the cluster find the OpenAI API."""
    ready: str | None = None
    """Replicas of the wanted revision that serve, of those that are wanted: `1/2`."""
    replicas: Replicas | None = None
    """Pods there are, of all revisions."""
    ready_replicas: Replicas | None = None
    """Pods that serve, of all revisions."""
    updated_replicas: Replicas | None = None
    """Pods of the wanted revision that serve."""
    selector: str | None = None
    """Selects the pods, for autoscalers."""
    revision: str | None = None
    """The wanted revision: a hash of what in the spec restarts a pod."""
    source: Source | None = None
    budget: Budget | None = None
    observed: Observed | None = None
    serving: Serving | None = None
    startup: Startup | None = None
    load: Load | None = None
    conditions: list[Condition] | None = None
    """Accepted, SourceReady, Progressing, Ready and Degraded; Reconciling and Stalled while they are true."""


def known(status: Mapping[str, Any], model: type[BaseModel] = ModelDeploymentStatus) -> dict[str, Any]:
    """`status` without what the CRD does not have: the API server would drop it, and the next look would find a
    difference and write it again."""
    found = {}
    for key, inner in _fields(model):
        if key not in status:
            continue
        value = status[key]
        if inner is not None and isinstance(value, Mapping):
            value = known(value, inner)
        elif inner is not None and isinstance(value, list | tuple):
            value = [known(item, inner) for item in value]
        found[key] = value
    return found


def checked(status: Mapping[str, Any], model: type[BaseModel] = ModelDeploymentStatus) -> dict[str, Any]:
    """The parts of `status` that are as the CRD has them; others may have been stored while nothing checked them."""
    known_keys = {key for key, _ in _fields(model)}
    found = {key: value for key, value in status.items() if key in known_keys and value is not None}
    if _valid(found, model):
        return found
    return {key: value for key, value in found.items() if _valid({key: value}, model)}


def _valid(status: Mapping[str, Any], model: type[BaseModel]) -> bool:
    try:
        model.model_validate(status, strict=True)
    except ValidationError:
        return False
    return True


@cache
def _fields(model: type[BaseModel]) -> tuple[tuple[str, type[BaseModel] | None], ...]:
    """The name of each field as the CRD has it, and the model of what is inside, where there is one."""
    fields = model.model_fields.items()
    return tuple((info.alias or name, next(models_in(info.annotation), None)) for name, info in fields)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models within a field's annotation, however deep: in Annotated, in a list, beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
