"""Tokens a second with guesses and without, in turns, by what is asked; and that the answers are the same.

python -m benchmarks.guesses MODEL [--draft PATH] [--precision bfloat16] [--guesses 4] [--streams 1 4 16] [--tokens 128]

With `--draft` a draft model guesses, else the text itself. `MODEL:LAYERS` is MODEL, a GGUF, cut to its first layers.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

from safetensors.torch import load_file, save_file

from plimsoll.api.precision import Precision
from plimsoll.checkpoint.convert import convert_gguf
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.llm import LLM

CODE = (
    "def area(width, height):\n    return width * height\n\n\n"
    "def ring(width, height):\n    return 2 * (width + height)\n\n\n"
)
REPORT = (
    "The pump in hall 4 stopped at 6:40 in the morning of 3 May. The night shift had heard a knocking since two. "
    "At 7:10 the seal was found to be torn, and a spare one was fitted by nine. "
)
#: What each is asked with; the first two answers repeat much of the question.
ASKED = {
    "code": f"Repeat this program and rename `width` to `breadth`:\n{CODE}",
    "quotes": f"Quote each sentence of this report in a list:\n{REPORT}",
    "prose": "Write a story about a lighthouse keeper who finds a letter.",
}
MEMORY = 2 << 30


def spent(llm: LLM, question: str, streams: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the token ids of each answer: the first greedy, the others drawn with seeds of their own."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    params = [
        SamplingParams(max_tokens=tokens, temperature=0.7 if stream else 0.0, seed=stream, ignore_eos=True)
        for stream in range(streams)
    ]
    started = time.perf_counter()
    found = llm.generate([prompt] * streams, params)
    return time.perf_counter() - started, [list(one.outputs[0].token_ids) for one in found]


def draft_of(named: str, scratch: Path) -> str:
    """The path of a draft, made in `scratch` where it is `MODEL:LAYERS`."""
    model, _, layers = named.rpartition(":")
    if not model or not layers.isdigit():
        return named
    whole = convert_gguf(Path(model), scratch / "whole")
    names = re.compile(r"model\.layers\.(\d+)\.")
    tensors = {
        name: value
        for file in sorted(whole.glob("*.safetensors"))
        for name, value in load_file(file).items()
        if (found := names.match(name)) is None or int(found[1]) < int(layers)
    }
    cut = scratch / "cut"
    cut.mkdir()
    for file in whole.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            shutil.copy(file, cut)
    save_file(tensors, cut / "model.safetensors", {"format": "pt"})
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps(config | {"num_hidden_layers": int(layers)}))
    return str(cut)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", help="of the guesses, in place of prompt lookup")
    parser.add_argument("--precision", default="bfloat16", choices=get_args(Precision))
    parser.add_argument("--guesses", type=int, default=4)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        draft = {} if options.draft is None else {"draft_model": draft_of(options.draft, Path(scratch))}
        engines = [
            LLM(options.model, precision=options.precision, memory=MEMORY, **guessing)
            for guessing in ({}, {"speculative_tokens": options.guesses, **draft})
        ]
    differ = 0
    print(
        "| asked | streams | tokens/s without | with | ratio | guesses kept | tokens a step and stream |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, question in ASKED.items():
        for streams in options.streams:
            stats = engines[1].engine.stats
            before = stats.guesses, stats.guesses_kept, stats.steps
            times: tuple[list[float], list[float]] = [], []
            for _ in range(options.rounds):
                answers = []
                for llm, all_times in zip(engines, times, strict=True):
                    seconds, answer = spent(llm, question, streams, options.tokens)
                    all_times.append(seconds)
                    answers.append(answer)
                differ += answers[0] != answers[1]
            ratio = statistics.median(one / other for one, other in zip(*times, strict=True))
            stats = engines[1].engine.stats
            guessed, kept = stats.guesses - before[0], stats.guesses_kept - before[1]
            speeds = [streams * options.tokens / statistics.median(one) for one in times]
            share = f"{kept / guessed:.0%} of {guessed}" if guessed else "none"
            each = options.rounds * options.tokens / (stats.steps - before[2])
            print(
                f"| {name} | {streams} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.2f} | {share} | {each:.2f} |",
                flush=True,
            )
    for llm in engines:
        llm.close()
    print(f"{differ} rounds had other answers")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
