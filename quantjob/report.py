"""What quantizing cost, for people and for programs: one HTML page that needs nothing else, and the same as JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plimsoll.api.cache_loss import recommendation
from plimsoll.api.errors import CheckpointError
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.evaluation import Compared, Comparison
from plimsoll.quantjob.failures import kind_of
from plimsoll.quantjob.plots import divergence_shares, layer_errors

NAMES = ("report.html", "report.json")
#: What is there while one of them is written.
ASIDE = tuple(f".{name}.tmp" for name in NAMES)
Verdict = Literal["passed", "failed", "none"]


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        title: of the page.
        reference: what the comparison is against.
        comparison: the figures.
        judged: which of `comparison.others` was held against the limits; None for the only one.
        nearest: which of them is round-to-nearest: what it cost is the gap to close.
        verdict: `none` where no limit was set; `reasons`: why it failed.
        tokens: by use (`calibration`, `held out`).
        settings: the recipe and all else that decided the figures, by name.
        manifest: digest of the checkpoint that was written, if one was.
        notes: what went otherwise than usual.
    """

    title: str
    reference: str
    comparison: Comparison
    judged: str | None = None
    nearest: str | None = None
    verdict: Verdict = "none"
    reasons: Sequence[str] = ()
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: str | None = None
    notes: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """The name that was judged."""
        return self.judged if self.judged is not None else next(iter(self.comparison.others))


def check_folder(folder: Path) -> None:
    """Raises CheckpointError where no report can be written into `folder`, before it is worth a comparison."""
    probe = folder / f"{ASIDE[0]}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(error, folder) from None


def write_report(folder: Path, report: Report) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into `folder`, each whole or not at all. Raises CheckpointError."""
    texts = (page(report), json.dumps(as_json(report), indent=1) + "\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, aside, text in zip(NAMES, ASIDE, texts, strict=True):
            fresh = folder / aside
            # The name of a file may be bytes that are no text.
            fresh.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(fresh, folder / name)
    except OSError as error:
        raise _not_written(error, folder) from None
    return folder / NAMES[0], folder / NAMES[1]


def _not_written(error: OSError, folder: Path) -> CheckpointError:
    return kind_of(error)(
        f"the report cannot be written: {error.strerror or error}", field="report", value=str(folder),
        fix="Make room there, or name a folder that can be written",
    )  # fmt: skip


ROWS = (
    "Checkpoints were computed with activations in float32; an engine may round them to bfloat16 or 8 bits as they "
    "enter products (activationPrecision)."
)
"""What the figures leave out."""


def as_json(report: Report) -> dict[str, Any]:
    """JSON's own types alone; a figure that is no finite number is null."""
    found = report.comparison
    others = {
        name: {
            "perplexity": _finite(other.perplexity),
            "increase": _finite(other.perplexity / found.perplexity - 1),
            "klMean": _finite(other.kl_mean),
            "klP50": _finite(float(np.median(other.kl))),
            "klP99": _finite(other.kl_p99),
            "klMax": _finite(float(other.kl.max())),
            "top1Agreement": _finite(other.top1_agreement),
            "layerError": [_finite(value) for value in other.layer_error],
            "klGapClosed": _finite(kl_gap_closed(report, other)),
            "note": other.note,
        }
        for name, other in found.others.items()
    }
    caches = {
        name: {
            "perplexity": _finite(one.perplexity),
            "increase": _finite(one.perplexity / found.others[found.cached].perplexity - 1),
            "klMean": _finite(one.kl_mean),
            "klP99": _finite(one.kl_p99),
            "top1Agreement": _finite(one.top1_agreement),
        }
        for name, one in found.caches.items()
    }
    measured = {"caches": caches, "recommendedCache": found.recommended_cache} if caches else {}
    return {
        "version": 1, "title": report.title, "verdict": report.verdict, "reasons": list(report.reasons),
        "reference": {"name": report.reference, "perplexity": _finite(found.perplexity)}, "activations": "float32",
        "subject": report.subject, "others": others, "positions": found.positions,
        **measured,
        "tokens": {
            use: {"source": tokens.source, "digest": tokens.digest, "windows": list(tokens.windows.shape)}
            for use, tokens in report.tokens.items()
        },
        "settings": {name: value if isinstance(value, int | float | bool | None) else str(value)
                     for name, value in report.settings.items()},
        "manifest": report.manifest, "notes": list(report.notes),
    }  # fmt: skip


def kl_gap_closed(report: Report, other: Compared) -> float:
    """Share of round-to-nearest's divergence that `other` avoids; not a number where there is nothing to close."""
    nearest = None if report.nearest is None else report.comparison.others[report.nearest]
    if nearest is None or nearest is other or not nearest.kl_mean:
        return math.nan
    return 1 - other.kl_mean / nearest.kl_mean


