"""`make sanitize`: the C kernels under AddressSanitizer and UBSan, once for each instruction set that runs here.

`python -m tests.hostile.sanitize [--seconds N]` builds the kernels with both sanitizers, runs the tests that use them,
and then new cases of `test_weights` for N seconds. Exits 1 at the first finding, which the sanitizer has printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from plimsoll.runtime.kernels import build
from plimsoll.runtime.machine import processor

FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
#: What no image is built for, and `-march=native` of an older processor is: vectors of 8 and of 4 lanes, nothing fused.
OLDER = {"x86-64": ("-march=x86-64", "-Wno-psabi"), "avx": ("-mavx",)}
TESTS = ("tests/kernels/test_native.py", "tests/kernels/test_quantized.py", "tests/kernels/test_int8.py",
         "tests/kernels/test_native_draw.py", "tests/models/test_layers_at_once.py", "tests/models/test_wide_layers.py",
         "tests/hostile/test_weights.py")  # fmt: skip
#: They build kernels of their own, or look at the processor.
LEFT_OUT = "build or compiler or writ or openmp or torch_rows or foreseen or rows_are_named or panels"


def variants() -> Iterator[tuple[str, Sequence[str]]]:
    """Names and compiler flags of the instruction sets that run here."""
    for variant in processor.fitting():
        yield variant.name, variant.flags
    for name, flags in OLDER.items():
        if (name == "x86-64" and processor.platform.machine() == "x86_64") or name in processor.processor_flags():
            yield name, flags


def compile_into(folder: Path, name: str, flags: Sequence[str]) -> Path:
    """The kernels of one instruction set, watched."""
    library, objects, compiler = folder / f"watched-{name}.so", [], build._compiler()
    for unit in build.UNITS:
        objects.append(str(folder / f"{name}-{unit}.o"))
        source = str(build.SOURCES / unit)
        subprocess.run([*compiler, *build.FLAGS, *flags, *FLAGS, "-c", source, "-o", objects[-1]], check=True)
    subprocess.run([*compiler, "-shared", *FLAGS, *objects, "-o", str(library)], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """For a Python that was not built with the sanitizers: their runtimes come before everything else.

    Frames are not kept for a use after return: those that GCC 12 keeps lack the alignment of vectors of 512 bits.
    """
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.check_output([*build._compiler(), f"-print-file-name={name}"], text=True).strip() for name in names
    ]
    return {
        **os.environ, "PLIMSOLL_KERNELS": "native", "PLIMSOLL_KERNELS_LIBRARY": str(library), "OMP_NUM_THREADS": "2",
        "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }  # fmt: skip


def fuzz(seconds: float) -> None:
    """New cases until the time is up; a failed one names its seed."""
    import torch

    from tests.hostile.test_weights import REFUSED, operations

    end, seed, cases = time.monotonic() + seconds, time.time_ns() % (1 << 40), 0
    while time.monotonic() < end:
        seed += 1
        for dtype in (torch.float32, torch.bfloat16):
            for number, case in enumerate(operations(seed, dtype)):
                cases += 1
                try:
                    case()
                except REFUSED:
                    pass
                except BaseException:
                    print(f"seed {seed}, {dtype}, operation {number}", file=sys.stderr)
                    raise
    print(f"{cases} cases, no finding")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.sanitize", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of new cases for each instruction set; 60")
    parser.add_argument("--fuzz-here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fuzz_here:
        fuzz(options.seconds)
        return 0
    with tempfile.TemporaryDirectory(prefix="plimsoll-sanitize-") as folder:
        for name, flags in variants():
            print(f"{name}: building …", flush=True)
            watched = environment(compile_into(Path(folder), name, flags))
            python = [sys.executable, "-m"]
            for command in (
                [*python, "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS, "-k", f"not ({LEFT_OUT})"],
                [*python, "tests.hostile.sanitize", "--fuzz-here", "--seconds", str(options.seconds)],
            ):
                if subprocess.run(command, env=watched, check=False).returncode:
                    print(f"{name}: a finding, see above", file=sys.stderr)
                    return 1
            print(f"{name}: clean", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
