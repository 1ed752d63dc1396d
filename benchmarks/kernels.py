"""Native kernels beside plain torch, op by op, in one process.

    python -m benchmarks.kernels [THREADS] [whole] [quantized]

Times of `whole` are the best of several runs, in milliseconds;
ratios are torch's time over ours; bfloat16 weights and cache. `quantized` is benchmarks/quantized_kernels.py.
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks import quantized_kernels
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.table import AttentionBatch, Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from plimsoll.runtime.machine.threads import apply_threads

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, DIM, BLOCK = 576, 1536, 9, 3, 64, 64
PARTS = ("whole", "quantized")
SHAPES = {"qkv": (960, HIDDEN), "gate_up": (2 * INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}


def best(run: Callable[[], object], seconds: float = 0.4) -> float:
    """Milliseconds of the fastest run."""
    run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def step(rows: int, contexts: list[int]) -> AttentionBatch:
    counts = [-(-context // BLOCK) for context in contexts]
    tables, used = torch.zeros(len(contexts), max(counts), dtype=torch.int32), 0
    for index, count in enumerate(counts):
        tables[index, :count] = torch.arange(used, used + count)
        used += count
    starts = [rows * index for index in range(len(contexts) + 1)]
    numbers = [torch.tensor(values, dtype=torch.int32) for values in (starts, contexts)]
    return AttentionBatch(*numbers, tables, torch.zeros(0, dtype=torch.int64), starts, contexts)


def attend(ops: Kernels, dtype: torch.dtype, rows: int, contexts: list[int]) -> Callable[[], object]:
    batch = step(rows, contexts)
    kept = torch.randn(int(batch.block_tables.max()) + 1, KV_HEADS, BLOCK, DIM).to(torch.bfloat16)
    cache = LayerCache(kept, kept)
    q = torch.randn(rows * len(contexts), HEADS, DIM, dtype=dtype)
    return lambda: ops.attention(q, cache, batch, DIM**-0.5, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", type=int, nargs="?")
    parser.add_argument("parts", nargs="*", default=PARTS, help=" or ".join(PARTS))
    asked = parser.parse_args()
    for part in asked.parts:
        if part not in PARTS:
            parser.error(f"parts: must be {' or '.join(PARTS)} (got {part!r})")
    threads = apply_threads(asked.threads)
    if "whole" in asked.parts:
        whole(threads)
    if "quantized" in asked.parts:
        quantized_kernels.main(threads)


def whole(threads: int) -> None:
    native = native_kernels("cpu", torch.bfloat16)
    plain = torch_kernels("cpu", torch.bfloat16)
    wide = torch_kernels("cpu", torch.float32)
    print(f"{native.name}, {threads} threads, torch {torch.__version__}\n")
    print(f"{'':24}{'native':>9}{'GFLOP/s':>9}{'torch bf16':>12}{'ratio':>7}{'torch f32':>12}{'ratio':>7}")
    for rows in (1, 4, 16, 64, 512, 2048):
        for name, shape in SHAPES.items():
            weight, x = torch.randn(shape), torch.randn(rows, shape[1])
            packed, narrow, slim = native.pack(weight.bfloat16()), weight.bfloat16(), x.bfloat16()
            ours = best(lambda x=x, w=packed: native.linear(x, w, None))  # type: ignore[misc]
            bf16 = best(lambda x=slim, w=narrow: plain.linear(x, w, None))  # type: ignore[misc]
            f32 = best(lambda x=x, w=weight: wide.linear(x, w, None))  # type: ignore[misc]
            report(f"{name} x {rows}", ours, 2e-6 * rows * shape[0] * shape[1], bf16, f32)
    for rows, contexts in ((1, [200]), (1, [200] * 16), (1, [1000] * 16), (2000, [2000])):
        keys = sum(context - (rows - 1) / 2 for context in contexts) * rows
        times = [best(attend(*table, rows, contexts)) for table in (
            (native, torch.float32), (plain, torch.bfloat16), (wide, torch.float32),
        )]  # fmt: skip
        report(f"attention {len(contexts)} x {rows} of {contexts[0]}", times[0], 4e-6 * keys * HEADS * DIM, *times[1:])


def report(name: str, ours: float, mflop: float, bf16: float, f32: float) -> None:
    print(f"{name:24}{ours:9.3f}{mflop / ours:9.0f}{bf16:12.3f}{bf16 / ours:7.1f}{f32:12.3f}{f32 / ours:7.1f}")


if __name__ == "__main__":
    main()
