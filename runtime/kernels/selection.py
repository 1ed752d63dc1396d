"""Which table of kernels runs a model on a device."""

import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from plimsoll.api.activations import FIELD
from plimsoll.api.errors import PlimsollError
from plimsoll.api.names import ARGUMENTS, Names
from plimsoll.checkpoint.ownership import own_folder
from plimsoll.runtime.kernels.build import own_cache
from plimsoll.runtime.kernels.forecast import torch_rows_name, wanted_table, wanted_torch_rows
from plimsoll.runtime.kernels.native import NativeUnavailableError, native_kernels
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels

log = logging.getLogger(__name__)


def select(
    device: torch.device,
    weight_dtype: torch.dtype,
    kernels: str = "auto",
    torch_rows: int | None = None,
    *,
    int8: bool = False,
    names: Names = ARGUMENTS,
) -> Kernels:
    """The table for weights and cache of `weight_dtype` on `device`; the same one for the same machine every time.

    On a CPU `auto` is the native table; where it cannot be built, plain torch, and one line in the log says why.
    Elsewhere than on a CPU it is plain torch in the weights' dtype; on CUDA Triton multiplies quantized weights, where
    it is installed. The environment's PLIMSOLL_KERNELS decides where `auto` is asked.

    Args:
        torch_rows: products of at least so many rows leave the native table for torch's. Rows then have other bits in
            a large step than in a small one, so answers depend on load. None asks the environment's
            PLIMSOLL_TORCH_ROWS, and without it no product leaves the table.
        int8: rows are quantized to 8 bits where they meet codes of 4 or 8 bits; on a CPU alone.
        names: what the user calls the options, for refusals.

    Raises PlimsollError for a name that is no table, for `native` where it cannot run, and for `torch_rows` where
    another table runs.
    """
    wanted, through_torch = wanted_table(kernels), wanted_torch_rows(torch_rows)
    if torch_rows is not None and (device.type != "cpu" or wanted == "torch"):
        raise PlimsollError(
            "only the native kernels of a CPU hand products to torch", field="spec.serving.torchRows",
            value=torch_rows, fix="Leave it out",
        )  # fmt: skip
    if int8 and device.type == "cpu" and wanted != "torch" and through_torch is not None:
        raise PlimsollError(
            f"torch multiplies steps of {through_torch} rows and more, in bfloat16", field=FIELD, value="int8",
            fix=f"Leave out {torch_rows_name(torch_rows, names)} or this",
        )  # fmt: skip
    if wanted == "auto" and device.type == "cuda":
        return _on_cuda(device, weight_dtype)
    if wanted == "torch" or (wanted == "auto" and device.type != "cpu"):
        return torch_kernels(device, weight_dtype, int8=int8)
    try:
        return native_kernels(device, weight_dtype, through_torch, int8=int8)
    except NativeUnavailableError as error:
        if wanted == "native":
            raise PlimsollError(
                str(error), field="kernels", value=wanted, fix="Use auto, which falls back to plain torch"
            ) from error
        log.warning("native kernels cannot run, plain torch will: %s", error)
        return torch_kernels(device, weight_dtype, int8=int8)


def _on_cuda(device: torch.device, dtype: torch.dtype) -> Kernels:
    try:
        from plimsoll.runtime.kernels.triton_quant import triton_kernels
    except ImportError as error:
        missing = str(error)
    else:
        missing = _missing_for_triton() or _unsafe_triton_cache()
        if not missing:
            return triton_kernels(device, dtype)
    log.warning("plain torch multiplies quantized weights, slowly: %s", missing)
    return torch_kernels(device, dtype)


def _missing_for_triton() -> str:
    """Empty where it can build what starts a kernel: it does so when the first one runs, in the middle of a request."""
    named = os.environ.get("CC")
    if named and not shutil.which(named):
        return f"Triton builds with what $CC names, and {named} is not there"
    if not (named or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler where it runs: gcc, clang or what $CC names"
    # As Triton asks: Debian's own scheme is for what pip installs.
    scheme = sysconfig.get_default_scheme()
    header = Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme), "Python.h")
    return "" if header.exists() else f"Triton needs Python's headers where it runs, and {header} is not there"


def _unsafe_triton_cache() -> str:
    """Empty where Triton's cache is this user's own: Triton loads the code that it finds there.

    Triton's own default is not used: it lies where `$HOME` says, and its rights are what the umask leaves.
    """
    named = os.environ.get("TRITON_CACHE_DIR")
    try:
        if not named:
            os.environ["TRITON_CACHE_DIR"] = str(own_cache("triton"))
        elif os.path.exists(named):
            with own_folder(Path(named)):
                pass
    except (NativeUnavailableError, OSError) as error:
        return f"Triton's cache is not safe: {error}"
    return ""