def page(report: Report) -> str:
    """The page. All text from outside (names, settings, notes) is escaped; the page loads and runs nothing."""
    found = report.comparison
    words = {"passed": "Passed its gate", "failed": "Failed its gate", "none": "No limits were set"}
    verdict = f'<p class="verdict {report.verdict}">{words[report.verdict]}</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    subject = found.others[report.subject]
    closed = kl_gap_closed(report, subject)
    summary = (
        f"Perplexity {_number(found.perplexity)} → {_number(subject.perplexity)} "
        f"({_percent(subject.perplexity / found.perplexity - 1, signed=True)}), "
        f"mean KL divergence {_number(subject.kl_mean)} nats a token, the same likeliest token at "
        f"{_percent(subject.top1_agreement)} of {found.positions} positions."
    )
    if math.isfinite(closed):
        avoided = f"{_percent(closed)} is avoided" if closed > 0 else "nothing is avoided"
        summary += f" Of the divergence that rounding to nearest costs, {avoided}."
    summary += f" {ROWS}"
    layers = {name: other.layer_error for name, other in found.others.items() if other.layer_error}
    plots = [
        ("Error by layer", "How far hidden states are from the reference's after each layer.", layer_errors(layers)),
        (
            "Where predictions differ", "For each KL divergence, the share of positions that are worse.",
            divergence_shares({name: other.kl for name, other in found.others.items()}),
        ),
    ]  # fmt: skip
    drawn = "".join(
        f"<section><h2>{title}</h2><p>{words}</p>{picture}</section>" for title, words, picture in plots if picture
    )
    notes = [*report.notes, *(f"{name}: {other.note}" for name, other in found.others.items() if other.note)]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{escape(report.title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(report.title)}</h1>
{verdict}{f"<ul>{reasons}</ul>" if reasons else ""}<p>{escape(summary)}</p>
{_figures(report)}
{_caches(report)}
{drawn}
{f"<section><h2>Notes</h2><ul>{listed}</ul></section>" if listed else ""}
{_pairs("Settings", {name: _plain(value) for name, value in report.settings.items()})}
{_pairs("Texts", _texts(report))}
</body></html>
"""


def _figures(report: Report) -> str:
    found = report.comparison
    heads = ("", "perplexity", "increase", "KL mean", "KL p99", "same likeliest token", "KL gap closed")
    rows = [(report.reference, _number(found.perplexity), "", "", "", "", "")]
    for name, other in found.others.items():
        closed = kl_gap_closed(report, other)
        rows.append((
            name, _number(other.perplexity), _percent(other.perplexity / found.perplexity - 1, signed=True),
            _number(other.kl_mean), _number(other.kl_p99), _percent(other.top1_agreement),
            _percent(closed) if math.isfinite(closed) else "",
        ))  # fmt: skip
    return _table(heads, rows)


def _caches(report: Report) -> str:
    found = report.comparison
    if not found.caches:
        return ""
    floats = found.others[found.cached]
    rows = [("floats", _number(floats.perplexity), "", "", "", "")]
    for name, one in found.caches.items():
        rows.append((
            name, _number(one.perplexity), _percent(one.perplexity / floats.perplexity - 1, signed=True),
            _number(one.kl_mean), _number(one.kl_p99), _percent(one.top1_agreement),
        ))  # fmt: skip
    chosen = found.recommended_cache
    words = (
        f"{found.cached} with its KV cache in codes, beside a cache of floats. Recommended: kvCache.precision {chosen} "
    )
    heads = ("cache", "perplexity", "increase", "KL mean", "KL p99", "same likeliest token")
    return f"<section><h2>KV cache</h2><p>{escape(words)}({recommendation(chosen)}).</p>{_table(heads, rows)}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )  # fmt: skip
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _texts(report: Report) -> dict[str, str]:
    found = {
        use: f"{tokens.source}: {tokens.windows.shape[0]} × {tokens.windows.shape[1]} tokens, {tokens.digest}"
        for use, tokens in report.tokens.items()
    }
    return found | ({"checkpoint": report.manifest} if report.manifest else {})


def _pairs(title: str, pairs: Mapping[str, str]) -> str:
    if not pairs:
        return ""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs.items())
    return f'<section><h2>{title}</h2><table class="pairs">{rows}</table></section>'


def _plain(value: Any) -> str:
    return (
        {True: "yes", False: "no", None: "–"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no number"


def _percent(value: float, *, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.1%}" if math.isfinite(value) else "no number"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


STYLE = """
:root{--ink:#1b2430;--soft:#5b6776;--line:#d8dee6;--page:#fff;--card:#f6f8fa;--good:#1a7f4b;--bad:#b3261e;
--c0:#c2571a;--c1:#1f6fb2;--c2:#5f8a1f;--c3:#8a4fb0}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa7b5;--line:#334050;--page:#12181f;--card:#1a222c;
--good:#5cc98f;--bad:#ff8a80;--c0:#f2a065;--c1:#74b6ec;--c2:#a9cf6b;--c3:#c89be6}}
body{margin:2rem auto;padding:0 1rem;max-width:56rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .3rem}section p{color:var(--soft);margin:0}
.verdict{display:inline-block;margin:0;padding:.3rem .8rem;border-radius:.4rem;font-weight:600;background:var(--card)}
.passed{color:var(--good)}.failed{color:var(--bad)}.none{color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:500}td:first-child,.pairs td,.pairs th{text-align:left;overflow-wrap:anywhere}
td:first-child{max-width:18rem}.pairs th{min-width:8rem}.pairs td{max-width:none}
svg{width:100%;height:auto;margin-top:.5rem}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--line)}.line{fill:none;stroke-width:2}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.dot.c0{fill:var(--c0)}.dot.c1{fill:var(--c1)}.dot.c2{fill:var(--c2)}.dot.c3{fill:var(--c3)}
"""
