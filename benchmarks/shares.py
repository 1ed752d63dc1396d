"""What the kernels reach of what this machine can do: memory in a decode step, arithmetic in products and attention.

    python -m benchmarks.shares [--threads 2] [--parts decode products attention]

Peaks come from loops of `peaks.c`, in the same run: a read of memory in turns with the steps, and the multiplying
instruction on registers alone. A decode step is one stream of a random model of TinyLlama's shape (1.1 B) at a context
of 200: all its weights but the embedding, and its cache, over the step's tenth percentile. Products have 2,048 rows,
attention a prompt of 2,000 tokens; their time is the tenth percentile of many. Needs a C compiler.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decode_step import drain, fill, timed_steps
from benchmarks.kernels import DIM, HEADS, KV_HEADS, attend
from benchmarks.memory import make_checkpoint
from benchmarks.quantized_kernels import eight_bits, four_bits
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.machine.large_pages import large_pages, room
from plimsoll.runtime.machine.threads import apply_threads

GIB = 1 << 30
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip
"""TinyLlama's."""
PRODUCTS = ((960, 576), (576, 576), (3072, 576), (576, 1536), (2048, 2048), (11264, 2048), (2048, 5632))
"""(outputs, inputs): the demo model's, then TinyLlama's."""
ROWS, PROMPT, CONTEXT, STEPS = 2048, 2000, 200, 60
LANES = {"float32": 16, "bfloat16": 32, "int8": 64}
"""Multiply-adds of one AVX-512 instruction; float32 has half with AVX2."""
ROUNDS, CHAINS = 1_000_000, 20
STEPS_OF_ONE_TURN = 3
PARTS = ("decode", "products", "attention")


def loops() -> ctypes.CDLL:
    """`peaks.c` for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "peaks.so"
        source = Path(__file__).with_name("peaks.c")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(made)], check=True)
        return ctypes.CDLL(str(made))


def tenth(run: Callable[[], object], seconds: float = 2.0, least: int = 10) -> float:
    """Seconds: the tenth percentile."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 10]


