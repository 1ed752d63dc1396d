"""The status of a QuantizationJob: what the operator found, never what it hopes. The CRD is generated from here."""

from typing import Annotated, Literal

from pydantic import Field

from plimsoll.api.status import Condition, Seconds, Source, StatusPart, Whole

JOB_PHASES = (
    "Pending", "Refused", "Inspecting", "Downloading", "Preparing", "Sampling", "Quantizing", "Evaluating", "Complete",
    "Failed",
)  # fmt: skip


class JobMemory(StatusPart):
    """Bytes that the job takes at once, term by term; its steps follow one another, so total is the largest of them."""

    walk: Whole | None = None
    """Of one decoder layer what something runs through, in float32; its codes; a micro-batch."""
    sampling: Whole | None = None
    """The model in our engine, for `self`; nothing for other texts."""
    evaluation: Whole | None = None
    """A layer before and after beside each other, and the predictions of a micro-batch."""
    total: Whole | None = None
    """The line; the pod asks for 256Mi beside it."""


class JobDisk(StatusPart):
    """Bytes on the output's claim."""

    output: Whole | None = None
    """The quantized checkpoint."""
    scratch: Whole | None = None
    """Hidden states and the shards in the making; gone at the end."""
    claim: Whole | None = None
    """Size of the claim, where it is known."""


class JobDevices(StatusPart):
    """GPUs that search."""

    count: Whole | None = None
    """Devices of the pod."""
    memory: Whole | None = None
    """Bytes that the search needs on each."""


class JobBudget(StatusPart):
    """What the job needs, worked out before any pod existed."""

    memory: JobMemory | None = None
    disk: JobDisk | None = None
    devices: JobDevices | None = None


class Progress(StatusPart):
    """How far it is, attempts that were interrupted included."""

    layer: Whole | None = None
    """Decoder layers that are written."""
    of: Whole | None = None
    """Decoder layers there are."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of the whole job, sampling and evaluation included."""
    eta: str | None = None
    """Time that is left at the present pace, such as 12m30s."""


class JobFigures(StatusPart):
    """How far a checkpoint is from the one it was made of, on held-out text."""

    perplexity: Seconds | None = None
    """Of the held-out text: lower is better."""
    kl_mean: Seconds | None = None
    """Mean Kullback-Leibler divergence of its predictions from the original's, nats a token."""
    kl_p99: Seconds | None = Field(default=None, alias="klP99")
    """The same, of the token that is worse than 99 of 100."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, alias="top1Agreement")
    """Share of tokens for which both find the same token most likely."""


class JobCache(StatusPart):
    """What a KV cache of codes costs the output, measured beside a cache of floats on the same text."""

    precision: Literal["int8", "int4"] | None = None
    """As in kvCache.precision of a deployment."""
    perplexity: Seconds | None = None
    """Of the output with this cache."""
    kl_mean: Seconds | None = None
    """Mean Kullback-Leibler divergence of its predictions from those with a cache of floats, nats a token."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, alias="top1Agreement")
    """Share of tokens for which both find the same token most likely."""
    increase: str | None = None
    """Of perplexity beside a cache of floats, such as 1.2%."""


class JobEvaluation(StatusPart):
    """What quantizing cost, measured."""

    tokens: Whole | None = None
    """Held-out tokens that the figures are over."""
    before: JobFigures | None = None
    """The checkpoint as it was."""
    after: JobFigures | None = None
    """The output."""
    round_to_nearest: JobFigures | None = None
    """What rounding alone would have cost, with the same bits and groups."""
    increase: str | None = None
    """Of perplexity, from before to after, such as 1.8%."""
    caches: Annotated[list[JobCache], Field(max_length=2)] | None = None
    """The output with its KV cache in codes."""
    recommended_cache: Literal["float", "int8", "int4"] | None = None
    """The cache of the fewest bytes that costs at most 2 % of perplexity; float where none does. For kvCache.precision
    of a deployment that serves the output."""


class JobOutput(StatusPart):
    """The checkpoint that was written, and passed its gate."""

    uri: str | None = None
    """Where it is."""
    digest: str | None = None
    """Of its manifest: over the files' names and the SHA-256 of each. Deployments serve exactly this."""
    bytes: Whole | None = None
    """Of all its files."""


class JobCondition(Condition):
    """metav1.Condition: what is true, why, and since when."""

    type: Annotated[str, Field(max_length=316)]
    """Accepted: the spec is coherent and the job fits. SourceReady: the checkpoint was read and its facts are known.
    Complete: the output is written and passed its gate. Failed: the job has ended without it and is not tried again.
    Reconciling and Stalled exist only while they are true, for kstatus."""


class QuantizationJobStatus(StatusPart):
    """What the operator found. Written by it alone."""

    observed_generation: Whole | None = None
    """The generation of the spec that this status is about."""
    phase: Literal[JOB_PHASES] | None = None  # type: ignore[valid-type]
    """One word for a list; the conditions say the rest."""
    message: str | None = None
    """Why it does not go on, in one line; empty while it does."""
    start_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the Job was created; after that the spec is immutable."""
    completion_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When it ended, well or not."""
    job: str | None = None
    """The batch/v1 Job that runs it."""
    source: Source | None = None
    budget: JobBudget | None = None
    progress: Progress | None = None
    evaluation: JobEvaluation | None = None
    output: JobOutput | None = None
    peak_memory: Whole | None = None
    """Bytes: the most that the job was resident with."""
    seconds: Whole | None = None
    """Worked, interrupted attempts included."""
    conditions: list[JobCondition] | None = None
    """Accepted, SourceReady, Complete and Failed; Reconciling and Stalled while they are true."""
