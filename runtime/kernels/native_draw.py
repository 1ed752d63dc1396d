"""Draws of tokens by the C kernel, as the table takes them."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from plimsoll.runtime.kernels.native_checks import answered, check_floats
from plimsoll.runtime.kernels.table import Draw, DrawFilter

_P, _L = ctypes.c_void_p, ctypes.c_long
DRAW_SIGNATURE: list[Any] = [_P, _L, _L, _P, _P, _P, _P, _P, _L]


def native_draw(function: Any) -> Draw:
    """`Kernels.draw` by the C function `draw_tokens`."""

    def draw(
        logits: Tensor,
        rows: Sequence[int],
        largest: npt.NDArray[np.float32],
        filters: Sequence[DrawFilter],
        uniform: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int64]:
        check_floats(logits=logits)
        dense, count = logits.contiguous(), len(rows)
        places, tops = np.array(rows, dtype=np.int64), np.ascontiguousarray(largest, dtype=np.float32)
        if not len(tops) == len(filters) == len(uniform) == count:
            raise ValueError(
                f"{count} rows have {len(tops)} largest values, {len(filters)} filters and {len(uniform)} numbers"
            )
        if not np.isfinite(tops).all():
            raise ValueError("the largest value of a row is not finite")
        floats = np.empty((count, 4))
        floats[:, :3] = [(by.temperature, by.top_p, by.min_p) for by in filters]
        floats[:, 3] = uniform
        limits = np.array([by.top_k for by in filters], dtype=np.int64)
        found = np.empty(count, dtype=np.int64)
        failed = function(
            dense.data_ptr(), *dense.shape, places.ctypes.data, tops.ctypes.data, floats.ctypes.data,
            limits.ctypes.data, found.ctypes.data, count,
        )  # fmt: skip
        answered(failed, f"a row is not below {len(dense)}")
        return found

    return draw
