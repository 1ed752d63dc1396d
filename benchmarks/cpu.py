"""`make bench`: our server and library beside transformers, llama-server and OpenVINO GenAI, on this processor.

Every contestant gets the same model file, the same texts and the same number of threads, each in a fresh process, one
at a time; rounds alternate the order, and medians over all repeats are compared. Ratios are printed first, then the
figures, then where a decode step's time goes.

All give the same tokens of one text their probabilities first: a speed is printed beside the perplexity it was had at.

With more than one `--precision` ours take part in each; ratios between them are printed, and those with the others are
of the first.

OPENVINO_PYTHON names an interpreter that has `openvino-genai`, LLAMA_SERVER a `llama-server` binary; what is not named
is left out, and said to be.
"""

import argparse
import json
import os
import platform
import sys
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import psutil
from rich.console import Console

from benchmarks.contestants import Setting, contestants, decode_step, timed
from benchmarks.report import between, merge, perplexity, ratios, show_figures, show_profile, show_ratios
from benchmarks.workload import make_workload
from plimsoll.api.precision import ActivationPrecision, Precision
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.cli import demo_model

WINDOW = 256


def main() -> int:
    ours = argparse.ArgumentParser(add_help=False)
    ours.add_argument(
        "--precision", nargs="+", default=["auto"], choices=["auto", *get_args(Precision)], metavar="P",
        help="of ours, such as w4a16 bfloat16",
    )  # fmt: skip
    everyone = contestants(ours.parse_known_args()[0].precision)
    names = [contestant.name for contestant in everyone]
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[ours], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the demo model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2, help="times everyone runs, in alternating order")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measure within a round")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--skip-profile", action="store_true", help="leave out where a decode step's time goes")
    parser.add_argument(
        "--activation-precision", default="auto", choices=get_args(ActivationPrecision),
        help="of ours, beside weights in codes",
    )  # fmt: skip
    parser.add_argument("--text", type=Path, default=Path("examples/prose.txt"), help="what perplexity is measured on")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu.json"))
    given = parser.parse_args()
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    model = given.model or demo_model.fetch()
    machine = describe_machine(given.threads)
    console.print(
        f"{machine['processor']} ({', '.join(machine['extensions']) or 'no vector extensions known'}), "
        f"{given.threads} threads, torch {machine['torch']}, transformers {machine['transformers']}\n{model.name}"
    )
    taking_part = []
    for contestant in everyone:
        reason = contestant.missing if contestant.name in given.only else "not asked for"
        if reason:
            console.print(f"{contestant.title} is left out: {reason}", style="dim")
        else:
            taking_part.append(contestant)
    rounds: list[dict[str, Any]] = []
    for number in range(given.rounds):
        # Perplexity does not change from round to round.
        texts = windows_of(model, given.text) if number == 0 else []
        work = make_workload(given.seed + number, given.repeats, texts)
        setting = Setting(model.resolve(), work, given.threads, given.activation_precision)
        rounds.append({})
        for contestant in taking_part[:: -1 if number % 2 else 1]:
            console.print(f"round {number + 1} of {given.rounds}: {contestant.title} …", style="dim")
            try:
                rounds[-1][contestant.name] = timed(contestant, setting)
            except Exception as error:
                console.print(f"{contestant.title} failed: {error}", style="red", highlight=False)
                traceback.print_exc(limit=2)
    results = {name: measures for name in names if (measures := merge(rounds).get(name))}
    found = [*ratios(results, "amx" in machine["extensions"]), *between(results, *given.precision)]
    show_ratios(found, console)
    show_figures(results, {contestant.name: contestant.title for contestant in everyone}, console)
    steps = {} if given.skip_profile else decode_step(setting)
    if steps:
        show_profile(steps, console)
    report = {
        "machine": machine,
        "ratios": [{"title": r.title, "value": r.value, "floor": r.floor} for r in found],
        "perplexity": {name: perplexity(results, name) for name in results},
        "results": {name: {k: v for k, v in found.items() if k != "surprise"} for name, found in results.items()},
        "decode_step": steps,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=1))
    console.print(f"written to {given.output}", style="dim")
    return 0 if results else 1


def windows_of(model: Path, text: Path) -> list[list[int]]:
    """The text's token ids, in whole windows of `WINDOW`."""
    found = load_tokenizer(open_checkpoint(str(model))).encode(text.read_text())
    return [found[at : at + WINDOW] for at in range(0, len(found) - WINDOW + 1, WINDOW)]


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, what decides its speed, and the versions that matter."""
    flags: Mapping[str, list[str]] = {
        "avx2": ["avx2"],
        "avx512": ["avx512f"],
        "avx512_vnni": ["avx512_vnni"],
        "avx512_bf16": ["avx512_bf16"],
        "amx": ["amx_tile"],
    }
    name, known = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, text = line.partition(":")
            if key.strip() == "model name":
                name = text.strip()
            elif key.strip() == "flags":
                known = set(text.split())
    except OSError:
        pass  # Not Linux: the short name has to do.
    return {
        "processor": name,
        "extensions": [title for title, needed in flags.items() if known.issuperset(needed)],
        "threads": threads,
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "transformers", "plimsoll")},
    }


if __name__ == "__main__":
    sys.exit(main())
