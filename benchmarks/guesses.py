"""Tokens a second with guesses and without, in turns, by what is asked; and that the answers are the same.

python -m benchmarks.guesses MODEL [--precision bfloat16] [--guesses 4] [--streams 1 4 16] [--tokens 128]
"""

import argparse
import statistics
import time

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--guesses", type=int, default=4)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    engines = [
        LLM(options.model, precision=options.precision, memory=MEMORY, speculative_tokens=guesses)
        for guesses in (0, options.guesses)
    ]
    differ = 0
    print("| asked | streams | tokens/s without | with | ratio | guesses kept |\n|---|---|---|---|---|---|")
    for name, question in ASKED.items():
        for streams in options.streams:
            before = engines[1].engine.stats.guesses, engines[1].engine.stats.guesses_kept
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
            print(f"| {name} | {streams} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.2f} | {share} |", flush=True)
    for llm in engines:
        llm.close()
    print(f"{differ} rounds had other answers")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
