"""The process of a rank that follows: how it ends."""

import subprocess
import sys

#: A sum that the other rank never joins, in a process that then runs the module as the engine does. Nothing is on its
#: standard input, so `main` returns at once.
LEFT_IN_A_SUM = """
import runpy, threading
import torch
import torch.distributed as dist
from plimsoll.runtime.kernels.torch_group import gloo

store, made = dist.HashStore(), {}

def meet(rank):
    made[rank] = gloo(store, rank, 2, "127.0.0.1")

other = threading.Thread(target=meet, args=(0,))
other.start()
meet(1)
other.join()
pending = made[1]._allgather_base(torch.empty(8), torch.ones(4))
print("in a sum", flush=True)
runpy.run_module("plimsoll.runtime.engine.worker.rank_process", run_name="__main__")
"""


def test_a_rank_ends_without_the_sum_that_another_rank_has_left() -> None:
    """At its end an interpreter waits for gloo, up to 150 s."""
    command = [sys.executable, "-P", "-c", LEFT_IN_A_SUM]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout.strip()) == (2, "in a sum"), found.stderr
    # What it logged last was not lost.
    assert "a rank is started by the engine, not by hand" in found.stderr
