"""The `plimsoll` command as a shell sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.cli import demo_model
from plimsoll.cli.main import COMMANDS, HIDDEN


def plimsoll(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plimsoll.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = """
import sys
from plimsoll.cli import main
try:
    main.main(["--help"])
except SystemExit as done:
    print(done.code, *sorted({"torch", "transformers", "matplotlib", "fastapi", "huggingface_hub"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert last == "0"
    assert all(any(name in line for line in shown) for name in COMMANDS)
    assert not any(f" {name} " in line for line in shown for name in HIDDEN)


@pytest.mark.parametrize("name", [*COMMANDS, *HIDDEN])
def test_every_command_explains_itself(name: str) -> None:
    done = plimsoll(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"plimsoll {name}" in done.stdout


def test_an_unknown_command_is_wrong_usage() -> None:
    done = plimsoll("levitate")
    assert done.returncode == 2
    assert "levitate" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = plimsoll("bench", "--url", "http://127.0.0.1:9", "--output-json", str(tmp_path / "out.json"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "http://127.0.0.1:9" in done.stderr


def test_version_names_what_it_stands_on() -> None:
    assert "plimsoll" in plimsoll("version").stdout
    found = json.loads(plimsoll("version", "-o", "json").stdout)
    assert found["plimsoll"]
    assert found["torch"]
    refused = plimsoll("version", "-o", "xml")
    assert refused.returncode == 2
    assert "must be one of text, json" in refused.stderr


def test_the_demo_model_fixture_is_the_real_one(smollm2_gguf: Path) -> None:
    assert demo_model.file_sha256(smollm2_gguf) == demo_model.SHA256
