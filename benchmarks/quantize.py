"""Quantizing beside llm-compressor: the same checkpoint, token ids, bits and groups, measured by the same code.

    python -m benchmarks.quantize MODEL TEXT HELD_OUT --peer PYTHON [--group 64] [--samples 12] [--length 400]

MODEL is a Hugging Face folder, TEXT and HELD_OUT are files or folders of text, PYTHON the interpreter of an environment
that has llmcompressor. Each contestant runs in a process of its own, one after the other. KL divergence and perplexity
are `plimsoll eval`'s, on the last windows of HELD_OUT. On a machine that does other work, compare the CPU's seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob.data import Corpus
from plimsoll.quantjob.evaluation import compare
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.workers import Workers

OURS = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.data import tokens_of
from plimsoll.quantjob.papers import write_papers
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.walk import Walk, WalkPlan
from plimsoll.quantjob.workers import Workers
began = time.perf_counter()
model, tokens, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[5])
group, threads = int(sys.argv[3]), int(sys.argv[4])
recipe = Recipe(group_size=group, format="compressed-tensors", compensate=sys.argv[7] == "compensate")
checkpoint, workers = open_checkpoint(model), Workers(threads)
tokens = tokens_of(np.load(tokens), "benchmark")
walk = Walk(checkpoint, recipe, tokens, out, WalkPlan(2 * threads), workers)
state = walk.run()
write_papers(out / "output", checkpoint, recipe, state.shards)
usage = resource.getrusage(resource.RUSAGE_SELF)
Path(sys.argv[6]).write_text(json.dumps({
    "seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text")
    parser.add_argument("held_out")
    parser.add_argument("--peer", help="a Python that has llmcompressor; ours alone without")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--length", type=int, default=400)
    parser.add_argument("--held-out-samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.model)
    tokenizer = load_tokenizer(checkpoint)
    tokens = Corpus(asked.text, tokenizer).head(asked.samples, asked.length)
    held_out = Corpus(asked.held_out, tokenizer).tail(asked.held_out_samples, asked.length)
    with tempfile.TemporaryDirectory(prefix="plimsoll-quantize-") as scratch:
        folder = Path(scratch)
        np.save(folder / "tokens.npy", tokens.windows)
        common = [str(asked.model), str(folder / "tokens.npy"), str(asked.group), str(asked.threads)]
        contestants = {
            "ours": ([sys.executable, "-c", OURS], "compensate", "output"),
            "ours, scales and ranges alone": ([sys.executable, "-c", OURS], "plain", "output"),
        }
        if asked.peer:
            runner = Path(__file__).with_name("in_llmcompressor.py")
            contestants["llm-compressor"] = ([asked.peer, "-P", str(runner)], "", "")
        taken: dict[str, Any] = {}
        others: dict[str, StreamedModel] = {}
        workers = Workers(asked.threads)
        for number, (name, (command, last, inner)) in enumerate(contestants.items()):
            out, result = folder / f"out-{number}", folder / f"result-{number}.json"
            if subprocess.run([*command, *common, str(out), str(result), last], check=False).returncode:
                print(f"{name} failed and is left out", flush=True)
                continue
            taken[name] = json.loads(result.read_text())
            others[name] = StreamedModel(open_checkpoint(out / inner), workers=workers)
        others["round to nearest"] = StreamedModel(checkpoint, round_to=Rounding(4, asked.group), workers=workers)
        found = compare(StreamedModel(checkpoint, workers=workers), others, held_out)
    print(f"perplexity before: {found.perplexity:.4g}, on {found.positions} positions of {asked.held_out}")
    nearest = found.others["round to nearest"].kl_mean
    for name, other in found.others.items():
        spent = taken.get(name)
        words = "" if spent is None else (
            f"; {spent['seconds']:.0f} s, {spent['cpu_seconds']:.0f} s of CPU, {spent['peak_bytes'] / 2**20:.0f} MiB"
        )  # fmt: skip
        print(
            f"{name}: perplexity {other.perplexity:.4g}, KL {other.kl_mean:.4f} ({1 - other.kl_mean / nearest:.0%} of "
            f"rounding's avoided), top-1 {other.top1_agreement:.1%}{words}"
        )


if __name__ == "__main__":
    main()
