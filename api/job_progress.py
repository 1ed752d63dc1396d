"""Where a quantization job is: what its status page says, what its container's last words say, what the operator reads.

One JSON object, small enough for a container's termination message. The pod that wrote it is not trusted: what is read
has the types and bounds that are written here, or is refused.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from plimsoll.api.errors import CheckpointError

#: Kubernetes keeps this much of a container's last words.
MAX_BYTES = 4096
#: Nothing that a checkpoint or a machine has is more.
_MOST = 1 << 62

JobPhase = Literal["Preparing", "Sampling", "Quantizing", "Evaluating", "Complete", "Failed"]
Amount = Annotated[int, Field(ge=0, le=_MOST)]
Number = Annotated[float, Field(ge=0, le=1e18)]


class _Part(BaseModel):
    # A newer image may say more than this version reads.
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, extra="ignore", frozen=True, strict=True, allow_inf_nan=False,
        use_attribute_docstrings=True,
    )  # fmt: skip


class Figures(_Part):
    """How far a model is from the one it was made of, on held-out text."""

    perplexity: Number
    kl_mean: Number
    """Kullback-Leibler divergence of its predictions from the original's, nats a token."""
    kl_p99: Number
    """The same, of the token that is worse than 99 of 100."""
    top1_agreement: Annotated[float, Field(ge=0, le=1, alias="top1Agreement")]
    """Share of tokens for which both find the same token most likely."""


class CacheFigures(_Part):
    """What a cache of codes costs beside the output with a cache of floats, on the same text."""

    precision: Literal["int8", "int4"]
    perplexity: Number
    kl_mean: Number
    """Kullback-Leibler divergence of its predictions from those with a cache of floats, nats a token."""
    top1_agreement: Annotated[float, Field(ge=0, le=1, alias="top1Agreement")]
    """Share of tokens for which both find the same token most likely."""
    increase: Annotated[float, Field(ge=-1, le=1e18)]
    """Of perplexity: 0.02 is 2 % more than with a cache of floats."""


class Evaluation(_Part):
    """What quantizing cost."""

    tokens: Amount
    """Held-out tokens that the figures are over."""
    before: Number
    """Perplexity of the model as it was."""
    after: Figures
    round_to_nearest: Figures | None = None
    """What rounding alone would have cost, with the same bits and groups."""
    increase: Annotated[float, Field(ge=-1, le=1e18)]
    """Of perplexity: 0.02 is 2 % more than before."""
    caches: list[CacheFigures] | None = None
    """The output with its cache in codes; None where that was not measured."""
    recommended_cache: Literal["float", "int8", "int4"] | None = None
    """The least bytes that cost at most `MOST_INCREASE`; `float` where none does."""


class Output(_Part):
    """The checkpoint that was written."""

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of its manifest: over the files' names and the SHA-256 of each."""
    bytes: Amount


class JobProgress(_Part):
    """One look at a job. Keys in JSON are camelCase."""

    phase: JobPhase
    layer: Amount = 0
    """Decoder layers that are written."""
    of: Amount = 0
    """Decoder layers there are; 0 until the checkpoint was read."""
    percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Of the whole job, sampling and evaluation included."""
    eta_seconds: Number | None = None
    """Seconds that are left at the present pace; None until there is one."""
    seconds: Number = 0.0
    """Worked so far, interrupted attempts included."""
    peak_memory: Amount = 0
    """Bytes: the most that the process was resident with."""
    evaluation: Evaluation | None = None
    output: Output | None = None
    """Once it lies whole under its final names, also when its gate failed."""
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)] | None = None
    """Of a failure, one word for programs: GateFailed, DoesNotFit, DiskFull, OutputTaken, SourceUnreadable."""
    message: str | None = None
    """Of a failure or of what is being done, for people."""

    def encode(self) -> bytes:
        """JSON of at most `MAX_BYTES`, printable ASCII; a message that is too long loses its end."""
        found = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        text = json.dumps(found, separators=(",", ":"))
        if len(text) > MAX_BYTES and self.message:
            # Each character takes at most 12 bytes in JSON (a pair of \uXXXX), so this ends soon.
            kept = self.message
            while len(text) > MAX_BYTES and kept:
                kept = kept[: max(0, len(kept) - max(1, (len(text) - MAX_BYTES) // 12))]
                text = json.dumps({**found, "message": f"{kept}…"}, separators=(",", ":"))
        return text.encode("ascii")

    @staticmethod
    def decode(data: bytes | str | Any) -> "JobProgress":
        """What `encode` made, or the object that it decodes to.

        Raises:
            CheckpointError: it is something else: not such JSON, a wrong type, a number out of its bounds.
        """
        if isinstance(data, bytes | str):
            if len(data) > MAX_BYTES:
                raise CheckpointError(f"a job's progress has at most {MAX_BYTES} bytes, this {len(data)}")
            try:
                data = json.loads(data)
            except (ValueError, RecursionError):
                raise CheckpointError("is not the progress of a job", value=str(data[:120])) from None
        if not isinstance(data, dict):
            raise CheckpointError("is not the progress of a job: an object of fields is")
        try:
            return JobProgress.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"is not the progress of a job: {first['msg'].lower()}", field=field) from None
