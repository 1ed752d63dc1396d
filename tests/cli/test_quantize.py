"""`plimsoll quantize` as a process: lines, status page, last words, exit codes, and stopping in the middle."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from plimsoll.api.job_progress import JobProgress
from plimsoll.checkpoint.quantized.manifest import verify
from tests.support.checkpoints import make_checkpoint
from tests.support.quantizing import write_text


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers enough that somebody can stop it in the middle."""
    folder = tmp_path_factory.mktemp("deep")
    write_text(folder / "ships.txt")
    return make_checkpoint(folder / "model", dtype="bfloat16", num_hidden_layers=32)


def start(source: Path, out: Path, words: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "plimsoll.cli.main", "quantize", str(source), "--work-dir", str(out), "--w-group-size",
        "32", "--calib-dataset", str(source.with_name("ships.txt")), "--calib-samples", "12", "--calib-seqlen", "96",
        "--eval-samples", "2", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PLIMSOLL_TERMINATION_LOG": str(words), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_job_stopped_in_the_middle_goes_on_and_a_gate_has_a_status_of_its_own(deep: Path, tmp_path: Path) -> None:
    out, words, port = tmp_path / "out", tmp_path / "words.json", free_port()
    process = start(deep, out, words, "--status-port", str(port))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("quantizing: layer 2 of 32"):
            break
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as page:
        assert JobProgress.decode(page.read()).of == 32
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    last = JobProgress.decode(words.read_bytes())
    assert last.phase == "Quantizing"
    reached = json.loads((out / ".partial" / "state.json").read_text())["layers"]
    assert 2 <= reached < 32
    assert last.layer <= reached

    # Another number of processes goes on with the same work.
    again = start(deep, out, words, "--max-kl-divergence", "1e-6", "--workers", "2", "--threads", "2")
    said, errors = again.communicate(timeout=240)
    assert again.returncode == 3, errors
    assert f"quantizing: layer {reached} of 32" in errors
    assert "quantizing: layer 1 of 32" not in errors
    assert "past its limit: the mean KL divergence" in errors
    assert "of that divergence is avoided" in said
    assert re.search(
        r"^cache in int8: .*\ncache in int4: .*\nrecommended: kvCache.precision (float|int8|int4) ",
        said,
        re.MULTILINE,
    )
    last = JobProgress.decode(words.read_bytes())
    assert (last.phase, last.reason, last.layer) == ("Failed", "GateFailed", 32)
    assert last.output is not None
    assert last.output.digest == verify(out).digest
    assert not (out / ".partial").exists()


def test_an_error_is_one_line_and_its_reason_is_among_the_last_words(deep: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    process = start(deep, tmp_path / "out", words, "--w-group-size", "128")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "does not divide the 64 columns of self_attn.q_proj and" in errors
    assert "Use 32" in errors
    assert "Traceback" not in errors
    assert JobProgress.decode(words.read_bytes()).reason == "InvalidOption"
