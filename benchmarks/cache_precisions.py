"""What a cache of codes costs and gives: perplexity, divergence and the speed of decode steps beside a cache of floats.

    python -m benchmarks.cache_precisions MODEL [--text examples/prose.txt] [--window 1024] [--contexts 512 4096 8000]

Each window of the text is computed once with each cache, from the same weights in bfloat16. Divergence is the mean of
KL(floats || codes) in nats; `same best` is the share of positions whose likeliest token is the same one. Decode steps
take turns in one process.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from plimsoll.api.precision import HeldCache
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.paging import Chunk, PagedSequence, make_sequences, runner_of

Caches = tuple[HeldCache, ...]
CACHES: Caches = ("float", "int8", "int4")
BLOCK = 64


@dataclass
class Quality:
    """Sums over positions."""

    positions: int = 0
    surprise: float = 0.0
    divergence: float = 0.0
    same: int = 0

    def cells(self, beside: "Quality") -> tuple[str, ...]:
        """Perplexity, how much more it is than that of `beside`, divergence from it, same best."""
        mean, first = self.surprise / self.positions, beside.surprise / beside.positions
        return (
            f"{math.exp(mean):.3f}", f"{100 * math.expm1(mean - first):+.3f} %",
            f"{self.divergence / self.positions:.5f}", f"{100 * self.same / self.positions:.2f} %",
        )  # fmt: skip


def windows(tokens: list[int], length: int) -> list[list[int]]:
    return [tokens[at : at + length] for at in range(0, len(tokens) - length // 2, length)]


def quality(decoder: Decoder, texts: list[list[int]], caches: Caches) -> dict[HeldCache, Quality]:
    """Of each cache, over all windows; the first one is what the others are compared with."""
    found = {cache: Quality() for cache in caches}
    for text in texts:
        following, wanted = torch.tensor(text[1:])[:, None], torch.empty(0)
        for cache, one in found.items():
            runner = runner_of(decoder, -(-len(text) // BLOCK) + 1, BLOCK, torch.bfloat16, cache)
            (sequence,) = make_sequences(runner, [text])
            parts = runner.step([Chunk(sequence, len(text))]).prompt_logits(0)
            log = torch.cat([logits.log_softmax(-1) for _, logits in parts])[:-1]
            wanted = log if cache == caches[0] else wanted
            one.positions += len(following)
            one.surprise -= float(log.gather(1, following).sum())
            one.divergence += sum(float((w.exp() * (w - f)).sum()) for w, f in zip(wanted, log, strict=True))
            one.same += int((wanted.argmax(-1) == log.argmax(-1)).sum())
    return found


def ready(runner: Runner, context: int) -> PagedSequence:
    """A sequence with `context` tokens in the cache; which tokens they are does not matter."""
    (sequence,) = make_sequences(runner, [[(7 * i) % 4096 + 3 for i in range(context)]], room=BLOCK)
    for start in range(0, context, 2048):
        runner.step([Chunk(sequence, min(2048, context - start))])
        sequence.num_computed = min(start + 2048, context)
    sequence.token_ids.append(5)
    return sequence


def speed(decoder: Decoder, context: int, caches: Caches, rounds: int) -> dict[HeldCache, float]:
    """Milliseconds of a decode step by cache: the twentieth percentile."""
    runners = {cache: runner_of(decoder, context // BLOCK + 3, BLOCK, torch.bfloat16, cache) for cache in caches}
    sequences = {cache: ready(runner, context) for cache, runner in runners.items()}
    seconds: dict[HeldCache, list[float]] = {cache: [] for cache in caches}
    for _ in range(rounds):
        for cache in caches:
            for _ in range(4):
                before = time.perf_counter()
                runners[cache].step([Chunk(sequences[cache], 1)], best=True)
                seconds[cache].append(time.perf_counter() - before)
    return {cache: sorted(taken)[len(taken) // 5] * 1000 for cache, taken in seconds.items()}


def count(text: str) -> int:
    """Raises ArgumentTypeError for what is no number of windows."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be 1 or more, found {text}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[Path("examples/prose.txt")])
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--most", type=count, default=1_000_000, help="Windows of the text, at least 1.")
    parser.add_argument("--contexts", nargs="*", type=int, default=[512, 2048, 8000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    checkpoint, kernels = open_checkpoint(asked.model), native_kernels("cpu", torch.bfloat16)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16)
    console = Console(markup=False, emoji=False)
    with torch.inference_mode():
        tokenizer = load_tokenizer(checkpoint)
        texts = [one for path in asked.text for one in windows(tokenizer.encode(path.read_text()), asked.window)]
        texts = texts[: asked.most]
        title = f"{kernels.name}, {len(texts)} windows of {asked.window} tokens"
        table = Table("cache", "perplexity", "more", "divergence", "same best", title=title)
        found = quality(decoder, texts, CACHES)
        for cache, one in found.items():
            table.add_row(cache, *one.cells(beside=found[CACHES[0]]))
        console.print(table)
        table = Table("context", *CACHES, title=f"Decode steps of one sequence, ms, {asked.threads} threads")
        for context in asked.contexts:
            times = speed(decoder, context, CACHES, asked.rounds)
            others = (f"{times[cache]:.2f}  {times[CACHES[0]] / times[cache]:.2f} ×" for cache in CACHES[1:])
            table.add_row(str(context), f"{times[CACHES[0]]:.2f}", *others)
        if asked.contexts:
            console.print(table)


if __name__ == "__main__":
    main()
