"""`plimsoll …` in a process of its own, which knows of no hub, store, token or proxy but those it is given."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_STRANGERS = ("HF_", "AWS_", "PLIMSOLL_", "KUBERNETES_")


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """HOME is where a pod has it: the one folder that may be written besides the target."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_STRANGERS) and "proxy" not in k.lower()}
    return clean | {"HOME": str(home), "OMP_NUM_THREADS": "1", **given}


def started(arguments: Sequence[str], home: Path, code: str | None = None, **given: str) -> subprocess.Popen[str]:
    """Args: code: Python that runs before the command, in its process."""
    run = f"{code or ''}\nfrom plimsoll.cli.main import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", run, *arguments], env=environment(home, given), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(
    arguments: Sequence[str], home: Path, code: str | None = None, **given: str
) -> subprocess.CompletedProcess[str]:
    process = started(arguments, home, code, **given)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
