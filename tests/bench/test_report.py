"""The comparison with peers: what it asks of everyone, and how it reads the answers."""

import io
from math import log
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.report import merge, perplexity, ratios, show_figures, show_ratios, value
from benchmarks.workload import Workload, make_workload
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer


def measures(scale: float) -> dict[str, object]:
    return {
        "one_stream": [10.0 * scale, 12.0 * scale, 90.0 * scale],
        "sixteen": [100.0 * scale],
        "first_token": {"512": [2.0], "2000": [8.0 / scale]},
        "prompt_tokens": {"2000": 2000},
        "surprise": [log(40 * scale), log(40 * scale)],
        "strangers": 0.0,
    }


def printed(show: object, *arguments: object) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    show(*arguments, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_prompts_have_the_length_they_claim_and_no_common_beginning(smollm2_gguf: Path, tmp_path: Path) -> None:
    work = make_workload(seed=1, repeats=2)
    tokenizer = load_tokenizer(open_checkpoint(smollm2_gguf))
    texts = [*work.one_stream, *work.sustained, *(text for batch in work.sixteen for text in batch), *work.long["2000"]]
    counts = {len(text.split()): len(tokenizer.encode(text)) for text in texts}
    assert counts[2000] == pytest.approx(2000, rel=0.01)
    assert counts[100] == pytest.approx(100, rel=0.02)
    assert len({tuple(text.split()[:8]) for text in texts}) == len(texts)
    work.write(tmp_path / "work.json")
    assert Workload.read(tmp_path / "work.json") == work


def test_rounds_are_joined_and_the_median_compared() -> None:
    merged = merge([{"server": measures(1)}, {"server": measures(2)}])
    assert merged["server"]["one_stream"] == [10, 12, 90, 20, 24, 180]
    assert value(merged, "server", "one_stream") == 22
    assert value(merged, "server", "first_token", "2000") == 6
    assert value(merged, "server", "sustained") is None
    assert value(merged, "nobody", "one_stream") is None


@pytest.mark.parametrize(("has_amx", "floor"), [(False, 6), (True, 12)])
def test_ratios_are_held_against_their_floors(has_amx: bool, floor: float) -> None:
    found = {r.title: r for r in ratios({"server": measures(3), "llama": measures(1)}, has_amx)}
    sooner = found["first token of 2,000, sooner than llama-server"]
    assert sooner.value == pytest.approx(3)
    assert sooner.floor == floor
    assert found["16 streams over llama-server"].value == pytest.approx(3)
    assert found["one stream over transformers"].value is None
    text = printed(show_ratios, list(found.values()))
    assert "below" in text
    assert "reached" in text
    assert "not measured" in text


def test_a_speed_is_printed_beside_the_perplexity_that_it_was_had_at() -> None:
    """A window is read once, in the first of the rounds."""
    unread = {name: found for name, found in measures(1).items() if name != "surprise"}
    merged = merge([{"server": measures(1), "llama": measures(1.25)}, {"server": unread, "llama": unread}])
    assert perplexity(merged, "server") == pytest.approx(40)
    found = {r.title: r for r in ratios(merged, has_amx=False)}
    assert "40.00 / 50.00" in printed(show_ratios, [found["one stream over llama-server"]])
    assert "50.00" in printed(show_figures, merged, {"server": "Plimsoll", "llama": "llama-server"})


def test_figures_say_when_the_machine_was_not_ours_alone() -> None:
    quiet = {"server": measures(1)}
    noisy = {"server": measures(1) | {"strangers": 0.7}}
    assert "250" in printed(show_figures, quiet, {"server": "Plimsoll"})  # prefill: 2,000 tokens in 8 s
    assert "Other processes" not in printed(show_figures, quiet, {"server": "Plimsoll"})
    assert "Other processes took up to 0.7 cores" in printed(show_figures, noisy, {"server": "Plimsoll"})
