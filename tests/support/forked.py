"""`plimsoll …` in real processes, each forked from one that has imported much: many commands for the price of one."""

import atexit
import ctypes
import functools
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.commands import environment

#: capset(2): the version of its structures that has 64 capabilities.
_CAPABILITY_VERSION = 0x20080522
#: What quantizing imports, torch among it.
QUANTIZING = ("plimsoll.cli.eval", "plimsoll.cli.quantize", "plimsoll.quantjob.job", "plimsoll.quantjob.report")
#: What sources of checkpoints import. Not huggingface_hub, which reads the environment then.
SOURCES = (
    "plimsoll.cli.main", "plimsoll.checkpoint.inspecting", "plimsoll.checkpoint.fetching", "httpx", "botocore.session",
)  # fmt: skip


class Forked:
    """Runs commands one after the other; a context."""

    def __init__(self, home: Path, modules: Sequence[str] = QUANTIZING) -> None:
        """Args: home: of the commands. modules: imported once, for all of them."""
        self._home = home
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", *modules], env=environment(home, {}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def run(
        self, *arguments: str | Path, file_size: int | None = None, plain_user: bool = False,
        home: Path | None = None, given: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """`plimsoll ARGUMENTS`.

        Args:
            given: variables of its environment, beside those that every command has.
            file_size: the most bytes a file may come to: a write past it fails, as it does on a full disk.
            plain_user: permissions of files count for root too.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": list(map(str, arguments)), "file_size": file_size, "plain_user": plain_user,
                   "environment": environment(home or self._home, given or {})}  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], 300)[0]:
            self._process.kill()
            raise TimeoutError(f"plimsoll {' '.join(request['arguments'])} does not end")
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, answer["status"], answer["out"], answer["err"])


@functools.cache
def _of_sources(worker: int) -> Forked:
    forked = Forked(Path(tempfile.mkdtemp()), SOURCES)
    atexit.register(forked.close)
    return forked


def finished(arguments: Sequence[str], home: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """`plimsoll ARGUMENTS` about sources of checkpoints. Args: given: variables of its environment."""
    return _of_sources(os.getpid()).run(*arguments, home=home, given=given)


def _give_up_capabilities() -> None:
    """Root's privileges of this process, those over files' permissions among them."""
    if os.geteuid() == 0 and sys.platform == "linux":
        head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        none = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(head, none) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def _child(request: dict[str, Any], out: int, err: int) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["plain_user"]:
        _give_up_capabilities()
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], resource.RLIM_INFINITY))
    from plimsoll.cli.main import main

    try:
        main(request["arguments"])
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def _serve() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                status = _child(json.loads(line), out.fileno(), err.fileno())
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            _, ended = os.waitpid(child, 0)
            words = []
            for file in (out, err):
                file.seek(0)
                words.append(file.read().decode())
        answer = {"status": os.waitstatus_to_exitcode(ended), "out": words[0], "err": words[1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
