"""What equal answers cost: prompts and answers with `torch_rows` and without, the engines in turns in one process.

    python -m benchmarks.torch_rows MODEL [--precision bfloat16] [--rows 128] [--prompts 512 2000] [--threads 2]

Prints the processor, the seconds of a prompt with each engine (the best of the rounds) and the ratio; then how many of
32 greedy and seeded answers differ between an idle engine and one that runs 16 requests at once.
"""

import argparse
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.host_tier import answers
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.machine.processor import CPU_INFO, multiplies_bf16
from plimsoll.runtime.messages import EngineRequest

ANSWERS, AT_ONCE, TOKENS = 32, 16, 32


def request(name: str, prompt: list[int], tokens: int, seed: int | None = None) -> EngineRequest:
    params = SamplingParams(
        max_tokens=tokens, temperature=0.0 if seed is None else 1.0, seed=seed, ignore_eos=True, logprobs=0
    )
    return EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, arrival=time.monotonic())


def prompt(index: int, length: int, vocabulary: int) -> list[int]:
    return [(7 * position + 131 * index) % (vocabulary - 1000) + 500 for position in range(length)]


def prompt_seconds(engines: Sequence[Engine], length: int, rounds: int) -> list[float]:
    """The best time from a prompt to its first token, by engine."""
    best = [float("inf")] * len(engines)
    for index in range(rounds):
        for number, engine in enumerate(engines):
            asked = request("p", prompt(index, length, engine.facts.vocab_size), 1)
            began = time.perf_counter()
            answers(engine, [asked])
            best[number] = min(best[number], time.perf_counter() - began)
    return best


def differing(engine: Engine) -> int:
    """Answers of `ANSWERS` that differ between an engine that is idle and one that runs `AT_ONCE` requests."""
    vocabulary = engine.facts.vocab_size
    asked = [
        request(str(i), prompt(i, 20 + 3 * i, vocabulary), TOKENS, seed=i if i % 2 else None) for i in range(ANSWERS)
    ]
    alone = {name: ids for one in asked for name, ids in answers(engine, [one])[0].items()}
    together: dict[str, list[int]] = {}
    for start in range(0, ANSWERS, AT_ONCE):
        together |= answers(engine, asked[start : start + AT_ONCE])[0]
    return sum(alone[name] != together[name] for name in alone)


def processor() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    bfloat16 = "with" if multiplies_bf16() else "without"
    return f"{next(names, 'unknown processor')}, {bfloat16} instructions for bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "w8a16", "w4a16"])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompts", nargs="+", type=int, default=[512, 2000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    equal, quick = (
        Engine(
            EngineConfig(
                model=asked.model, precision=asked.precision, threads=asked.threads, kv_cache_bytes=512 << 20,
                prefix_caching=False, torch_rows=rows, device="cpu", kernels="native",
            )
        )
        for rows in (None, asked.rows)
    )  # fmt: skip
    title = f"{processor()}; {asked.precision}, {asked.threads} threads"
    table = Table("prompt", "default, s", f"torch_rows {asked.rows}, s", "ratio", title=title)
    for length in asked.prompts:
        slow, fast = prompt_seconds((equal, quick), length, asked.rounds)
        table.add_row(f"{length} tokens", f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.2f} ×")
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(
        f"Of {ANSWERS} answers, {AT_ONCE} at once, differ from an idle engine's: default {differing(equal)}, "
        f"torch_rows {asked.rows} {differing(quick)}"
    )


if __name__ == "__main__":
    main()
