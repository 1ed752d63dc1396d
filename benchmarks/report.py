"""From measures to what is printed: ratios against the floor first, then the figures themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Parts of a decode step, in the order shown.
PARTS = (
    "qkv", "attention", "output", "gate_up", "down", "head", "norms", "rope", "write_kv", "activate", "embedding",
    "around the ops", "sampling", "scheduling and books",
)  # fmt: skip
Results = Mapping[str, Mapping[str, Any]]
"""Measures by contestant, the values of all rounds in one list."""


@dataclass(frozen=True)
class Ratio:
    title: str
    ours: float | None
    theirs: float | None
    floor: float | None
    """None where the ratio is printed as it is."""
    perplexities: tuple[float | None, float | None] = (None, None)
    """Ours and theirs: a ratio of speeds means little where these differ."""
    sooner: bool = False
    """The values are seconds: less is better."""

    @property
    def value(self) -> float | None:
        if self.ours is None or self.theirs is None:
            return None
        return self.theirs / self.ours if self.sooner else self.ours / self.theirs


def merge(rounds: Sequence[Results]) -> dict[str, dict[str, Any]]:
    """One set of measures a contestant; lists are joined over the rounds, other values are the last round's."""
    merged: dict[str, dict[str, Any]] = {}
    for one in rounds:
        for name, measures in one.items():
            merged[name] = _join(merged.get(name, {}), measures)
    return merged


