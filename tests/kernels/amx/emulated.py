"""Processes in which the C kernels multiply in AMX's tiles: real ones, or those of `emulator.c`."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.runtime.kernels import build
from plimsoll.runtime.machine.processor import VARIANTS, processor_flags

HERE = Path(__file__).parent
REAL = {"amx_tile", "amx_bf16", "amx_int8"}


def has_tiles() -> bool:
    """Whether this processor has the instructions."""
    return processor_flags() >= REAL


def skip_where_no_tiles_can_be() -> None:
    if platform.machine() != "x86_64" or not VARIANTS[0].needs <= processor_flags():
        pytest.skip("tiles go with vectors of 512 bits: they need x86-64 with AVX-512")


def compiled(source: str, folder: Path, *flags: str) -> Path:
    """A shared object of a file beside this one."""
    made = folder / Path(source).with_suffix(".so").name
    options = ["-O3", "-march=x86-64-v4", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([*build._compiler(), *options, *flags, str(HERE / source), "-o", str(made)], check=True)
    return made


def environment(folder: Path) -> dict[str, str]:
    """For a process that has tiles. Its Python must not catch SIGILL itself (`faulthandler`)."""
    if has_tiles():
        return dict(os.environ)
    preloaded = [os.environ.get("LD_PRELOAD", ""), str(compiled("emulator.c", folder))]
    return {**os.environ, "LD_PRELOAD": " ".join(preloaded).strip(), "PYTHONFAULTHANDLER": ""}


def run(code: str, tiles: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of `environment` that runs `code`."""
    return subprocess.run([sys.executable, "-c", code, *arguments], env=tiles, capture_output=True, text=True)
