"""`make` takes the CPU build of torch where no NVIDIA driver is found. pip is the real one, on a folder of wheels."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

from plimsoll.cli import torch_build

CUDA_NEEDS = ("filelock", 'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"')
ONLY_CUDA = {"2.13.0": CUDA_NEEDS}
BOTH = ONLY_CUDA | {"2.13.0+cpu": ("filelock",)}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pip's index has CUDA builds of torch for Linux only")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds wheels and is PATH, on a machine without torch, NVIDIA's driver and pip's index."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    return tmp_path


def install(machine: Path, wheels: dict[str, tuple[str, ...]], uv: str) -> list[str]:
    """Runs the module beside a `uv` of these shell lines; returns the calls of that `uv`."""
    for version, requirements in wheels.items():
        with zipfile.ZipFile(machine / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            folder = f"torch-{version}.dist-info"
            needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
            wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{needs}")
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "")
    calls = machine / "calls"
    (machine / "uv").write_text(f'#!/bin/sh\necho "$UV_HTTP_TIMEOUT $*" >> {calls}\n{uv}\n')
    (machine / "uv").chmod(0o755)
    assert torch_build.main(["-c", str(machine / "constraints.txt")]) == 0
    return calls.read_text().splitlines() if calls.exists() else []


def test_without_a_driver_the_cpu_build_is_installed_by_uv(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, installed = install(machine, ONLY_CUDA, "exit 0")
    assert asked.startswith(f"{torch_build.ANSWER_SECONDS} pip install --dry-run")
    assert installed.startswith(f" pip install --python {sys.executable} --torch-backend cpu --no-deps")
    assert "CPU build of torch is installed" in capsys.readouterr().err


def test_an_index_that_does_not_answer_leaves_pips_build_and_its_size(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(machine, ONLY_CUDA, "echo 'error: Failed to fetch: the index' >&2\necho '  cause: dns' >&2\nexit 2")
    said = capsys.readouterr().err
    assert len(calls) == 1
    assert "error: Failed to fetch: the index" in said
    assert "cause" not in said
    assert "5 GB" in said
    assert "PIP_EXTRA_INDEX_URL" in said


def test_a_cpu_build_that_the_user_offers_comes_first(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(machine, BOTH, "exit 0") == []
    assert capsys.readouterr().err == ""


def test_with_a_driver_pip_chooses(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "nvidia-smi").write_text("#!/bin/sh\n")
    (machine / "nvidia-smi").chmod(0o755)
    assert install(machine, ONLY_CUDA, "exit 0") == []


def test_every_installation_of_the_makefile_looks_for_the_cpu_build_first(repository: Path) -> None:
    lines = (repository / "Makefile").read_text().splitlines()
    # Tools that do not need torch are installed as they are.
    installs = [number for number, line in enumerate(lines) if "pip install" in line and " -e " in line]
    assert installs
    for number in installs:
        assert "torch_build.py" in lines[number - 1]