def readings(library: ctypes.CDLL) -> Callable[[], float]:
    """What reads a buffer that no cache holds, in large pages as the weights are, and returns GB/s."""
    library.read_all.restype = ctypes.c_int64
    with large_pages(GIB // 4):
        buffer = room(GIB // 4).zero_()

    def read() -> float:
        start = time.perf_counter()
        library.read_all(ctypes.c_void_p(buffer.data_ptr()), ctypes.c_size_t(buffer.nbytes))
        return buffer.nbytes / (time.perf_counter() - start) / 1e9

    return read


def triad(library: ctypes.CDLL) -> float:
    """GB/s."""
    size = GIB // 8
    a, b, c = (torch.zeros(size) for _ in range(3))
    pointers = [ctypes.c_void_p(one.data_ptr()) for one in (a, b, c)]
    return 12 * size / tenth(lambda: library.triad(*pointers, ctypes.c_size_t(size))) / 1e9


def arithmetic(library: ctypes.CDLL, threads: int) -> dict[str, float]:
    """GFLOP/s of each multiplying instruction that there is, a multiply-add being two."""
    found = {}
    for name, lanes in LANES.items():
        loop = getattr(library, name, None)
        if loop is not None:
            wide = hasattr(library, "int8") or hasattr(library, "bfloat16") or name != "float32"
            chains = CHAINS if wide else 12
            work = 2.0 * (lanes if wide else 8) * chains * ROUNDS * threads
            found[name] = work / tenth(partial(loop, ctypes.c_long(ROUNDS))) / 1e9
    return found


def decode(folder: Path, threads: int, library: ctypes.CDLL, console: Console) -> None:
    """Steps and reads of memory in turns: others on the host take some of its bandwidth, now more and now less."""
    read, table = readings(library), Table("weights", "step, ms", "bytes of a step", "GB/s", "a read, GB/s", "share")
    for precision in ("bfloat16", "w8a16", "w4a16"):
        engine = Engine(EngineConfig(
            model=str(folder), precision=precision, threads=threads, kv_cache_bytes=GIB // 2, prefix_caching=False
        ))  # fmt: skip
        fill(engine, 1, CONTEXT, STEPS + 10)
        steps, rates = [], []
        for _ in range(STEPS // STEPS_OF_ONE_TURN):
            rates.append(read())
            steps += timed_steps(engine, STEPS_OF_ONE_TURN)
        step, most = sorted(steps)[STEPS // 10], sorted(rates)[-max(1, len(rates) // 10)]
        decoder, cache = engine.runner.decoder, engine.runner.cache
        looked_up = 0 if decoder.embedding is decoder.head else decoder.embedding.nbytes
        held = cache.nbytes // (cache.num_blocks * cache.block_size) * CONTEXT
        size = decoder.weight_bytes - looked_up + held
        rate = size / step / 1e9
        table.add_row(
            precision, f"{step * 1e3:.2f}", f"{size:,}", f"{rate:.1f}", f"{most:.1f}", f"{rate / most:.0%}"
        )  # fmt: skip
        drain(engine, 1)
        del engine, decoder, cache
        gc.collect()
    console.print(table)


def products(peak: dict[str, float], console: Console) -> None:
    plain, int8 = native_kernels("cpu", torch.bfloat16), native_kernels("cpu", torch.bfloat16, int8=True)
    multiplied = "bfloat16" if "bfloat16" in peak else "float32"
    kinds = {"bfloat16": multiplied, "8 bits": multiplied, "4 bits": multiplied}
    rows8 = {"8 bits, int8 rows": "int8", "4 bits, int8 rows": "int8"} if "int8" in peak else {}
    names = [*kinds, *rows8]
    table = Table("outputs × inputs", *names, title=f"{ROWS} rows, GFLOP/s and share of the peak")
    for outputs, columns in PRODUCTS:
        x = torch.randn(ROWS, columns)
        weights = {
            "bfloat16": plain.pack(torch.randn(outputs, columns).bfloat16()),
            "8 bits": plain.pack_quantized(eight_bits(outputs, columns)),
            "4 bits": plain.pack_quantized(four_bits(outputs, columns)),
        }
        cells = []
        for name in names:
            ops, weight = (int8 if name in rows8 else plain), weights[name.removesuffix(", int8 rows")]
            taken = tenth(partial(ops.linear, x, weight, None))
            rate = 2e-9 * ROWS * outputs * columns / taken
            cells.append(f"{rate:.0f}, {rate / peak[(kinds | rows8)[name]]:.0%}")
        table.add_row(f"{outputs} × {columns}", *cells)
    console.print(table)


def attention(peak: dict[str, float], console: Console) -> None:
    taken = tenth(attend(native_kernels("cpu", torch.bfloat16), torch.float32, PROMPT, [PROMPT]))
    rate = 4e-9 * PROMPT * (PROMPT + 1) / 2 * HEADS * DIM / taken
    shares = ", ".join(f"{rate / one:.0%} of {name}" for name, one in peak.items() if name != "int8")
    console.print(f"attention of {PROMPT} tokens, {HEADS} heads of {KV_HEADS}: {rate:.0f} GFLOP/s, {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    asked = parser.parse_args()
    threads, console, library = apply_threads(asked.threads), Console(markup=False, emoji=False), loops()
    peak = arithmetic(library, threads)
    said = [f"triad {triad(library):.1f} GB/s", *(f"{name} {rate:.0f} GFLOP/s" for name, rate in peak.items())]
    console.print(f"{native_kernels('cpu', torch.bfloat16).name}, {threads} threads. Peaks: {', '.join(said)}")
    with torch.inference_mode():
        if "decode" in asked.parts:
            with tempfile.TemporaryDirectory() as folder:
                decode(make_checkpoint(Path(folder) / "model", SHAPE), threads, library, console)
        if "products" in asked.parts:
            products(peak, console)
        if "attention" in asked.parts:
            attention(peak, console)


if __name__ == "__main__":
    main()
