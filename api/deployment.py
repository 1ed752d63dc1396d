"""`ModelDeployment` v1alpha1: what a user asks for. Only fields that work; an unknown one is an error.

Sizes, durations and processors are read as Kubernetes writes them and held as bytes, seconds and threads.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from plimsoll.api.quantity import Bytes, Cpus, Seconds

API_VERSION = "plimsoll.dev/v1alpha1"
KIND = "ModelDeployment"

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

#: Counts fit the 32-bit integers of the OpenAPI schema they will be served under.
Count = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]


class _Part(BaseModel):
    """Strict as the API server is: a number in quotes is text, and `yes` is not a number."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_the_default(cls, data: Any) -> Any:
        # `context:` with nothing under it; the API server prunes such fields.
        if not isinstance(data, dict):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        return {key: value for key, value in data.items() if value is not None or key not in known}


class Metadata(_Part):
    name: str
    namespace: str = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @field_validator("name", "namespace")
    @classmethod
    def _dns_label(cls, value: str) -> str:
        # Services and pods take their names from it, so the narrowest of their rules holds.
        if not _DNS_LABEL.fullmatch(value):
            raise ValueError("must be up to 63 lower-case letters, digits and '-', not at an end")
        return value


class Model(_Part):
    source: str
    """`file://PATH` or `hf://ORG/NAME[@REVISION]`: a Hugging Face folder or one GGUF file."""
    served_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What clients call the model; None takes `metadata.name`."""

    @field_validator("source")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if scheme not in ("file", "hf") or not separator or not rest.strip() or "\0" in rest:
            raise ValueError("must be file://PATH or hf://ORG/NAME@REVISION")
        return value


class Accelerator(_Part):
    resource: Literal["cpu", "nvidia.com/gpu"]
    memory: Bytes | None = None
    """The line: bytes of one device, or of the process on a CPU. None takes what the machine has."""


class Parallelism(_Part):
    tensor: int | Literal["auto"] = "auto"
    """Devices that one model is spread over; `auto` takes the fewest that hold it."""

    @field_validator("tensor", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64):
            raise ValueError("must be auto or a whole number from 1 to 64")
        return value


class KVCache(_Part):
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the memory free after context, weights and workspace that becomes cache."""
    precision: Literal["auto", "int8", "int4"] = "auto"
    """`auto` is the model's own."""
    block_size: Literal[16, 32, 64, 128, 256] = 64
    """Tokens of a block."""
    prefix_caching: bool = True


class Rope(_Part):
    type: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: Annotated[float, Field(ge=1, le=1024)]


class Context(_Part):
    max_length: Count | None = None
    """Longest prompt and answer together, in tokens. None: as trained, or what the cache holds if that is less."""
    rope: Rope | None = None
    """In place of the checkpoint's own scaling of positions."""


class Serving(_Part):
    max_running_requests: Count = 64
    max_batched_tokens: Annotated[int, Field(ge=16, le=1 << 20)] | None = None
    """Tokens that one step may compute: the largest prefill chunk. None: 8192 on a GPU, 2048 on a CPU."""
    max_queued_requests: Count = 256
    max_queued_tokens: Count = 1_000_000
    request_timeout: Annotated[Seconds, Field(gt=0)] = 600.0
    api_keys_file: Annotated[str, Field(min_length=1)] | None = None
    """A file on this machine with one key a line."""


class Rollout(_Part):
    drain_timeout: Seconds = 120.0
    """What running requests get to finish in."""


class Pod(_Part):
    cpu: Annotated[Cpus, Field(le=1024)] | None = None
    """Threads of the engine; None takes what the machine or the container allows."""


class ModelDeploymentSpec(_Part):
    model: Model
    accelerator: Accelerator
    parallelism: Parallelism = Parallelism()
    precision: Literal["auto", "bfloat16", "float16", "float32", "w8a16", "w4a16"] = "auto"
    kv_cache: KVCache = Field(default=KVCache(), alias="kvCache")
    context: Context = Context()
    serving: Serving = Serving()
    rollout: Rollout = Rollout()
    pod: Pod = Pod()


class ModelDeployment(_Part):
    """Serve this checkpoint on these devices with this much cache."""

    api_version: Literal["plimsoll.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: ModelDeploymentSpec

    @property
    def served_name(self) -> str:
        return self.spec.model.served_name or self.metadata.name
