"""Triton's kernels on its interpreter, and where the table that uses them is chosen."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from plimsoll.runtime.kernels import selection

CHECKS = Path(__file__).with_name("interpreted_triton_quant.py")


def test_products_on_the_interpreter_agree_with_the_plain_table() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        cwd=CHECKS.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def test_a_gpu_gets_triton_where_it_is_installed_and_the_plain_table_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    cuda = torch.device("cuda")
    monkeypatch.setenv("CC", sys.executable)
    assert selection.select(cuda, torch.bfloat16).name == "torch, triton"
    assert selection.select(cuda, torch.bfloat16, "torch").name == "torch"
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "plimsoll.runtime.kernels.triton_quant")
    assert selection.select(cuda, torch.bfloat16).name == "torch"


def test_a_gpu_without_a_c_compiler_gets_the_plain_table_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert selection.select(torch.device("cuda"), torch.bfloat16).name == "torch"
    assert "Triton needs a C compiler" in caplog.text
    monkeypatch.setenv("CC", "icx")
    assert selection.select(torch.device("cuda"), torch.bfloat16).name == "torch"
    assert "icx is not there" in caplog.text
    (tmp_path / "icx").touch(mode=0o755)
    assert selection.select(torch.device("cuda"), torch.bfloat16).name == "torch, triton"
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    assert selection.select(torch.device("cuda"), torch.bfloat16).name == "torch"
    assert "Python.h is not there" in caplog.text
