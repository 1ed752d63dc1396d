"""The part of a `ModelDeployment` on the KV cache: its share of memory, its precision, its blocks, its second tier."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from plimsoll.api import rules
from plimsoll.api.fields import Memory, Part, fault_at
from plimsoll.api.rules import RULES


class KVCache(Part):
    """The KV cache: what is left of the line after context, weights and workspace, and how it is cut into blocks. Its
    size decides how many requests run at once and how long they may be; `plimsoll plan` shows the sum."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.KV_CACHE})

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the memory left after context, weights and workspace that becomes cache, above 0 and up to 1."""
    precision: Literal["auto", "float", "int8", "int4"] = "auto"
    """How keys and values are held. float: as the model's activations. `auto` is float, or int8 where the cache would
    otherwise hold fewer tokens than context.maxLength. int8 and int4 hold more tokens in as many bytes: codes of 8
    bits, or of 4 (keys: 6), with a scale and a minimum for each head and token. `auto` takes int4 only where it was
    measured on this checkpoint."""
    block_size: Literal[16, 32, 64, 128, 256] = 64
    """Tokens in a block, the cache's unit of allocation and of prefix sharing."""
    prefix_caching: bool = True
    """Requests that begin with the same tokens share their blocks."""
    host_memory: Memory | None = None
    """Host memory of each rank, such as 8Gi, for a second tier. Blocks that leave the cache, preempted requests' too,
    are copied there, and back instead of being computed again. On a CPU it counts against accelerator.memory; on a GPU
    it is added to the pod's memory."""

    @model_validator(mode="after")
    def _known_by_prefix(self) -> "KVCache":
        if self.host_memory is not None and not self.prefix_caching:
            raise fault_at(("hostMemory",), rules.HOST_MEMORY_WORDS, self.host_memory)
        return self
