"""What rows of 8 bits cost and give: perplexity, divergence and the speed of steps beside rows of bfloat16.

    python -m benchmarks.activation_precisions MODEL [--precision w4a16 w8a16] [--text examples/prose.txt]

Each window of the text is computed once with each of both, from the same weights. Divergence is the mean of
KL(bfloat16 || int8) in nats; `same best` is the share of positions whose likeliest token is the same one. Steps take
turns in one process, in processor time; a figure is the twentieth percentile.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cache_precisions import Quality, count, windows
from plimsoll.api.precision import CODE_BITS
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.paging import Chunk, make_sequences, runner_of

BLOCK = 64


def decoders(checkpoint: Checkpoint, precision: str) -> dict[str, Decoder]:
    """By the precision of rows."""
    tables = {
        "bfloat16": native_kernels("cpu", torch.bfloat16),
        "int8": native_kernels("cpu", torch.bfloat16, int8=True),
    }
    return {
        name: load_decoder(checkpoint, checkpoint.facts, table, torch.bfloat16, precision=precision)
        for name, table in tables.items()
    }


def quality(models: dict[str, Decoder], texts: list[list[int]]) -> dict[str, Quality]:
    """Over all windows; the first one is what the others are compared with."""
    found = {name: Quality() for name in models}
    for text in texts:
        following, wanted = torch.tensor(text[1:])[:, None], torch.empty(0)
        for number, (name, one) in enumerate(found.items()):
            runner = runner_of(models[name], -(-len(text) // BLOCK) + 1, BLOCK, torch.bfloat16)
            (sequence,) = make_sequences(runner, [text])
            parts = runner.step([Chunk(sequence, len(text))]).prompt_logits(0)
            log = torch.cat([logits.log_softmax(-1) for _, logits in parts])[:-1]
            wanted = log if number == 0 else wanted
            one.positions += len(following)
            one.surprise -= float(log.gather(1, following).sum())
            one.divergence += sum(float((w.exp() * (w - f)).sum()) for w, f in zip(wanted, log, strict=True))
            one.same += int((wanted.argmax(-1) == log.argmax(-1)).sum())
    return found


def speed(models: dict[str, Decoder], sequences: int, tokens: int, context: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step of `tokens` tokens of each of so many sequences that have `context` before."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    blocks = sequences * (-(-(context + tokens) // BLOCK) + 1)
    runners = {name: runner_of(model, blocks, BLOCK, torch.bfloat16) for name, model in models.items()}
    text = [(7 * i) % 4096 + 3 for i in range(context + tokens)]
    batches = {name: _after(runner, sequences, text, context) for name, runner in runners.items()}
    for _ in range(rounds):
        for name, runner in runners.items():
            before = time.process_time()
            runner.step([Chunk(one.seq, tokens) for one in batches[name]], best=True)
            seconds[name].append(time.process_time() - before)
    return {name: sorted(taken)[len(taken) // 5] * 1000 for name, taken in seconds.items()}


def _after(runner: Runner, sequences: int, text: list[int], context: int) -> list[Chunk]:
    made = make_sequences(runner, [text] * sequences)
    for sequence in made:
        if context:
            runner.step([Chunk(sequence, context)])
        sequence.num_computed = context
    return [Chunk(sequence, 0) for sequence in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", nargs="+", default=[*CODE_BITS], choices=CODE_BITS)
    parser.add_argument("--text", type=Path, default=Path("examples/prose.txt"))
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--prompts", nargs="*", type=int, default=[512, 2000])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    checkpoint, console = open_checkpoint(asked.model), Console(markup=False, emoji=False)
    texts = windows(load_tokenizer(checkpoint).encode(asked.text.read_text()), asked.window)
    with torch.inference_mode():
        for precision in asked.precision:
            models = decoders(checkpoint, precision)
            found = quality(models, texts)
            size = sum(map(len, texts))
            title = f"{precision}, {models['int8'].kernels.name}, {size} tokens in windows of {asked.window}"
            table = Table("rows", "perplexity", "more", "divergence", "same best", title=title)
            for name, one in found.items():
                table.add_row(name, *one.cells(beside=found["bfloat16"]))
            console.print(table)
            table = Table("step", *models, "ratio", title=f"{precision}, ms of processor time, {asked.threads} threads")
            steps = [(1, size, 0, asked.rounds) for size in asked.prompts]
            steps += [(1, 1, 200, 8 * asked.rounds), (16, 1, 200, 4 * asked.rounds)] if asked.prompts else []
            for sequences, tokens, context, rounds in steps:
                times = speed(models, sequences, tokens, context, rounds)
                table.add_row(
                    f"{tokens} of {context + tokens}, {sequences} at once",
                    *(f"{value:.2f}" for value in times.values()), f"{times['bfloat16'] / times['int8']:.2f}",
                )  # fmt: skip
            if steps:
                console.print(table)


if __name__ == "__main__":
    main()
