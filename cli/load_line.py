"""The budget for the eye: a bar up to the load line, and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plimsoll.api.quantity import format_bytes
from plimsoll.cli import screen

#: (term of the budget, its name, colour, mark). The mark tells segments apart where there is no colour.
TERMS = (
    ("context", "context", "bright_black", "▒"),
    ("weights", "weights", "blue", "█"),
    ("draft", "draft model", "yellow", "█"),
    ("workspace", "workspace", "magenta", "▓"),
    ("kvCache", "KV cache", "green", "█"),
    ("hostCache", "host tier", "cyan", "▒"),
    ("headroom", "headroom", "bright_black", "·"),
)
EXPLAINED = {
    "context": "driver, interpreter and libraries",
    "weights": "exact",
    "draft": "exact",
    "workspace": "",
    "kvCache": "",
    "hostCache": "a second tier of cache",
    "headroom": "left alone",
}
#: Columns of the ranks of a group, and where the report has them.
RANK_COUNTS = {"heads": "heads", "KV": "kvHeads", "width": "width"}
RANK_BYTES = {
    "weights": "weights", "draft": "draft", "workspace": "workspace", "KV cache": "kvCache", "in use": "inUse",
}  # fmt: skip


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the report of `plimsoll plan` to stdout."""
    console = console or screen.console(stderr=False)
    device, terms = report["device"], report["perDevice"]
    spread = f" for each of {report['tensor']} ranks" if report["tensor"] > 1 else ""
    stored = f" ({report['asStored']} as stored)" if report["asStored"] else ""
    console.print(
        Text.assemble(
            (report["name"], "bold"),
            f" · {report['architecture']} · {report['precision']}{stored} · "
            f"{device['kind']} {format_bytes(device['total'])}{spread} · kernels {device['kernels']}",
        )
    )
    console.print(bar(terms, max(24, min(console.width - 4, 76))))
    console.print(_table(report))
    if report["tensor"] > 1:
        console.print(_ranks(report["ranks"]))
    if report["pods"]["count"] > 1:
        console.print(_pods(report["pods"]), highlight=False)
    held = "" if report["cachePrecision"] == "float" else f" at {report['cachePrecision']}"
    console.print(
        f"cache: {report['kvTokens']} tokens{held} in {report['blocks']} blocks of {report['blockSize']} "
        f"({format_bytes(report['blockBytes'])} each)\n{_host_tier(report)}"
        f"requests: room for {report['concurrentRequests']} at once of {report['maxLength']} tokens "
        f"(length: {report['maxLengthFrom']})",
        highlight=False,
    )
    if report["activations"]:
        console.print(report["activations"], highlight=False)
    for item in report["rejected"]:
        console.print(f"passed over {item['option']}: {item['reason']}", style="yellow", highlight=False)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False)
    if report["notRunYet"]:
        console.print(f"sized, and not run yet: {report['notRunYet']}", style="yellow", highlight=False)


def _host_tier(report: Mapping[str, Any]) -> str:
    """What a second tier holds, as a line; empty where there is none."""
    blocks = report["hostBlocks"]
    if not blocks:
        return ""
    where = "" if "hostCache" in report["perDevice"] else ", beside the line: memory of the pod"
    held = format_bytes(blocks * report["hostBlockBytes"])
    return f"host tier: {blocks * report['blockSize']} tokens in {blocks} blocks ({held} of each rank{where})\n"


def _pods(pods: Mapping[str, int]) -> str:
    """What a replica over several pods takes of a cluster."""
    ranks = f"{pods['ranksEach']} rank{'s' if pods['ranksEach'] > 1 else ''}"
    memory = f" and {format_bytes(pods['memoryEach'])} of memory" if "memoryEach" in pods else ""
    return f"replica: {pods['count']} pods, each with {ranks}{memory}"


def bar(terms: Mapping[str, int], width: int) -> Text:
    """One cell per share of the total; what is there at all gets at least one. The line is at the end."""
    cells = shares([terms.get(name, 0) for name, *_ in TERMS], width)
    text = Text()
    for (_, _, colour, mark), count in zip(TERMS, cells, strict=True):
        text.append(mark * count, style=colour)
    text.append("⊖", style="bold red")
    return text


def shares(sizes: list[int], width: int) -> list[int]:
    """`width` cells over `sizes`, by largest remainder, at least one for each that is above 0."""
    total = sum(sizes) or 1
    exact = [size * width / total for size in sizes]
    cells = [max(int(part), 1 if size else 0) for part, size in zip(exact, sizes, strict=True)]
    while sum(cells) != width:
        step = 1 if sum(cells) < width else -1
        # The cell goes where it brings the count nearest to its share; nothing that is there disappears.
        free = [i for i, size in enumerate(sizes) if size and cells[i] + step > 0]
        index = max(free or [len(sizes) - 1], key=lambda i: step * (exact[i] - cells[i]))
        cells[index] += step
    return cells


def _table(report: Mapping[str, Any]) -> Table:
    terms, total = report["perDevice"], report["device"]["total"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="dim")
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in report["workspace"].items() if size)
    for name, title, colour, mark in TERMS:
        if name not in terms:
            continue
        explained = parts if name == "workspace" else EXPLAINED[name]
        share = f"{100 * terms[name] / total:.1f} %"
        table.add_row(Text(mark, style=colour), title, format_bytes(terms[name]), share, explained)
    in_use = report["inUse"]
    table.add_row("", Text("in use", style="bold"), format_bytes(in_use), f"{100 * in_use / total:.1f} %", "")
    table.add_row(Text("⊖", style="bold red"), Text("line", style="bold"), format_bytes(total), "", "")
    return table


def _ranks(ranks: Sequence[Mapping[str, int]]) -> Table:
    """One row a rank: its share of the model, and its bytes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    terms = {title: name for title, name in RANK_BYTES.items() if name != "draft" or "draft" in ranks[0]}
    for name in ("rank", *RANK_COUNTS, *terms):
        table.add_column(name, justify="right")
    for rank in ranks:
        counts = [str(rank[name]) for name in ("rank", *RANK_COUNTS.values())]
        table.add_row(*counts, *(format_bytes(rank.get(name, 0)) for name in terms.values()))
    return table
