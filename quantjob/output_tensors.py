"""What a quantized layer is called and how it lies in the checkpoint that is written."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.families.family import Linear
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import expected_tensors, norm_sizes
from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor
from plimsoll.checkpoint.quantized.formats import packed_tensors
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.checkpoint.safetensors_writer import encode
from plimsoll.quantjob.coding import Coded
from plimsoll.quantjob.layer_quantizer import QuantizedLayer
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Grid
from plimsoll.quantjob.shards import Entry, whole
from plimsoll.quantjob.streamed import not_finite, runs


class OutputTensors:
    """Names and dtypes of what is written for `checkpoint` by `recipe`."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.recipe = recipe
        self.names = find_family(self.facts.architecture).names

    def dtype(self, name: str) -> str:
        """What a tensor that stays whole is written in: as it is stored, or as the model is said to be for a GGUF,
        whose blocks other readers do not know."""
        stored = self.checkpoint.tensors[name].dtype
        return stored if stored in ("F32", "F16", "BF16") and self.checkpoint.format != "gguf" else self.facts.dtype

    def norm_dtype(self, index: int) -> torch.dtype:
        """Of the norms of one layer."""
        role = next(iter(norm_sizes(self.facts, self.facts.layers[index])))
        name = f"{self.names.layer.format(index)}{self.names.norms[role]}.weight"
        return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[self.dtype(name)]

    def outer(self) -> dict[str, Entry]:
        """Embedding, final norm and head, a piece at a time."""
        prefix = self.names.layer.partition("{}")[0]
        names = [name for name in expected_tensors(self.facts) if not name.startswith(prefix)]
        return {name: self._copied(name) for name in names}

    def layer(self, index: int, layer: QuantizedLayer) -> dict[str, Entry]:
        """Everything of one decoder layer.

        Raises:
            CheckpointError: a value does not fit the format; the tensor is named.
        """
        prefix = self.names.layer.format(index)
        entries = {}
        for role in norm_sizes(self.facts, layer.weights.spec):
            for kind, suffix in (("weight", ""), ("bias", "_bias")):
                if role + suffix in layer.weights:
                    name = f"{prefix}{self.names.norms[role]}.{kind}"
                    entries[name] = self._vector(name, layer.weights[role + suffix])
        for module, (coded, bias) in self._modules(layer).items():
            linear = _numpy(coded)
            entries |= {
                name: whole(raw) for name, raw in packed_tensors(self.recipe.format, prefix + module, linear).items()
            }
            if bias is not None:
                entries[f"{prefix}{module}.bias"] = self._vector(f"{prefix}{module}.bias", bias)
        return dict(sorted(entries.items()))

    def _modules(self, layer: QuantizedLayer) -> Mapping[str, tuple[Coded, Tensor | None]]:
        """By the module's name in its layer: its codes and bias, fused as the family stores them."""
        found: dict[str, tuple[Coded, Tensor | None]] = {}
        for linear in self.names.linears:
            roles = [role for role in linear.roles if role in layer.linears]
            parts = [layer.linears[role] for role in roles]
            zeros = [part.grid.zeros for part in parts if part.grid.zeros is not None]
            biases = [layer.weights[f"{role}_bias"] for role in roles if f"{role}_bias" in layer.weights]
            scales = self._together(linear, [part.grid.scales for part in parts])
            grid = Grid(parts[0].grid.bits, scales, self._together(linear, zeros) if zeros else None)
            coded = Coded(grid, self._together(linear, [part.codes for part in parts]))
            found[linear.module] = coded, self._together(linear, biases) if biases else None
        return found

    def _together(self, linear: Linear, parts: list[Tensor]) -> Tensor:
        """Rows of the roles of `linear` as one tensor, in its layout."""
        if linear.layout == "stacked":
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        heads = [part.unflatten(0, (self.facts.num_kv_heads, -1, self.facts.head_dim)) for part in parts]
        return torch.cat(heads, 1).flatten(0, 2)

    def _vector(self, name: str, values: Tensor) -> Entry:
        dtype = self.dtype(name)
        data = encode(values.numpy(), dtype, name)
        return whole(RawTensor(dtype, tuple(values.shape), data))

    def _copied(self, name: str) -> Entry:
        """A tensor as it is stored; of a GGUF, dequantized and rounded to what is written.

        Its pieces raise CheckpointError where a value is not finite: a row that no text of ours touches would wait in
        the output until a request reaches it.
        """
        fact, dtype = self.checkpoint.tensors[name], self.dtype(name)

        def pieces() -> Iterator[npt.NDArray[Any]]:
            for _, raw, rows in runs(self.checkpoint, name):
                if not torch.isfinite(rows).all():
                    raise not_finite(f"{self.checkpoint.path}: {name}")
                yield raw.data if raw.dtype == dtype else encode(raw.data, dtype, name)

        return Entry(dtype, fact.shape, pieces)


def _numpy(coded: Coded) -> QuantizedLinear:
    zeros = coded.grid.zeros
    return QuantizedLinear(
        coded.codes.numpy(), coded.grid.scales.numpy(), None if zeros is None else zeros.to(torch.uint8).numpy(), "F16"
    )
