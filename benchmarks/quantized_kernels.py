"""Products with weights of 4 bits (groups of 64), 8 bits and GGUF's super-blocks beside bfloat16 ones, by rows: the
native table, also with rows quantized to 8 bits, and torch's own. Super-blocks are of matrices whose columns are a
multiple of 256.

Contestants take turns, each over as many matrices as no cache holds, as the layers of a model are. A time is the tenth
percentile of its calls, in microseconds; a ratio is bfloat16's time over the other's, so below 1 is slower.
torch's packed products are given bfloat16 rows and scales, which they are made for; float32 ones they multiply
hundreds of times slower.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized import SUPER, QuantizedMatrix
from plimsoll.runtime.machine.processor import multiplies_bf16

SHAPES = {"qkv": (960, 576), "output": (576, 576), "gate_up": (3072, 576), "down": (576, 1536), "4096": (4096, 4096)}
ROWS = (1, 2, 3, 4, 6, 8, 12, 13, 16, 32, 64, 128, 255, 256, 512)
GROUP = 64
SUPER_BLOCKS: dict[str, tuple[Literal[4, 8], int, bool]] = {
    "Q4_K": (4, 32, True), "Q5_K": (8, 32, True), "Q6_K": (8, 16, False), "Q4_K, Q6_K": (8, 16, True),
}  # fmt: skip
"""Bits of a code, columns of a scale, and whether there are minimums."""
MEMORY = 160_000_000
"""Bytes of bfloat16 weights that a round goes over."""
TORCH_ROWS = 128
"""From so many rows on products are torch's, as `torch_rows: 128` has it."""
PACKED_ROWS = 64
"""More rows than this torch's packed products take too long over to be worth the wait."""

Product = Callable[[torch.Tensor, Any], object]


def main(threads: int, seconds: float = 0.3) -> None:
    torch.manual_seed(0)
    wide = TORCH_ROWS if multiplies_bf16() else None
    ops, int8 = native_kernels("cpu", torch.bfloat16, wide), native_kernels("cpu", torch.bfloat16, int8=True)

    def ours(x: torch.Tensor, weight: Any) -> object:
        return ops.linear(x, weight, None)

    def of_8_bits(x: torch.Tensor, weight: Any) -> object:
        return int8.linear(x, weight, None)

    print(f"\n{int8.name}, {threads} threads, torch {torch.__version__}; through torch go {wide} and more\n")
    names = [one + rows for rows in ("", ", int8") for one in ("4 bits", "8 bits", *SUPER_BLOCKS)]
    names += ["torch 4", "torch 8"]
    print(f"{'':14}{'bf16 us':>10}" + "".join(f"{name:>20}" for name in names))
    for name, (outputs, columns) in SHAPES.items():
        count = max(1, MEMORY // (outputs * columns * 2))
        whole = [ops.pack(torch.randn(outputs, columns).bfloat16()) for _ in range(count)]
        fours = [four_bits(outputs, columns) for _ in range(count)]
        bytes_ = [eight_bits(outputs, columns) for _ in range(count)]
        matrices = {"4 bits": fours, "8 bits": bytes_}
        if columns % SUPER == 0:
            matrices |= {kind: [super_blocks(kind, outputs, columns) for _ in range(count)] for kind in SUPER_BLOCKS}
        contestants: dict[str, tuple[Product, list[Any]]] = {"bf16": (ours, whole)}
        for kind, all_of in matrices.items():
            contestants[kind] = ours, [ops.pack_quantized(matrix) for matrix in all_of]
            contestants[f"{kind}, int8"] = of_8_bits, contestants[kind][1]
        contestants["torch 4"] = _torch_4, [_packed_4(matrix) for matrix in fours]
        contestants["torch 8"] = _torch_8, [(matrix.codes, matrix.scales[:, 0].bfloat16()) for matrix in bytes_]
        del fours, bytes_, matrices
        for rows in ROWS:
            kept = [kind for kind in contestants if rows <= PACKED_ROWS or not kind.startswith("torch")]
            found = in_turns([contestants[kind] for kind in kept], torch.randn(rows, columns), seconds)
            times = dict(zip(kept, found, strict=True))
            others = "".join(
                f"{times[kind]:12.1f} {times['bf16'] / times[kind]:6.2f}x" if kind in times else f"{'–':>20}"
                for kind in names
            )
            print(f"{name + ' x ' + str(rows):14}{times['bf16']:10.1f}{others}", flush=True)


def four_bits(outputs: int, columns: int) -> QuantizedMatrix:
    groups = columns // GROUP
    codes, zeros = (torch.randint(0, 16, (outputs, size), dtype=torch.uint8) for size in (columns, groups))
    return QuantizedMatrix(4, codes, (torch.rand(outputs, groups) / 100).half(), zeros)


def eight_bits(outputs: int, columns: int) -> QuantizedMatrix:
    codes = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8)
    return QuantizedMatrix(8, codes, (torch.rand(outputs, 1) / 100).half())


def super_blocks(kind: str, outputs: int, columns: int) -> QuantizedMatrix:
    """As `runtime/models/loader.py` holds blocks of a GGUF of this type, or parts of two types together."""
    bits, group, minimums = SUPER_BLOCKS[kind]
    codes = torch.randint(0, 16, (outputs, columns)).to(torch.uint8 if bits == 4 else torch.int8)
    scales = torch.randint(1, 64, (outputs, columns // group)).to(torch.int8)
    factors = (torch.rand(outputs, columns // SUPER) / 4000).half()
    if not minimums:
        return QuantizedMatrix(bits, codes, scales, super_scales=factors)
    return QuantizedMatrix(bits, codes, scales, None, scales, factors, -factors * 8)


def in_turns(contestants: list[tuple[Product, list[Any]]], x: torch.Tensor, seconds: float) -> list[float]:
    """Microseconds of each."""
    times: list[list[float]] = [[] for _ in contestants]
    end = time.perf_counter() + seconds * len(contestants)
    while time.perf_counter() < end or not times[-1]:
        for spent, (product, weights) in zip(times, contestants, strict=True):
            for weight in weights:
                start = time.perf_counter()
                product(x, weight)
                spent.append(time.perf_counter() - start)
    return [sorted(spent)[len(spent) // 10] * 1e6 for spent in times]


def _packed_4(matrix: QuantizedMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """As torch wants it: w = (code - 8) * scale + zero, so that zero is (8 - zero point) * scale."""
    assert matrix.zeros is not None
    scales = matrix.scales.float()
    pairs = torch.stack((scales, (8 - matrix.zeros.float()) * scales), dim=2).transpose(0, 1).bfloat16().contiguous()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(matrix.codes.int(), 1), pairs


def _torch_4(x: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor]) -> object:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), weight[0], GROUP, weight[1])


def _torch_8(x: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor]) -> object:
    """Columns must be a multiple of 16, as all of SHAPES are: it crashes otherwise."""
    return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), *weight)
