"""A tiny decoder whose checkpoint is a dictionary: for tests of the loader and the runner alone."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.shard import Run, Shard
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder


def tiny_facts(
    windows: tuple[int | None, ...] = (None,) * 3, spec: dict[str, Any] | None = None, **changes: Any
) -> ModelFacts:
    """A layer of Llama for each of `windows`, with other values of their `LayerSpec` in `spec`."""
    norm = NormSpec(1e-5)
    layer = LayerSpec(**({"norm": norm, "scale": 8**-0.5, "rope": RopeFacts()} | (spec or {})))
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position": 128,
        "rope": RopeFacts(),
        "tie_embeddings": True,
        "layers": tuple(replace(layer, window=window) for window in windows),
        "final_norm": layer.norm,
    }
    return ModelFacts(**(values | changes))


@dataclass
class Raw:
    dtype: str
    data: Any


@dataclass
class MemorySource:
    """Random tensors by name; `reads` keeps the elements of each read."""

    tensors: dict[str, np.ndarray]
    dtype: str = "F32"
    reads: list[int] = field(default_factory=list)

    def part(self, shard: Shard | None) -> "MemorySource":
        return self

    def read(self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None) -> Raw:
        data = self.tensors[name][slice(*(rows or (None, None)))]
        data = data if columns is None else data[:, slice(*columns)]
        self.reads.append(data.size)
        return Raw(self.dtype, np.ascontiguousarray(data))

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> Any:
        raise KeyError(module)


def make_source(facts: ModelFacts) -> MemorySource:
    random = np.random.default_rng(1)
    shapes = expected_tensors(facts)
    return MemorySource({n: random.normal(0.1, 0.3, size=s).astype(np.float32) for n, s in shapes.items()})


def make_decoder(kernels: Kernels, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
    facts = tiny_facts(**changes)
    return load_decoder(make_source(facts), facts, kernels, dtype)
