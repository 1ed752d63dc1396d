"""What several ranks of one machine cost: collectives beside gloo's, tokens a second, and where a step's time goes.

    python -m benchmarks.tensor MODEL [--precisions bfloat16,w8a16] [--context 100] [--steps 40]

Measures two ranks of one thread each beside one rank with one thread and with two. The parts of a step are those of
rank 0, taken in a run of their own: a timer stands around each collective, the message of the step and the sampler.
"""

import argparse
import ctypes
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist

from benchmarks.decode_step import Clock, drain, fill, timed_steps
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.kernels.native_group import SharedGroup, make_segment

SHAPES = (((16, 576), 300), ((128, 4096), 60), ((2048, 4096), 6))
"""Of a sum, and how often it is taken."""
BATCHES = (1, 16)
RUNS = ((1, 1, False), (1, 2, False), (2, 2, False), (2, 2, True))
"""Ranks, threads of all of them, and whether parts are timed."""
_SUM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)


def sums() -> None:
    """Prints milliseconds of a sum over two ranks, through shared memory and through gloo."""
    descriptor = make_segment(2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.tensor", "--peer", str(descriptor), str(port)]
    with subprocess.Popen(command, pass_fds=(descriptor,)) as peer:
        print("| sum over 2 ranks, float32 | shared memory, ms | gloo, ms |\n|---|---|---|")
        for shape, ours, theirs in _sums(0, descriptor, port):
            print(f"| {list(shape)} | {ours * 1000:.3f} | {theirs * 1000:.3f} |", flush=True)
        peer.wait()


def _sums(rank: int, descriptor: int, port: int) -> list[tuple[tuple[int, int], float, float]]:
    torch.set_num_threads(1)
    group = SharedGroup(descriptor, rank, 2)
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = []
    for shape, times in SHAPES:
        data = torch.ones(shape)
        ours, theirs = [], []
        for _ in range(times):
            # Both in turn, so that a neighbour on the machine disturbs both.
            for seconds, take in ((ours, group.sum), (theirs, cast(Callable[[torch.Tensor], Any], dist.all_reduce))):
                data.fill_(1.0)
                start = time.perf_counter()
                take(data)
                seconds.append(time.perf_counter() - start)
                assert float(data[0, 0]) == 2.0
        found.append((shape, median(ours), median(theirs)))
    dist.destroy_process_group()
    return found


def measure(model: str, precision: str, ranks: int, threads: int, parts: bool, context: int, steps: int) -> Any:
    """Milliseconds of a decode step for each batch, and of its parts where they are timed."""
    clock = Clock()
    if parts:
        _time_group(clock)
    config = EngineConfig(
        model=model, precision=precision, tensor=ranks, threads=threads, kv_cache_bytes=256 << 20, prefix_caching=False
    )
    engine, found = Engine(config), {}
    if parts:
        sampler = cast(Any, engine.sampler)
        for way in ("take", "sample_apart"):
            setattr(sampler, way, clock.around(getattr(sampler, way), lambda *_: "sampling"))
    for size in BATCHES:
        fill(engine, size, context, 3 * steps)
        clock.spent.clear()
        seconds = timed_steps(engine, steps)
        # A mean, as the parts are, where there are any.
        whole = sum(seconds) / steps if parts else median(seconds)
        found[size] = {"step": whole * 1000, **{name: spent / steps * 1000 for name, spent in clock.spent.items()}}
        drain(engine, size)
    engine.close()
    return found


def _time_group(clock: Clock) -> None:
    """Puts the clock around what rank 0, which is this process, does with the others."""
    kept = []
    address = cast(Any, SharedGroup.adder).fget

    def adder(group: SharedGroup) -> tuple[int, int]:
        function, state = address(group)
        timed = _SUM(clock.around(_SUM(function), lambda *_: "sums"))
        kept.append(timed)
        found = ctypes.cast(timed, ctypes.c_void_p).value
        assert found is not None
        return found, state

    patched = cast(Any, SharedGroup)
    patched.adder = property(adder)
    patched.sum = clock.around(SharedGroup.sum, lambda *_: "sums")
    patched.gather = clock.around(SharedGroup.gather, lambda *_: "gather")
    cast(Any, Runner)._announce = clock.around(Runner._announce, lambda *_: "message")


def table(found: dict[str, Any], precision: str) -> None:
    """Prints tokens a second of each run, and the parts of a step over two ranks."""
    for size in BATCHES:
        of = {name: each[str(size)] for name, each in found.items()}
        speeds = [f"{size / of[name]['step'] * 1000:.0f}" for name in ("1, 1", "1, 2", "2, 2")]
        print(f"| {precision}, {size} | {' | '.join(speeds)} | ", end="")
        parts = of["2, 2, parts"]
        shared = sum(parts.get(name, 0.0) for name in ("sums", "gather", "message"))
        rest = parts["step"] - shared - parts["sampling"]
        names = [parts["step"], rest, *(parts.get(name, 0.0) for name in ("sums", "gather", "message", "sampling"))]
        print(" | ".join(f"{each:.2f}" for each in names), f"| {100 * shared / parts['step']:.0f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--precisions", default="bfloat16,w8a16")
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        _sums(1, *asked.peer)
        return
    if asked.one:
        precision, ranks, threads, parts = json.loads(asked.one)
        print(json.dumps(measure(asked.model, precision, ranks, threads, parts, asked.context, asked.steps)))
        return
    if asked.model is None or not Path(asked.model).exists():
        parser.error("name a model")
    sums()
    print("\n| precision, batch | tokens/s: 1 rank, 1 thread | 1 rank, 2 threads | 2 ranks, 1 thread each "
          "| ms a step, timed | compute | sums | gather | message | sampling | collectives and messages |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for precision in asked.precisions.split(","):
        found = {}
        for ranks, threads, parts in RUNS:
            one = json.dumps([precision, ranks, threads, parts])
            command = [sys.executable, "-m", "benchmarks.tensor", asked.model, "--one", one]
            command += ["--context", str(asked.context), "--steps", str(asked.steps)]
            words = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[f"{ranks}, {threads}{', parts' if parts else ''}"] = json.loads(words)
        table(found, precision)


if __name__ == "__main__":
    main()
