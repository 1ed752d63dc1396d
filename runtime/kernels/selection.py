"""Which table of kernels runs a model on a device."""

import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.kernels.forecast import wanted_table
from plimsoll.runtime.kernels.native import NativeUnavailableError, native_kernels
from plimsoll.runtime.kernels.processor import multiplies_bf16
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels

log = logging.getLogger(__name__)

WIDE_ROWS = 128
"""Rows from which torch's bfloat16 in hardware makes up for unpacking the weight."""


def select(device: torch.device, weight_dtype: torch.dtype, kernels: str = "auto") -> Kernels:
    """The table for weights and cache of `weight_dtype` on `device`; the same one for the same machine every time.

    On a CPU `auto` is the native table; where it cannot be built, plain torch, and one line in the log says why.
    There, products of many bfloat16 rows go through torch where the processor has instructions for them (AMX,
    AVX512-BF16). Elsewhere than on a CPU it is plain torch in the weights' dtype; on CUDA Triton multiplies quantised
    weights, where it is installed. The environment's PLIMSOLL_KERNELS decides where `auto` is asked.

    Raises PlimsollError for a name that is no table, and for `native` where it cannot run.
    """
    wanted = wanted_table(kernels)
    if wanted == "auto" and device.type == "cuda":
        return _on_cuda(device, weight_dtype)
    if wanted == "torch" or (wanted == "auto" and device.type != "cpu"):
        return torch_kernels(device, weight_dtype)
    try:
        return native_kernels(device, weight_dtype, _wide_rows(weight_dtype))
    except NativeUnavailableError as error:
        if wanted == "native":
            raise PlimsollError(
                str(error), field="kernels", value=wanted, fix="Use auto, which falls back to plain torch"
            ) from error
        log.warning("native kernels cannot run, plain torch will: %s", error)
        return torch_kernels(device, weight_dtype)


def _on_cuda(device: torch.device, dtype: torch.dtype) -> Kernels:
    try:
        from plimsoll.runtime.kernels.triton_quant import triton_kernels
    except ImportError as error:
        missing = str(error)
    else:
        missing = _missing_for_triton()
        if not missing:
            return triton_kernels(device, dtype)
    log.warning("plain torch multiplies quantised weights, slowly: %s", missing)
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


def _wide_rows(weight_dtype: torch.dtype) -> int | None:
    """PLIMSOLL_TORCH_ROWS overrides it, for measuring: 0 is never."""
    given = os.environ.get("PLIMSOLL_TORCH_ROWS")
    if given is not None:
        if not given.isdigit():
            raise PlimsollError("not a number of rows", field="PLIMSOLL_TORCH_ROWS", value=given, fix="Give 0 or more")
        return int(given) or None
    return WIDE_ROWS if weight_dtype == torch.bfloat16 and multiplies_bf16() else None
