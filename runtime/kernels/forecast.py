"""Which table `select` will choose on this machine, without torch: so `plan` and `up` predict what the engine does."""

import os
import platform
from pathlib import Path

from plimsoll.api.device import TORCH_TABLE, DeviceKind, TableFacts, native_table
from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.kernels.build import NativeUnavailableError, library, variant_of
from plimsoll.runtime.kernels.processor import multiplies_bf16, processor_flags

TABLES = ("auto", "native", "torch")


def foreseen_table(kind: DeviceKind) -> TableFacts:
    """The facts of the table that runs here. Builds the native kernels if nobody has, to know that they can be.

    Raises PlimsollError where the environment's PLIMSOLL_KERNELS names no table.
    """
    wanted = wanted_table()
    if kind != "cpu" or wanted == "torch":
        return TORCH_TABLE
    try:
        path = library()
    except NativeUnavailableError:
        return TORCH_TABLE
    return native_table(panel_width(path), multiplies_bf16())


def wanted_table(kernels: str = "auto") -> str:
    """The environment's PLIMSOLL_KERNELS decides where `auto` is asked. Raises PlimsollError for an unknown name."""
    wanted = kernels if kernels != "auto" else os.environ.get("PLIMSOLL_KERNELS") or "auto"
    if wanted not in TABLES:
        raise PlimsollError("no such table", field="kernels", value=wanted, fix=f"Use one of {', '.join(TABLES)}")
    return wanted


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