def _join(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(old)
    for key, value in new.items():
        if isinstance(value, list):
            joined[key] = [*old.get(key, []), *value]
        elif isinstance(value, dict):
            joined[key] = _join(old.get(key, {}), value)
        else:
            joined[key] = value
    return joined


def value(results: Results, name: str, *path: str) -> float | None:
    """The median over all repeats; None where that was not measured."""
    found: Any = results.get(name, {})
    for step in path:
        found = found.get(step) if found else None
    return median(found) if found else None


def perplexity(results: Results, name: str) -> float | None:
    """exp of the mean surprise; None where that was not measured."""
    found = results.get(name, {}).get("surprise")
    return exp(fmean(found)) if found else None


def ratios(results: Results, has_amx: bool) -> list[Ratio]:
    def pair(title: str, ours: str, theirs: str, path: Sequence[str], floor: float | None, **kind: Any) -> Ratio:
        return Ratio(
            title, value(results, ours, *path), value(results, theirs, *path), floor,
            (perplexity(results, ours), perplexity(results, theirs)), **kind,
        )  # fmt: skip

    def sooner(size: str, ours: str, theirs: str, title: str, floor: float) -> Ratio:
        what = f"first token of {int(size):,}, sooner than {title}"
        return pair(what, ours, theirs, ("first_token", size), floor, sooner=True)

    one_by_one = value(results, "transformers", "one_stream")
    qualities = (perplexity(results, "server"), perplexity(results, "transformers"))
    openvino = 2 if has_amx else 1.5
    return [
        pair("one stream over llama-server", "server", "llama", ("one_stream",), 1.5),
        pair("16 streams over llama-server", "server", "llama", ("sixteen",), 2),
        sooner("2000", "server", "llama", "llama-server", 12 if has_amx else 6),
        pair("one stream, LLM.generate over OpenVINO GenAI", "library", "openvino", ("one_stream",), 1.5),
        pair("4 streams, LLM.generate over OpenVINO GenAI", "library", "openvino", ("four",), 1.5),
        pair("16 streams, LLM.generate over OpenVINO GenAI", "library", "openvino", ("sixteen",), 1.5),
        pair("48 requests, 16 at a time, over OpenVINO GenAI", "library", "openvino", ("sustained",), 1.2),
        sooner("512", "library", "openvino", "OpenVINO GenAI", openvino),
        sooner("2000", "library", "openvino", "OpenVINO GenAI", openvino),
        sooner("512", "library", "transformers", "transformers", 1),
        sooner("2000", "library", "transformers", "transformers", 1),
        Ratio(
            "16 streams over transformers one by one", value(results, "server", "sixteen"), one_by_one, 10, qualities
        ),
        pair("one stream over transformers", "server", "transformers", ("one_stream",), 1.3),
        pair("16 streams over transformers' static batch of 16", "server", "transformers", ("sixteen",), None),
        pair("16 streams over the same in float32", "server", "transformers32", ("sixteen",), None),
        pair("one stream over transformers in float32", "server", "transformers32", ("one_stream",), None),
    ]


def between(results: Results, first: str, *others: str) -> list[Ratio]:
    """Of our first precision over each other one: 1, 4 and 16 streams, the first token of 2,000."""
    measures = {
        "one stream": ("one_stream",),
        "4 streams": ("four",),
        "16 streams": ("sixteen",),
        "first token of 2,000": ("first_token", "2000"),
    }
    return [
        Ratio(
            f"{what}, LLM.generate, {first} over {other}",
            value(results, "library", *path),
            value(results, f"library-{other}", *path),
            None,
            (perplexity(results, "library"), perplexity(results, f"library-{other}")),
            sooner=path[0] == "first_token",
        )
        for other in others
        for what, path in measures.items()
    ]


def show_ratios(found: Sequence[Ratio], console: Console) -> None:
    table = Table("ratio", "", "floor", "", "perplexities", title="Plimsoll beside its peers", title_justify="left")
    for column in (table.columns[1], table.columns[2], table.columns[4]):
        column.justify = "right"
    for ratio in found:
        quality = " / ".join("–" if p is None else f"{p:.2f}" for p in ratio.perplexities)
        if ratio.value is None:
            table.add_row(ratio.title, "–", f"{ratio.floor or ''}", "not measured", "", style="dim")
        elif ratio.floor is None:
            table.add_row(ratio.title, f"{ratio.value:.2f} ×", "", "", quality)
        else:
            reached = ratio.value >= ratio.floor
            mark = Text("reached", "green") if reached else Text("below", "red")
            table.add_row(ratio.title, f"{ratio.value:.2f} ×", f"{ratio.floor:g} ×", mark, quality)
    console.print(table)


def show_figures(results: Results, titles: Mapping[str, str], console: Console) -> None:
    """Medians; the least and the most seen in brackets."""
    columns = {
        "one stream\ntokens/s": ("one_stream",),
        "4 streams\ntokens/s": ("four",),
        "16 streams\ntokens/s": ("sixteen",),
        "48 at 16\ntokens/s": ("sustained",),
        "first of 512\ns": ("first_token", "512"),
        "first of 2,000\ns": ("first_token", "2000"),
    }
    table = Table(
        "", "perplexity", *columns, "prefill\ntokens/s", "strangers\ncores", title="Figures", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measures in results.items():
        cells = [_spread(measures, path) for path in columns.values()]
        first, tokens = value(results, name, "first_token", "2000"), measures["prompt_tokens"].get("2000")
        prefill = f"{tokens / first:.0f}" if first and tokens else "–"
        quality = perplexity(results, name)
        table.add_row(
            titles[name], f"{quality:.2f}" if quality else "–", *cells, prefill, f"{measures['strangers']:.2f}"
        )
    console.print(table)
    lost = max((measures["strangers"] for measures in results.values()), default=0.0)
    if lost > 0.1:
        said = f"Other processes took up to {lost:.1f} cores meanwhile: figures are low and uneven."
        console.print(said, style="yellow")


def show_profile(found: dict[str, Any], console: Console) -> None:
    sizes = list(found["batches"])
    table = Table(
        "milliseconds of a decode step",
        *(f"batch {size}" for size in sizes),
        title_justify="left",
        title=f"Where it goes: {found['kernels']} kernels, {found['precision']}, context {found['context']}",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name in PARTS:
        cells = []
        for batch in found["batches"].values():
            ms = batch["parts"].get(name, 0.0)
            cells.append(f"{ms:.2f}  {ms / sum(batch['parts'].values()):4.0%}")
        table.add_row(name, *cells)
    table.add_section()
    for words, key in (("whole step, one by one, without timers", "one_by_one"), ("whole step, as served", "step")):
        table.add_row(words, *(f"{batch[key]:.2f}      " for batch in found["batches"].values()))
    speeds = (f"{int(size) / batch['step'] * 1000:.0f}      " for size, batch in found["batches"].items())
    table.add_row("tokens a second, decoding", *speeds)
    console.print(table)


def _spread(measures: Mapping[str, Any], path: Sequence[str]) -> str:
    found: Any = measures
    for step in path:
        found = found.get(step) if found else None
    if not found:
        return "–"
    digits = 1 if max(found) >= 10 else 2
    middle = f"{median(found):.{digits}f}"
    return middle if len(found) == 1 else f"{middle}\n({min(found):.{digits}f}–{max(found):.{digits}f})"
