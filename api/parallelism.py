"""How one replica is spread over devices, and over nodes."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from plimsoll.api import rules
from plimsoll.api.fields import LabelKey, Part, fault_at
from plimsoll.api.rules import RULES


class Parallelism(Part):
    """How one replica is spread over devices, and over nodes."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.PARALLELISM})

    tensor: Annotated[
        int | Literal["auto"],
        WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": "^auto$", "minimum": 1, "maximum": 64}),
    ] = "auto"
    """Ranks that one replica is spread over, 1 to 64. Each is a process with a device of its own; on a CPU, with a line
    of its own (accelerator.memory). `auto` takes the fewest that hold the model, 1 to 8 on a CPU with
    accelerator.memory, else 1. More than one runs on a CPU; on GPUs it is sized and not run yet."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that one replica is spread over, 1 to 64: a group, which counts as one replica. Each pod has tensor / nodes
    ranks with as many devices. A pod is scheduled as any other: pods of one group may share a node."""
    topology_key: LabelKey | None = None
    """A label of nodes, such as topology.kubernetes.io/zone or a rack's: all pods of a group run on nodes with one
    value of it."""
    exclusive_topology: bool = False
    """Keeps groups apart: no two groups of this deployment run on one value of topologyKey."""

    @field_validator("tensor", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64):
            raise ValueError("must be auto or a whole number from 1 to 64")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> "Parallelism":
        if self.tensor != "auto" and self.tensor % self.nodes:
            below = self.tensor - self.tensor % self.nodes
            sizes = [size for size in (below, below + self.nodes) if 1 <= size <= 64]
            words = f"{rules.DIVIDE_WORDS.partition('.')[0]}, which is {self.nodes}. Write auto"
            raise fault_at(("tensor",), f"{words} or {' or '.join(map(str, sizes))}", self.tensor)
        if self.nodes == 1 and self.topology_key is not None:
            raise fault_at(("topologyKey",), rules.SEVERAL_WORDS, self.topology_key)
        if self.nodes == 1 and self.exclusive_topology:
            raise fault_at(("exclusiveTopology",), rules.SEVERAL_WORDS, True)
        if self.exclusive_topology and self.topology_key is None:
            raise fault_at(("exclusiveTopology",), rules.APART_KEY_WORDS, True)
        return self
