"""An option that takes one of a few values says which, in the same words everywhere."""

from pathlib import Path

import pytest

from plimsoll.cli.main import main

LEVELS = "debug, info, warning, error"


@pytest.mark.parametrize(
    ("arguments", "option", "allowed"),
    [
        (["serve", "x", "--log-level", "odd"], "--log-level", LEVELS),
        (["up", "-f", "x", "--log-level", "odd"], "--log-level", LEVELS),
        (["pod", "--log-level", "odd"], "--log-level", LEVELS),
        (["serve", "x", "--dtype", "odd"], "--dtype", "auto, bfloat16, float16, float32, w4a16, w8a16"),
        (["serve", "x", "--model-format", "odd"], "--model-format", "hf, awq, gptq, compressed-tensors, gguf"),
        (["serve", "x", "--quant-policy", "3"], "--quant-policy", "0, 4, 8"),
        (["serve", "x", "--activation-precision", "odd"], "--activation-precision", "auto, int8, bfloat16"),
        (["serve", "x", "--scheduling-policy", "odd"], "--scheduling-policy", "fcfs, priority"),
        (["plan", "-f", "x", "--device", "odd"], "--device", "cpu, cuda"),
        (["plan", "-f", "x", "--activation-precision", "odd"], "--activation-precision", "auto, int8, bfloat16"),
        (["plan", "-f", "x", "-o", "odd"], "--output", "table, json"),
        (["eval", "x", "y", "-o", "odd"], "--output", "table, json"),
        (["inspect", "x", "-o", "odd"], "--output", "text, json"),
        (["bench", "--api", "odd"], "--api", "chat, completions"),
        (["crds", "--kind", "odd"], "--kind", "ModelDeployment, QuantizationJob"),
        (["convert", "x", "absent", "--dtype", "odd"], "--dtype", "bfloat16, float16, float32"),
        (["quantize", "FOLDER", "--work-dir", "absent", "--method", "odd"], "--method", "awq, rtn, int8"),
        (["quantize", "FOLDER", "--work-dir", "absent", "--format", "odd"], "--format", "awq, compressed-tensors"),
        (["quantize", "FOLDER", "--work-dir", "absent", "--w-group-size", "5"], "--w-group-size", "32, 64, 128"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_them_is_answered_with_the_list(
    arguments: list[str], option: str, allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path) if word == "FOLDER" else word for word in arguments])
    assert ended.value.code == 1
    words = capsys.readouterr().err
    value = arguments[-1] if arguments[-1].isdigit() else "'odd'"
    assert f"error: {option}: must be one of {allowed} (found {value})" in words
    assert "Traceback" not in words
