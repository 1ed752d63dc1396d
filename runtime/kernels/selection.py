"""Which table of kernels runs a model on a device."""

import logging
import os

import torch

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.kernels.native import NativeUnavailableError, native_kernels
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels

log = logging.getLogger(__name__)

TABLES = ("auto", "native", "torch")


def select(device: torch.device, weight_dtype: torch.dtype, kernels: str = "auto") -> Kernels:
    """The table for weights and cache of `weight_dtype` on `device`; the same one for the same machine every time.

    On a CPU `auto` is the native table; where it cannot be built, plain torch, and one line in the log says why.
    Elsewhere it is plain torch in the weights' dtype. The environment's PLIMSOLL_KERNELS decides where `auto` is asked.

    Raises PlimsollError for a name that is no table, and for `native` where it cannot run.
    """
    wanted = kernels if kernels != "auto" else os.environ.get("PLIMSOLL_KERNELS") or "auto"
    if wanted not in TABLES:
        raise PlimsollError("no such table", field="kernels", value=wanted, fix=f"Use one of {', '.join(TABLES)}")
    if wanted == "torch" or (wanted == "auto" and device.type != "cpu"):
        return torch_kernels(device, weight_dtype)
    try:
        return native_kernels(device, weight_dtype)
    except NativeUnavailableError as error:
        if wanted == "native":
            raise PlimsollError(
                str(error), field="kernels", value=wanted, fix="Use auto, which falls back to plain torch"
            ) from error
        log.warning("native kernels cannot run, plain torch will: %s", error)
        return torch_kernels(device, weight_dtype)
