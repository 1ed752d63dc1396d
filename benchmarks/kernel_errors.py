"""The worst error of each native kernel beside float64, over many random shapes.

    python -m benchmarks.kernel_errors [--cases 200] [--seed 0]

The reference computes in float64 from the same numbers that the kernel is defined on: rows as they are rounded, weights
and cache as their codes stand. So the error is that of the kernel's sums alone, and where attention rounds weights to
bfloat16, of these. Of products it is relative to the sum of the absolute products; of codes, whose offsets are added
apart, to that of |x| times |w| and the largest |w|; of the others to the largest number of the result. 2^-24 is
6.0e-08.
"""

import argparse
import random
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from plimsoll.runtime.kernels.native import ACTIVATIONS, native_kernels, native_library
from plimsoll.runtime.kernels.native_checks import CACHE_KINDS
from plimsoll.runtime.kernels.quantized import QuantizedMatrix, dequantize, quantized_rows
from plimsoll.runtime.kernels.quantized_cache import spread
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.kernels.test_int8 import matrix
from tests.kernels.test_native import paged
from tests.kernels.test_super_blocks import in_super_blocks

#: Shapes from which a case is drawn.
ROWS, OUTPUTS, GROUPS = (1, 2, 5, 12, 40, 130), (1, 31, 64, 200), (1, 2, 7, 18)


def product(found: Tensor, x: Tensor, weight: Tensor) -> float:
    x, weight = x.double(), weight.double()
    size = x.abs() @ weight.abs().T
    return float(((found.double() - x @ weight.T).abs() / (size + 1e-300)).max())


def beside(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / (wanted.abs().max() + 1e-300))


def floats(dtype: torch.dtype) -> Callable[[random.Random], float]:
    def case(draw: random.Random) -> float:
        ops, inputs = native_kernels("cpu", dtype), draw.choice((1, 33, 64, 576, 1536))
        weight = torch.randn(draw.choice(OUTPUTS), inputs).to(dtype)
        x = torch.randn(draw.choice(ROWS), inputs)
        return product(ops.linear(x, ops.pack(weight), None), x.to(dtype), weight)

    return case


def codes(made: Callable[[random.Random], QuantizedMatrix], int8: bool) -> Callable[[random.Random], float]:
    def case(draw: random.Random) -> float:
        held = made(draw)
        ops, x = native_kernels("cpu", torch.bfloat16, int8=int8), torch.randn(draw.choice(ROWS), held.codes.shape[1])
        rows = quantized_rows(x, held.group_size) if int8 else x.bfloat16()
        weight = dequantize(held, torch.float32).double()
        # A minimum is added for a group as a whole: what counts is the size of both parts.
        found, wanted = ops.linear(x, ops.pack_quantized(held), None).double(), rows.double() @ weight.T
        size = rows.double().abs() @ (weight.abs() + weight.abs().amax()).T
        return float(((found - wanted).abs() / (size + 1e-300)).max())

    return case


def four_bits(draw: random.Random) -> QuantizedMatrix:
    return matrix(4, draw.choice(OUTPUTS), draw.choice((32, 64, 128)), draw.choice(GROUPS), torch.float16, False)


def eight_bits(draw: random.Random) -> QuantizedMatrix:
    return matrix(8, draw.choice(OUTPUTS), draw.choice((64, 576, 1536)), 1, torch.float32, False)


def super_blocks(bits: Any, group: int) -> Callable[[random.Random], QuantizedMatrix]:
    return lambda draw: in_super_blocks(bits, draw.choice(OUTPUTS), group, draw.choice((1, 2, 6)), group == 32)


