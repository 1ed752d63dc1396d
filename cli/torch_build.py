"""Install the CPU build of torch where no NVIDIA driver is found and pip would take the CUDA build.

On Linux, pip's own index has only CUDA builds of torch: 5 GB that a machine without a GPU never uses. `uv` knows the
index of CPU builds, so this module keeps no address. The Makefile runs this file before anything is installed, so it
imports the standard library only: `python -I cli/torch_build.py -c constraints.txt`.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CUDA_SIZE = "about 5 GB on disk (NVIDIA's libraries 2.7 GB, Triton 0.7 GB)"
ANSWER_SECONDS = 10
"""How long the index of CPU builds may take to answer. A download that has begun may take longer."""

WAY_OUT = (
    "For the CPU build, name an index by PIP_EXTRA_INDEX_URL or a folder by PIP_FIND_LINKS that has it, and run this "
    "again."
)


def main(arguments: list[str] | None = None) -> int:
    """Installs the CPU build of torch if pip would choose a CUDA build that this machine cannot use.

    Returns 0 in each case: if the CPU build cannot be had, pip's own choice follows, and stderr says how large it is.
    """
    parser = argparse.ArgumentParser(description="Install the CPU build of torch where there is no NVIDIA driver.")
    parser.add_argument("-c", dest="constraints", required=True, help="Constraints file that names the torch version.")
    constraints = parser.parse_args(arguments).constraints
    if importlib.util.find_spec("torch") or sys.platform != "linux" or has_nvidia_driver():
        return 0
    if not pip_would_take_cuda(constraints):
        return 0
    say("pip's index has torch for CUDA only and this machine has no NVIDIA driver: looking for the CPU build …")
    with tempfile.TemporaryDirectory() as scratch:
        if install_cpu_build(constraints, Path(scratch)):
            say("The CPU build of torch is installed.")
        else:
            say(f"The CPU build cannot be had from here. Going on with pip's build for CUDA: {CUDA_SIZE}. {WAY_OUT}")
    return 0


def has_nvidia_driver(proc: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Whether the kernel has NVIDIA's driver, or its tool is on PATH (in WSL the kernel says nothing)."""
    return proc.exists() or shutil.which("nvidia-smi") is not None


def pip_would_take_cuda(constraints: str) -> bool:
    """Whether the torch that pip would choose asks for NVIDIA's libraries.

    pip sees the index and the folders that the user has set, so those come first. False if pip finds no torch: the
    installation that follows says so better.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--report", str(report)]
        if _run([*_PIP, "install", *options, "-c", constraints, "torch"]):
            return False
        found = json.loads(report.read_text())["install"][0]["metadata"].get("requires_dist", [])
    return any(re.match(r"(nvidia|cuda)-", requirement) for requirement in found)


def install_cpu_build(constraints: str, scratch: Path) -> bool:
    """Whether `uv` installed the CPU build of torch, without its dependencies, into this interpreter's environment."""
    uv = shutil.which("uv") or _fetch_uv(scratch)
    if uv is None:
        return False
    wanted = ["--python", sys.executable, "--torch-backend", "cpu", "--no-deps", "-c", constraints, "torch"]
    impatient = {"UV_HTTP_TIMEOUT": str(ANSWER_SECONDS), "UV_HTTP_CONNECT_TIMEOUT": str(ANSWER_SECONDS)}
    if _run([uv, "pip", "install", "--dry-run", *wanted], UV_HTTP_RETRIES="0", **impatient):
        return False
    return not _run([uv, "pip", "install", *wanted])


_PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def _fetch_uv(scratch: Path) -> str | None:
    """The path of a `uv` that pip has put into `scratch`; None if pip cannot get it."""
    if _run([*_PIP, "install", "--target", str(scratch), "uv"]):
        return None
    return str(scratch / "bin" / "uv")


def _run(command: list[str], **environment: str) -> int:
    """The exit status of `command`; of what it prints, the first line of an error appears."""
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if ran.returncode:
        say(next((line for line in ran.stderr.splitlines() if line.lower().startswith("error")), ran.stderr.strip()))
    return ran.returncode


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
