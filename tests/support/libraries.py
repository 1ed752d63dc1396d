"""Libraries of the C kernels that tests build: each object is compiled once for all workers of a run."""

import fcntl
import os
from pathlib import Path

import pytest

from plimsoll.runtime.kernels import build

#: Vectors of 512 bits that multiply neither pairs of bfloat16 (VDPBF16PS) nor bytes (VPDPBUSD) at once.
V4_WITHOUT_PRODUCTS = ("-march=x86-64-v4", "-O1", "-DPLIMSOLL_WITHOUT_PAIRS", "-DHAVE_VNNI=0")

#: Compiles a unit, or takes the object of the same preprocessed text and flags. Definitions are part of that text.
_REMEMBERING = """#!/bin/sh
flags= unit= made=
for word; do
  case $word in
    -c) unit=yes ;;
    -D*) ;;
    *.o) made=$word ;;
    -*) flags="$flags $word" ;;
  esac
done
[ -n "$unit" ] || exec {compiler} "$@"
{compiler} "$@" -E -P || exit 1
kept="{folder}/$({{ echo "$flags"; cat "$made"; }} | sha256sum | cut -c1-32).o"
[ -f "$kept" ] && exec cp "$kept" "$made"
{compiler} "$@" && cp "$made" "$kept.$$" && mv "$kept.$$" "$kept"
"""


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """The folder `name` of this run: the same one for all its workers."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Libraries:
    """Libraries in a folder, each built by the first who asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.compiler = folder / "cc"
        """A program that compiles no object twice."""
        script = _REMEMBERING.format(compiler=os.environ.get("CC") or "cc", folder=folder)
        written = folder / f"cc.{os.getpid()}"
        written.write_text(script)
        written.chmod(0o755)
        written.replace(self.compiler)

    def built(self, *flags: str) -> Path:
        """The library of all units with these flags."""
        name = f"kernels {' '.join(flags)}.so"
        with (self._folder / f"{name}.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self._folder / name).is_file():
                patch.setenv("CC", str(self.compiler))
                build._build(self._folder, name, flags)
        return self._folder / name
