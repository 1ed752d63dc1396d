"""What every contestant is asked: the same texts, so that what is compared is the engine."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Words that are one token each in the demo model's vocabulary when a space precedes them.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother"
).split()

OUTPUT_TOKENS = 128
PROMPT_WORDS = 100
FEW = 4
STREAMS = 16


@dataclass(frozen=True)
class Workload:
    """Prompts by measure. No two share a beginning, so that a prefix cache has nothing to give."""

    warmup: list[str]
    one_stream: list[str]
    """Sent one after the other, `OUTPUT_TOKENS` tokens each."""
    four: list[list[str]]
    """Lists of `FEW` prompts sent at once, `OUTPUT_TOKENS` tokens each."""
    sixteen: list[list[str]]
    """Lists of `STREAMS` prompts sent at once, `OUTPUT_TOKENS` tokens each."""
    sustained: list[str]
    """Three times `STREAMS` prompts with `STREAMS` in flight."""
    long: dict[str, list[str]]
    """Prompts of that many words, for the time to the first token and the prefill rate."""
    windows: list[list[int]]
    """Token ids of a text, for perplexity: every contestant gives the same tokens their probabilities."""
    output_tokens: int = OUTPUT_TOKENS
    streams: int = STREAMS

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Workload":
        return cls(**json.loads(path.read_text()))


def make_workload(seed: int, repeats: int, windows: Sequence[list[int]] = ()) -> Workload:
    draw = random.Random(seed)

    def prompts(count: int, words: int = PROMPT_WORDS) -> list[str]:
        return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]

    return Workload(
        warmup=prompts(STREAMS, 32),
        one_stream=prompts(repeats),
        four=[prompts(FEW) for _ in range(repeats)],
        sixteen=[prompts(STREAMS) for _ in range(math.ceil(repeats / 2))],
        sustained=prompts(3 * STREAMS),
        long={"512": prompts(repeats, 512), "2000": prompts(repeats, 2000)},
        windows=list(windows),
    )
