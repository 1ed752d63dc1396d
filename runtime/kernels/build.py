"""Builds the C kernels with the machine's compiler, once for each source and processor.

`python -m plimsoll.runtime.kernels.build` does it ahead of time, for an image that will have no compiler.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
UNITS = ("gemm.c", "rowwise.c", "attention.c")
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
COMPILE_SECONDS = 300


class NativeUnavailableError(Exception):
    """The native kernels cannot be built or loaded here; the message says why."""


def library() -> Path:
    """The shared library for this machine, built now unless the cache has it.

    $PLIMSOLL_KERNELS_LIBRARY names one to use as it is. Raises NativeUnavailableError.
    """
    ready_made = os.environ.get("PLIMSOLL_KERNELS_LIBRARY")
    if ready_made:
        return Path(ready_made)
    if sys.platform != "linux":
        raise NativeUnavailableError(f"they are built on Linux only, this is {sys.platform}")
    name = f"kernels-{_key()}.so"
    folders = _folders()
    for folder in folders:
        if _is_ours(folder / name):
            return folder / name
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _build(folder, name)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise NativeUnavailableError("no folder to build them in: " + "; ".join(reasons))


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")


def _folders() -> list[Path]:
    """Where libraries are kept, best first. The last one belongs to this user alone and outlives no reboot."""
    cache = os.environ.get("PLIMSOLL_CACHE")
    user = os.getuid()
    temporary = Path(tempfile.gettempdir()) / f"plimsoll-{user}"
    if cache:
        return [Path(cache) / "kernels", temporary]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(base) / "plimsoll" / "kernels", temporary]


def _is_ours(path: Path) -> bool:
    """A library is code: it is loaded only if this user, or root, wrote it and nobody else could."""
    try:
        status, folder = path.stat(), path.parent.stat()
    except OSError:
        return False
    return all(entry.st_uid in (os.getuid(), 0) and not entry.st_mode & 0o022 for entry in (status, folder))


def _key() -> str:
    """Names the build: another source, flag or processor is another library.

    Not another compiler: a library built ahead of time must be found where there is none.
    """
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    digest.update(repr((FLAGS, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What -march=native looks at: the model and the instruction sets."""
    wanted = ("model name", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    lines = set()
    with contextlib.suppress(OSError):
        lines = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(wanted)}
    return "\n".join(sorted(lines))


def _build(folder: Path, name: str) -> Path:
    """Compiles beside the target and renames: whoever looks sees all of it or nothing, however many build at once."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as work:
        objects = [f"{work}/{unit}.o" for unit in UNITS]
        for unit, target in zip(UNITS, objects, strict=True):
            _run([*compiler, *FLAGS, "-march=native", "-c", str(SOURCES / unit), "-o", target])
        # Linked without -fopenmp: its symbols come from the OpenMP that torch has loaded, so there is one thread pool.
        _run([*compiler, "-shared", *objects, "-o", f"{work}/{name}"])
        os.chmod(f"{work}/{name}", 0o755)
        os.replace(f"{work}/{name}", folder / name)
    return folder / name


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except FileNotFoundError:
        raise NativeUnavailableError(f"there is no compiler: {command[0]} is not found ($CC names another)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"the compiler does not run: {error}") from None
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise NativeUnavailableError(f"{shlex.join(command[:1])} failed: {words}")


def load() -> ctypes.CDLL:
    """The library, bound to the OpenMP runtime that torch has loaded. Raises NativeUnavailableError."""
    path = library()
    try:
        for runtime in _openmp_in_use()[:1]:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"the library cannot be loaded: {error}") from None


def _openmp_in_use() -> list[str]:
    """Files of the OpenMP runtimes this process has mapped, torch's own first: other packages bring theirs."""
    import torch

    torch.get_num_threads()
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if any(part in os.path.basename(path) for part in ("libgomp", "libiomp5", "libomp")) and path not in found:
            found.append(path)
    return sorted(found, key=lambda path: "torch" not in Path(path).parts)


if __name__ == "__main__":
    print(library())
