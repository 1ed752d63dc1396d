"""What a quantised layer is called and how it lies in the checkpoint that is written."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.architecture import find_architecture
from plimsoll.api.facts import expected_tensors
from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor
from plimsoll.checkpoint.quantized.formats import packed_tensors
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.checkpoint.safetensors_writer import encode
from plimsoll.quantjob.coding import Coded
from plimsoll.quantjob.layer_quantizer import QuantizedLayer
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Grid
from plimsoll.quantjob.shards import Entry, whole
from plimsoll.quantjob.streamed import not_finite
from plimsoll.runtime.models.loader import TORCH_DTYPES

#: Elements of a tensor that is only copied, at a time.
_PIECE = 4 * 1024 * 1024


class OutputTensors:
    """Names and dtypes of what is written for `checkpoint` by `recipe`."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.recipe = recipe
        self.arch = find_architecture(self.facts.architecture)

    def dtype(self, name: str) -> str:
        """What a tensor that stays whole is written in: as it is stored, or as the model is said to be for a GGUF,
        whose blocks other readers do not know."""
        stored = self.checkpoint.tensors[name].dtype
        return stored if stored in ("F32", "F16", "BF16") and self.checkpoint.format != "gguf" else self.facts.dtype

    def norm_dtype(self, index: int) -> torch.dtype:
        """Of the norms of one layer."""
        name = f"{self.arch.layer.format(index)}{self.arch.attention_norm}.weight"
        return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[self.dtype(name)]

    def outer(self) -> dict[str, Entry]:
        """Embedding, final norm and head, a piece at a time."""
        prefix = self.arch.layer.partition("{}")[0]
        names = [name for name in expected_tensors(self.facts) if not name.startswith(prefix)]
        return {name: self._copied(name) for name in names}

    def layer(self, index: int, layer: QuantizedLayer) -> dict[str, Entry]:
        """Everything of one decoder layer.

        Raises:
            CheckpointError: a value does not fit the format; the tensor is named.
        """
        prefix = self.arch.layer.format(index)
        names = {"attention_norm": self.arch.attention_norm, "mlp_norm": self.arch.mlp_norm}
        if self.facts.qk_norm:
            names |= {"q_norm": self.arch.q_norm, "k_norm": self.arch.k_norm}
        entries = {
            f"{prefix}{name}.weight": self._vector(f"{prefix}{name}.weight", layer.weights[role])
            for role, name in names.items()
        }
        for module, (coded, bias) in self._modules(layer).items():
            linear = _numpy(coded)
            entries |= {
                name: whole(raw) for name, raw in packed_tensors(self.recipe.format, prefix + module, linear).items()
            }
            if bias is not None:
                entries[f"{prefix}{module}.bias"] = self._vector(f"{prefix}{module}.bias", bias)
        return dict(sorted(entries.items()))

    def _modules(self, layer: QuantizedLayer) -> Mapping[str, tuple[Coded, Tensor | None]]:
        """By the module's name in its layer: its codes and bias, fused as the architecture has them."""
        arch, weights = self.arch, layer.weights
        roles = {"o": arch.output, "gate": arch.gate_up[0], "up": arch.gate_up[1], "down": arch.down}
        found: dict[str, tuple[Coded, Tensor | None]] = {}
        if arch.qkv_layout == "stacked":
            roles = dict(zip("qkv", arch.qkv, strict=True)) | roles
        else:
            parts = [layer.linears[role] for role in "qkv"]
            zeros = [part.grid.zeros for part in parts if part.grid.zeros is not None]
            grid = Grid(
                parts[0].grid.bits,
                self._together([part.grid.scales for part in parts]),
                self._together(zeros) if zeros else None,
            )
            biases = [weights[f"{role}_bias"] for role in "qkv" if f"{role}_bias" in weights]
            fused = Coded(grid, self._together([part.codes for part in parts]))
            found[arch.qkv[0]] = fused, self._together(biases) if biases else None
        return found | {name: (layer.linears[role], weights.get(f"{role}_bias")) for role, name in roles.items()}

    def _together(self, parts: list[Tensor]) -> Tensor:
        """Rows of q, k and v as one tensor of [kv_heads, queries a kv head + 2, head_dim] rows."""
        heads = [part.unflatten(0, (self.facts.num_kv_heads, -1, self.facts.head_dim)) for part in parts]
        return torch.cat(heads, 1).flatten(0, 2)

    def _vector(self, name: str, values: Tensor) -> Entry:
        dtype = self.dtype(name)
        data = encode(values.numpy(), dtype, name)
        return whole(RawTensor(dtype, tuple(values.shape), data))

    def _copied(self, name: str) -> Entry:
        """A tensor as it is stored; of a GGUF, dequantised and rounded to what is written.

        Its pieces raise CheckpointError where a value is not finite: a row that no text of ours touches would wait in
        the output for whoever is served by it.
        """
        fact, dtype = self.checkpoint.tensors[name], self.dtype(name)
        step = max(1, _PIECE // int(np.prod(fact.shape[1:], dtype=np.int64)))

        def pieces() -> Iterator[npt.NDArray[Any]]:
            for start in range(0, fact.shape[0], step):
                raw = self.checkpoint.read(name, (start, min(start + step, fact.shape[0])))
                if not torch.isfinite(torch.from_numpy(raw.data).view(TORCH_DTYPES[raw.dtype])).all():
                    raise not_finite(f"{self.checkpoint.path}: {name}")
                yield raw.data if raw.dtype == dtype else encode(raw.data, dtype, name)

        return Entry(dtype, fact.shape, pieces)


def _numpy(coded: Coded) -> QuantizedLinear:
    zeros = coded.grid.zeros
    return QuantizedLinear(
        coded.codes.numpy(), coded.grid.scales.numpy(), None if zeros is None else zeros.to(torch.uint8).numpy(), "F16"
    )
