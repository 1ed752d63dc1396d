"""The report: a page that stands alone, says the verdict first, and lets nothing from outside become markup."""

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from plimsoll.api.errors import PlimsollError
from plimsoll.quantjob.data import tokens_of
from plimsoll.quantjob.evaluation import Compared, Comparison
from plimsoll.quantjob.report import Report, as_json, page, write_report

HOSTILE = '</style><script>alert("x")</script><img src=x onerror=alert(1)>&amp;\'"'
ELEMENTS = set(
    "html head meta title style body h1 h2 p ul li div section table thead tbody tr th td svg line text polyline circle"
    .split()
)  # fmt: skip


def compared(kl: float, layers: int = 4) -> Compared:
    generator = np.random.default_rng(0)
    return Compared(
        generator.gamma(2.0, 1.2, 200), kl * generator.gamma(1.0, 1.0, 200), generator.random(200) < 0.8,
        tuple(kl * (layer + 1) for layer in range(layers)),
    )  # fmt: skip


def report(name: str = "awq", **options: object) -> Report:
    tokens = tokens_of(np.zeros((2, 101), np.int64), options.pop("source", "text.txt"))  # type: ignore[arg-type]
    found = Comparison(
        np.random.default_rng(1).gamma(2.0, 1.2, 200), {"rtn": compared(0.4), name: compared(0.1)}, tokens.digest,
        tokens.source, 2, 101,
    )  # fmt: skip
    settings: dict[str, object] = {
        "title": "model", "reference": "float", "comparison": found, "judged": name, "nearest": "rtn",
        "tokens": {"held out": tokens}, "settings": {"bits": 4, "clip": True}, "manifest": "sha256:" + "0" * 64,
    }  # fmt: skip
    return Report(**(settings | options))  # type: ignore[arg-type]


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_verdict_comes_first_and_the_figures_are_all_there() -> None:
    failed = report(verdict="failed", reasons=["perplexity rose by 9.00%"])
    text = page(failed)
    body = text[text.index("<body>") :]
    assert body.index("Failed its gate") < body.index("perplexity rose by 9.00%") < body.index("<table")
    words = " ".join(Elements(text).words)
    found = failed.comparison
    for other in found.others.values():
        for value in (other.perplexity, other.kl_mean, other.kl_p99):
            assert f"{value:.4g}" in words
    closed = 1 - found.others["awq"].kl_mean / found.others["rtn"].kl_mean
    assert f"{closed:.1%}" in words
    assert found.digest in words
    assert "sha256:" + "0" * 64 in words
    assert text.count("<svg") == 2
    assert "No limits were set" in page(report())
    assert "Passed its gate" in page(report(verdict="passed"))


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    seen = Elements(page(report())).seen
    assert {tag for tag, _ in seen} <= ELEMENTS
    for _, attributes in seen:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    assert not re.search(r"https?://|url\(|@import", page(report()))
    assert "prefers-color-scheme:dark" in page(report())


def test_nothing_that_comes_from_outside_becomes_markup() -> None:
    hostile = report(
        HOSTILE, title=HOSTILE, reference=HOSTILE, source=HOSTILE, verdict="failed", reasons=[HOSTILE],
        notes=[HOSTILE], settings={HOSTILE: HOSTILE}, manifest=HOSTILE,
    )  # fmt: skip
    found = Elements(page(hostile))
    assert {tag for tag, _ in found.seen} <= ELEMENTS
    assert not [name for _, attributes in found.seen for name in attributes if name.startswith("on")]
    assert " ".join(found.words).count(HOSTILE) >= 8
    assert page(hostile).count("</style>") == 1


def test_figures_that_are_no_numbers_are_written_so() -> None:
    broken = report()
    loss = np.full(200, math.nan)
    broken.comparison.others["awq"] = Compared(loss, loss, loss > 0, (math.inf, math.nan))  # type: ignore[index]
    assert "no number" in page(broken)
    found = json.loads(json.dumps(as_json(broken), allow_nan=False))
    assert found["others"]["awq"]["perplexity"] is None
    assert found["others"]["awq"]["layerError"] == [None, None]


def test_a_report_without_errors_by_layer_or_differences_leaves_the_plots_out() -> None:
    same = Compared(np.ones(200), np.zeros(200), np.ones(200, bool))
    plain = report()
    alone = Comparison(plain.comparison.loss, {"awq": same}, "sha256:0", "x", 2, 101)
    text = page(report(comparison=alone, nearest=None))
    assert "<svg" not in text
    assert "gap" not in json.dumps(as_json(report(comparison=alone, nearest=None))["others"]["awq"]["note"])


def test_both_files_are_written_whole_and_say_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    html, data = write_report(folder, report())
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    found = json.loads(data.read_text())
    awq = found["others"]["awq"]
    assert f"{awq['perplexity']:.4g}" in html.read_text()
    assert awq["klGapClosed"] == pytest.approx(1 - awq["klMean"] / found["others"]["rtn"]["klMean"])
    assert found["tokens"]["held out"]["windows"] == [2, 101]
    assert found["verdict"] == "none"


def test_both_files_say_with_which_activations_was_measured() -> None:
    assert as_json(report())["activations"] == "float32"
    assert "with activations in float32; an engine may round them to bfloat16 or 8 bits" in page(report())


def test_a_name_that_is_no_text_is_written_as_its_bytes(tmp_path: Path) -> None:
    html, _ = write_report(tmp_path, report(title=os.fsdecode(b"caf\xe9")))
    assert "caf\\udce9" in html.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlimsollError, match="cannot be written"):
        write_report(tmp_path / "file", report())


def test_what_caches_cost_is_on_the_page_with_a_recommendation() -> None:
    plain = report()
    assert "KV cache" not in page(plain)
    assert "caches" not in as_json(plain)
    awq = plain.comparison.others["awq"]
    caches = {"int8": replace(awq, loss=awq.loss + 0.0001), "int4": replace(awq, loss=awq.loss + 0.05)}
    found = report(comparison=replace(plain.comparison, caches=caches, cached="awq"))
    words = " ".join(Elements(page(found)).words)
    assert "kvCache.precision int8" in words
    assert "+5.1%" in words
    said = as_json(found)
    assert said["recommendedCache"] == "int8"
    assert said["caches"]["int4"]["increase"] == pytest.approx(np.expm1(0.05))
