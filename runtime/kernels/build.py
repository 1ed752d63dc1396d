"""Builds the C kernels with the machine's compiler, once for each source and processor.

`python -m plimsoll.runtime.kernels.build --into FOLDER` builds one library for each kind of processor instead, for an
image that has no compiler and may run anywhere; $PLIMSOLL_KERNELS_DIR then names that folder.
"""

import argparse
import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plimsoll.checkpoint.ownership import open_own, own_folder
from plimsoll.runtime.machine.processor import VARIANTS, Variant, fitting, variants

SOURCES = Path(__file__).parent / "csrc"
PACKAGED = Path(__file__).parent / "built"
"""Where a package may bring libraries along."""
UNITS = (
    "gemm_bf16.c", "gemm_f32.c", "gemm_quant.c", "gemm_int8.c", "int8.c", "int8_tiles.c", "tiles.c", "pairs.c",
    "room.c", "pack_quant.c", "rowwise.c", "attention.c", "attention_pairs.c", "attention_team.c", "attention_tiles.c",
    "layers.c", "wide_layers.c", "sample.c", "group.c", "neon.c", "path.c",
)  # fmt: skip
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
COMPILE_SECONDS = 300


class NativeUnavailableError(Exception):
    """The native kernels cannot be built or loaded here; the message says why."""


def library() -> Path:
    """The shared library for this machine: of the cache, else one built ahead of time, else built now.

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
    ahead = built_ahead()
    if ahead is not None:
        return ahead
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _build(folder, name, ("-march=native",))
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise NativeUnavailableError(
        f"no folder to build them in: {'; '.join(reasons)} ($PLIMSOLL_CACHE names another folder)"
    )


def built_ahead() -> Path | None:
    """The best library for this processor among those built ahead of time from these sources; None without one."""
    given = os.environ.get("PLIMSOLL_KERNELS_DIR")
    folders = ([Path(given)] if given else []) + [PACKAGED]
    paths = (folder / _variant_name(variant) for variant in fitting() for folder in folders)
    return next((path for path in paths if _is_ours(path)), None)


def build_into(folder: Path) -> list[Path]:
    """Builds every variant of this kind of machine into `folder`. Raises NativeUnavailableError, OSError."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return [_build(folder, _variant_name(variant), variant.flags) for variant in variants()]


def variant_of(library: Path) -> Variant | None:
    """For which kind of processor a library was built, by its name; None for one that was built for its own."""
    return next((variant for variant in VARIANTS if library.name.startswith(f"kernels-{variant.name}-")), None)


def _variant_name(variant: Variant) -> str:
    return f"kernels-{variant.name}-{_digest(variant.machine, variant.flags)}.so"


def _compiler() -> list[str]:
    program, *options = shlex.split(os.environ.get("CC") or "cc")
    # It runs in another folder, where a relative path would name another file.
    return [os.path.abspath(program) if os.sep in program else program, *options]


def _folders() -> list[Path]:
    """Where libraries are kept, best first. The last one belongs to this user alone and outlives no reboot."""
    cache = os.environ.get("PLIMSOLL_CACHE")
    user = os.getuid()
    temporary = Path(tempfile.gettempdir()) / f"plimsoll-{user}"
    if cache:
        return [Path(cache) / "kernels", temporary]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(base) / "plimsoll" / "kernels", temporary]


def own_cache(name: str) -> Path:
    """The folder `name` of the cache, made now if it is not there, which no other user can write.

    For code that another library keeps there and loads by its path. Raises NativeUnavailableError.
    """
    reasons = []
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with own_folder(folder, follow=False) as own:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{own}/{name}", 0o700)
                with own_folder(Path(own, name), follow=False):
                    return folder / name
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise NativeUnavailableError(f"no folder to keep {name} in: {'; '.join(reasons)}")


def _is_ours(path: Path) -> bool:
    """A library is code: it is loaded only if this user, or root, wrote it and no other user could."""
    try:
        os.close(open_own(path))
    except OSError:
        return False
    return True


def _key() -> str:
    """Names the build: another source, flag or processor is another library.

    Not another compiler: a library built ahead of time must be found where there is none.
    """
    return _digest(platform.machine(), _processor())


def _digest(*what: object) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    digest.update(repr((FLAGS, *what)).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What -march=native looks at: the model and the instruction sets."""
    wanted = ("model name", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    lines = set()
    with contextlib.suppress(OSError):
        lines = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(wanted)}
    return "\n".join(sorted(lines))


def _build(folder: Path, name: str, flags: Sequence[str]) -> Path:
    """Compiles beside the target and renames: other processes see all of it or nothing, even if several build at once.

    Raises PermissionError where another user owns `folder` or may write into it.
    """
    compiler = _compiler()
    with (
        own_folder(folder, follow=False) as own,
        tempfile.TemporaryDirectory(dir=own, prefix="building-") as work,
    ):
        for unit in UNITS:
            _run([*compiler, *FLAGS, *flags, "-c", str(SOURCES / unit), "-o", f"{unit}.o"], work)
        # Linked without -fopenmp: its symbols come from the OpenMP that torch has loaded, so there is one thread pool.
        _run([*compiler, "-shared", *(f"{unit}.o" for unit in UNITS), "-o", name], work)
        os.chmod(f"{work}/{name}", 0o755)
        os.replace(f"{work}/{name}", f"{own}/{name}")
    return folder / name


def _run(command: list[str], folder: str) -> None:
    """Runs `command` in `folder`, which it enters before it loses this process's descriptors."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except FileNotFoundError:
        raise NativeUnavailableError(f"there is no compiler: {command[0]} is not found ($CC names another)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"the compiler does not run: {error}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        words = next((line for line in lines if "error:" in line), lines[0])
        raise NativeUnavailableError(f"{shlex.join(command[:1])} failed: {words}")


def load() -> ctypes.CDLL:
    """The library, bound to the OpenMP runtime that torch has loaded. Raises NativeUnavailableError."""
    path = library()
    try:
        for runtime in _openmp_in_use()[:1]:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        if os.environ.get("PLIMSOLL_KERNELS_LIBRARY"):
            return ctypes.CDLL(str(path))
        # The descriptor stays open: the loader takes a number that comes back for the library that had it before.
        return ctypes.CDLL(f"/proc/self/fd/{open_own(path)}")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, and prints the path of each library. Exits 1 with the reason where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m plimsoll.runtime.kernels.build", description=__doc__)
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="one library for each kind of processor")
    into = parser.parse_args(arguments).into
    try:
        for path in [library()] if into is None else build_into(into):
            print(path)
    except (NativeUnavailableError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
