"""`plimsoll eval` as a shell sees it: figures, reports, exit statuses, and what it says of wrong input."""

import json
import os
import re
from pathlib import Path

import pytest

from plimsoll.cli.main import main
from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import serving

TEXT = "A ship's line shows how far she may be loaded before she founders. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two`, checkpoints of one shape; `small`, of another vocabulary; `text.txt`."""
    root = tmp_path_factory.mktemp("eval")
    make_checkpoint(root / "one")
    make_checkpoint(root / "two", seed=1)
    make_checkpoint(root / "small", vocab_size=328)
    (root / "text.txt").write_text(TEXT * 60)
    return root


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(["eval", *arguments])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


FEW = ("--dataset", "text.txt", "--samples", "2", "--seqlen", "24")


def test_figures_come_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "one", "two", *FEW, "--round-to-nearest", "4/32", "--report", str(tmp_path / "r"))
    assert code == 0
    assert re.fullmatch(r"(evaluating: .* so far.*\n)+complete: .*\n", err), "where it is, and nothing else"
    assert re.search(r"^two +\d", out, re.MULTILINE)
    assert "46 positions of text.txt" in out
    assert f"Report: {tmp_path / 'r' / 'report.html'}" in out
    code, out, _ = run(capsys, "one", "two", *FEW, "--round-to-nearest", "4/32", "-o", "json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "r" / "report.json").read_text()), "the same figures every time"
    assert list(json.loads(out)["others"]) == ["round to nearest", "two"]


def test_a_checkpoint_passes_every_limit_against_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "one", "one", *FEW, "--max-perplexity-increase", "0", "--max-kl-divergence", "0", "-o", "json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] == "passed"
    (itself,) = found["others"].values()
    assert (itself["klMax"], itself["increase"], itself["top1Agreement"]) == (0, 0, 1)


def test_a_limit_that_is_passed_ends_in_three_with_the_figures_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "one", "two", *FEW, "--max-kl-divergence", "0.01", "-o", "json")
    assert code == 3
    assert "past its limit: the mean KL divergence is" in err
    assert json.loads(out)["verdict"] == "failed"


def test_an_output_that_failed_its_gate_is_measured_and_said_to_be_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [
        "--w-group-size",
        "32",
        "--method",
        "rtn",
        "--calib-dataset",
        "text.txt",
        "--calib-seqlen",
        "24",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "one", "--work-dir", str(out), *options, "--max-kl-divergence", "1e-6"])
    assert ended.value.code == 3
    capsys.readouterr()
    code, _, err = run(capsys, "one", str(out), *FEW, "--report", str(tmp_path / "report"), "-o", "json")
    assert code == 0
    why = f"{out}: this quantized checkpoint failed its gate: the mean KL divergence is"
    assert err.startswith(f"note: {why}")
    assert "It is measured here and served nowhere\n" in err
    assert json.loads((tmp_path / "report" / "report.json").read_text())["notes"][0].startswith(why)
    code, _, err = run(capsys, str(out), "two", "--samples", "1", "--seqlen", "16")
    assert code == 1, "text that it would write itself is the engine's, which serves"
    assert "failed its gate" in err


def test_self_text_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "one", "two", "--samples", "1", "--seqlen", "16", "-o", "json")
    assert code == 0
    assert json.loads(out)["tokens"]["held out"]["source"].startswith("self, sampled in bfloat16 with seed")


def test_an_endpoint_is_compared_too(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with serving(folder / "one") as endpoint:
        code, out, _ = run(capsys, "one", endpoint.url, *FEW, "--max-kl-divergence", "0.001")
    assert code == 0
    assert "100.0%" in out
    assert "a lower bound" in out


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no such reference": (("none", "two"), "no such file or folder"),
    "no such checkpoint": (("one", "none"), "no such file or folder"),
    "a text in its place": (("one", "text.txt"), "text.txt"),
    "no such dataset": (("one", "two", "--dataset", "none.txt"), "--dataset: there is no such file"),
    "too little text": (("one", "two", "--dataset", "text.txt", "--samples", "9000"), "tokens, and 2304000 are needed"),
    "windows beyond the model": (("one", "two", *FEW[:2], "--seqlen", "500"), "--seqlen: is longer than the 256"),
    "another vocabulary": (("one", "small", *FEW), "has a vocabulary of 328 tokens"),
    "a limit of nonsense": (("one", "two", *FEW, "--max-perplexity-increase", "2"), "2% if per cent are meant"),
    "a divergence of nonsense": (("one", "two", *FEW, "--max-kl-divergence", "x"), "--max-kl-divergence: must be"),
    "a rounding of nonsense": (("one", "two", *FEW, "--round-to-nearest", "3/7"), "Use 8, 4/32, 4/64, 4/128"),
    "groups that do not divide": (("one", "two", *FEW, "--round-to-nearest", "4/128"), "--round-to-nearest"),
    "rounding of an endpoint": (("one", "http://127.0.0.1:9", "--round-to-nearest", "8"), "goes with two checkpoints"),
    "a key without an endpoint": (("one", "two", "--api-key-file", "text.txt"), "goes with an endpoint"),
    "nobody at the endpoint": (("one", "http://127.0.0.1:9/v1", *FEW), "nothing answers there"),
    "an output of nonsense": (("one", "two", "-o", "xml"), "--output: must be one of table, json"),
    "memory of nonsense": (("one", "two", "--memory", "lots"), "--memory"),
    "memory that holds nothing": (("one", "two", "--memory", "1Mi", *FEW[2:]), "the whole model in memory"),
    "scratch that is not there": (("one", "two", *FEW, "--scratch", "nowhere"), "--scratch: there is no such folder"),
    "a report that cannot be": (("one", "two", *FEW, "--report", "text.txt"), "the report cannot be written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[name]
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert out == ""


def test_hidden_states_may_lie_on_disk(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outputs = [run(capsys, "one", "two", *FEW, "-o", "json", *more)[:2] for more in ((), ("--scratch", str(tmp_path)))]
    assert outputs[0] == outputs[1]
    assert not os.listdir(tmp_path), "and are gone after"