def attention(held: torch.dtype | Literal[4, 8], dtype: torch.dtype) -> Callable[[random.Random], float]:
    def case(draw: random.Random) -> float:
        size, dim = draw.choice((16, 32, 64)), draw.choice((32, 64, 80, 128))
        heads, group = draw.choice((1, 2, 3)), draw.choice((1, 3, 4))
        contexts = [draw.choice((1, 17, 64, 300)) for _ in range(3)]
        rows = [min(context, draw.choice((1, 5, 70))) for context in contexts]
        k, v = ([torch.randn(context, heads, dim) for context in contexts] for _ in range(2))
        ops, plain = native_kernels("cpu", dtype), torch_kernels("cpu", torch.float32)
        in_pairs = native_library().attention_in_pairs(CACHE_KINDS.index(held))
        # The plain table's cache has the same codes, and can be read back.
        here, there = (paged(table, k, v, rows, size, held) for table in (ops, plain))
        q, scale = torch.randn(sum(rows), heads * group, dim), dim**-0.5
        found = ops.attention(q, here.cache, here.batch, scale, None, None)
        if in_pairs:
            q = spread(spread(q).bfloat16().float()) if held == 4 else q.bfloat16()
        keys, values = there.cache.gather(there.batch.block_tables.long(), torch.float32)
        at, wanted = 0, []
        for index, (new, context) in enumerate(zip(rows, contexts, strict=True)):
            own = q[at : at + new].double().transpose(0, 1).unflatten(0, (heads, group))
            scores = torch.einsum("ghtd,gsd->ghts", own, keys[index, :, :context].double()) * scale
            seen = torch.arange(context) <= torch.arange(context - new, context)[:, None]
            mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values[index, :, None, :context].double()
            wanted.append(mixed.flatten(0, 1).transpose(0, 1).flatten(1))
            at += new
        return beside(found, torch.cat(wanted))

    return case


def norm(draw: random.Random) -> float:
    x = torch.randn(draw.choice(ROWS), draw.choice((64, 576, 2047))) * 3
    weight, wide = torch.randn(x.shape[-1]), x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    return beside(native_kernels("cpu", torch.bfloat16).rms_norm(x, weight, 1e-5), wanted)


def activations(draw: random.Random) -> float:
    ops, x = native_kernels("cpu", torch.bfloat16), torch.randn(draw.choice(ROWS), 2 * draw.choice((8, 576))) * 4
    gate, up = x.double().chunk(2, dim=-1)
    made = {
        "silu": torch.nn.functional.silu(gate),
        "gelu": torch.nn.functional.gelu(gate),
        "gelu_tanh": torch.nn.functional.gelu(gate, approximate="tanh"),
        "relu2": torch.relu(gate).square(),
    }
    return max(beside(ops.activate(x, name, True), made[name] * up) for name in ACTIVATIONS if name in made)


KERNELS: dict[tuple[str, str], Callable[[random.Random], float]] = {
    ("product", "float32"): floats(torch.float32),
    ("product", "bfloat16"): floats(torch.bfloat16),
    ("product, rows of 16 bits", "4 bits"): codes(four_bits, int8=False),
    ("product, rows of 16 bits", "8 bits"): codes(eight_bits, int8=False),
    ("product, rows of 16 bits", "Q4_K"): codes(super_blocks(4, 32), int8=False),
    ("product, rows of 16 bits", "Q6_K"): codes(super_blocks(8, 16), int8=False),
    ("product, rows of 8 bits", "4 bits"): codes(four_bits, int8=True),
    ("product, rows of 8 bits", "8 bits"): codes(eight_bits, int8=True),
    ("product, rows of 8 bits", "Q4_K"): codes(super_blocks(4, 32), int8=True),
    ("attention", "float32"): attention(torch.float32, torch.float32),
    ("attention", "bfloat16"): attention(torch.bfloat16, torch.bfloat16),
    ("attention", "int8"): attention(8, torch.bfloat16),
    ("attention", "int4"): attention(4, torch.bfloat16),
    ("RMS norm", "float32"): norm,
    ("activations", "float32"): activations,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = Table("kernel", "weights or cache", "worst error", title=native_kernels("cpu", torch.bfloat16).name)
    for (name, dtype), case in KERNELS.items():
        draw = random.Random(given.seed)
        torch.manual_seed(given.seed)
        table.add_row(name, dtype, f"{max(case(draw) for _ in range(given.cases)):.1e}")
    Console(markup=False, emoji=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
