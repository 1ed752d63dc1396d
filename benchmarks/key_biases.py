"""What key biases cost a cache of codes: biases of growing size are added to the keys of a model that has none.

    python -m benchmarks.key_biases MODEL [--text examples/prose.txt docs/troubleshooting.md] [--windows 8]

The biases lie on the channels that rotary embeddings turn slowest. There a bias adds nearly the same to all scores of a
query, so that the model with a cache of floats stays as good as it was, and large key biases are found there in trained
models (arXiv 2502.01563). They differ within a head by so many times the spread of its keys as the first column says:
one channel has all of it, or of eight channels some have plus and some minus a half.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cache_precisions import CACHES, count, quality, windows
from plimsoll.api.precision import HeldCache
from plimsoll.api.shard import Run, Shard
from plimsoll.checkpoint import Checkpoint, RawTensor, open_checkpoint
from plimsoll.checkpoint.quantized.linear import QuantizedLinear
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized_cache import spread
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder

SIZES = (0, 5, 10, 20, 40, 80, 160)
Biases = list[Tensor]
"""Of each layer [heads, D]."""


def spreads(checkpoint: Checkpoint) -> Biases:
    """Of each layer the root mean square of the keys' channels by head, [heads, 1], for independent normed inputs."""
    facts, found = checkpoint.facts, []
    for index in range(facts.num_layers):
        at = f"model.layers.{index}."
        weight, norm = (
            torch.from_numpy(checkpoint.read(f"{at}{name}.weight").data).float()
            for name in ("self_attn.k_proj", "input_layernorm")
        )
        heads = (weight * norm).square().sum(1).view(facts.num_kv_heads, -1)
        found.append(heads.mean(1, keepdim=True).sqrt())
    return found


def biases(kept: Biases, dim: int, size: float, channels: int, layers: Sequence[int]) -> Biases:
    """Biases whose range is `size` times the spread of a head's keys, on one channel or on the slowest eight."""
    found = []
    for index, each in enumerate(kept):
        bias = torch.zeros(len(each), dim)
        if index in layers and channels == 1:
            bias[:, dim // 2 - 1] = size
        elif index in layers:
            generator = torch.Generator().manual_seed(index)
            signs = torch.where(torch.rand(len(each), channels, generator=generator) < 0.5, -1.0, 1.0)
            signs[:, 0], signs[:, 1] = 1, -1
            half = channels // 2
            slowest = [*range(dim // 2 - half, dim // 2), *range(dim - half, dim)]
            bias[:, slowest] = signs * size / 2
        found.append(bias * each)
    return found


class ZeroBiases:
    """The tensors of a checkpoint, and zeros for biases that it does not have."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def part(self, shard: Shard | None) -> "ZeroBiases":
        return self

    def read(
        self, name: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> RawTensor:
        if rows is None or name in self._checkpoint.tensors:
            return self._checkpoint.read(name, rows, columns, within)
        zeros = torch.zeros(rows[1] - rows[0]).numpy()
        return RawTensor("F32", zeros.shape, zeros)

    def read_quantized(
        self, module: str, rows: Run | None = None, columns: Run | None = None, within: Run | None = None
    ) -> QuantizedLinear:
        return self._checkpoint.read_quantized(module, rows, columns, within)


def biased_decoder(checkpoint: Checkpoint, kernels: Kernels) -> Decoder:
    """The model in bfloat16 with biases of zero on queries, keys and values."""
    layers = tuple(replace(spec, qkv_bias=True) for spec in checkpoint.facts.layers)
    return load_decoder(ZeroBiases(checkpoint), replace(checkpoint.facts, layers=layers), kernels, torch.bfloat16)


def put(decoder: Decoder, wanted: Biases) -> None:
    """Make `wanted` the biases of the keys, where they lie."""
    facts = decoder.facts
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    for layer, bias in zip(decoder.layers, wanted, strict=True):
        assert layer.qkv_bias is not None
        layer.qkv_bias[queries : queries + keys] = bias.flatten().to(layer.qkv_bias.dtype)


def ranges(wanted: Biases, kept: Biases, turn: Callable[[Tensor], Tensor]) -> float:
    """`checkpoint.key_biases.key_bias_ranges` of these biases."""
    each = [turn(bias).amax(1) - turn(bias).amin(1) for bias in wanted]
    return float(torch.cat([one / of[:, 0] for one, of in zip(each, kept, strict=True)]).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path("examples/prose.txt")])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=count, default=8, help="Of each text.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--layers", type=int, nargs="+", help="Layers that have biases. Default: all.")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    checkpoint, kernels = open_checkpoint(asked.model), native_kernels("cpu", torch.bfloat16)
    facts, kept = checkpoint.facts, spreads(checkpoint)
    decoder, tokenizer = biased_decoder(checkpoint, kernels), load_tokenizer(checkpoint)
    texts = []
    for path in asked.text:
        texts += windows(tokenizer.encode(path.read_text()), asked.window)[: asked.windows]
    turns: dict[HeldCache, Callable[[Tensor], Tensor]] = {"float": torch.clone, "int8": torch.clone, "int4": spread}
    table = Table("channels", "cache", "range / spread", "perplexity", "more", "divergence", "same best")
    layers = range(facts.num_layers) if asked.layers is None else asked.layers
    cases = [(channels, size) for channels in (1, 8) for size in asked.sizes if size or channels == 1]
    with torch.inference_mode():
        for channels, size in cases:
            wanted = biases(kept, facts.head_dim, size, channels, layers)
            put(decoder, wanted)
            found = quality(decoder, texts, CACHES)
            for cache, one in found.items():
                wide = f"{ranges(wanted, kept, turns[cache]):.1f}"
                table.add_row(str(channels), cache, wide, *one.cells(beside=found["float"]))
    Console(markup=False, emoji=False).print(table)


if __name__ == "__main__":
    main()
