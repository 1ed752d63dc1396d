"""What the engine will find here and which table `select` will choose, without torch: `plan` and `up` predict by it."""

import os
import platform
import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from plimsoll.api.device import CUDA_BUILD_BYTES, TORCH_TABLE, DeviceFacts, DeviceKind, TableFacts, native_table
from plimsoll.api.errors import PlimsollError
from plimsoll.api.names import Names
from plimsoll.api.quantity import format_bytes
from plimsoll.runtime.kernels.build import NativeUnavailableError, library, variant_of
from plimsoll.runtime.machine.processor import multiplies_bytes, processor_flags

TABLES = ("auto", "native", "torch")


def foreseen_table(kind: DeviceKind, torch_rows: int | None = None) -> TableFacts:
    """The facts of the table that runs here. Builds the native kernels if there are none, to know that they can be.

    `torch_rows`: as `select` takes it. Raises PlimsollError where the environment's PLIMSOLL_KERNELS names no table or
    PLIMSOLL_TORCH_ROWS is no number of rows.
    """
    wanted = wanted_table()
    if kind != "cpu" or wanted == "torch":
        return TORCH_TABLE
    try:
        path = library()
    except NativeUnavailableError:
        return TORCH_TABLE
    panel = panel_width(path)
    return native_table(panel, wanted_torch_rows(torch_rows) is not None, multiplies_bytes(panel))


CPU_BUILD_COMMAND = "uv pip install --torch-backend cpu --reinstall-package torch torch"


def foreseen_libraries(kind: DeviceKind) -> int:
    """What this machine's torch takes of a CPU's memory for libraries of CUDA, which it loads with or without a GPU."""
    return CUDA_BUILD_BYTES if kind == "cpu" and _built_for_cuda() else 0


def libraries_note(size: int) -> str | None:
    """What a person should know of these bytes; None where there are none."""
    if not size:
        return None
    more = format_bytes(size)
    return (
        f"this torch is built for CUDA, which takes {more} more of a CPU's memory than one that is built for CPUs; "
        f"to replace it: {CPU_BUILD_COMMAND}"
    )


@cache
def _built_for_cuda() -> bool:
    torch = find_spec("torch")
    try:
        return bool(torch and runpy.run_path(str(Path(torch.origin or "").with_name("version.py"))).get("cuda"))
    except OSError:
        return False


def foreseen_device(kind: DeviceKind, total: int, torch_rows: int | None = None) -> DeviceFacts:
    """`total` bytes of a device of this machine, as the engine will find it. `torch_rows`: as `select` takes it."""
    return DeviceFacts(kind, total, foreseen_table(kind, torch_rows), foreseen_libraries(kind))


def wanted_table(kernels: str = "auto") -> str:
    """The environment's PLIMSOLL_KERNELS decides where `auto` is asked. Raises PlimsollError for an unknown name."""
    wanted = kernels if kernels != "auto" else os.environ.get("PLIMSOLL_KERNELS") or "auto"
    if wanted not in TABLES:
        field = "PLIMSOLL_KERNELS" if kernels == "auto" else "kernels"
        raise PlimsollError("no such table", field=field, value=wanted, fix=f"Use one of {', '.join(TABLES)}")
    return wanted


def torch_rows_name(torch_rows: int | None, names: Names) -> str:
    """What says that torch multiplies: the option, or the environment where that is left out."""
    return "PLIMSOLL_TORCH_ROWS" if torch_rows is None else names.torch_rows


def wanted_torch_rows(torch_rows: int | None = None) -> int | None:
    """Rows from which a product goes through torch; None is never.

    The environment's PLIMSOLL_TORCH_ROWS decides where the option is left out; 0 is never. Raises PlimsollError where
    it is no number of rows.
    """
    given = os.environ.get("PLIMSOLL_TORCH_ROWS")
    if torch_rows is not None or not given:
        return torch_rows
    if not (given.isascii() and given.isdigit()):
        raise PlimsollError(
            "must be a number of rows", field="PLIMSOLL_TORCH_ROWS", value=given,
            fix="Set 128 for quicker prompts, or leave it out",
        )  # fmt: skip
    return int(given) or None


def panel_width(library: Path | None = None) -> int:
    """Rows of a panel as `csrc/vec.h` has it: two vectors of float32, of the widest that the library was built for.

    That is the processor's widest, unless the library was built ahead of time for a kind of processor.
    """
    variant = None if library is None else variant_of(library)
    if variant is not None:
        return variant.panel
    if platform.machine() != "x86_64":
        return 8
    flags = processor_flags()
    return 32 if "avx512f" in flags else 16 if "avx" in flags else 8
