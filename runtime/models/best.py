"""The largest logit of each row: all that greedy sampling needs to know of a step."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Best:
    """The largest logit of each of L rows, and the first id that has it. NaN counts as larger than any number."""

    values: npt.NDArray[np.float32]
    """[L]."""
    ids: npt.NDArray[np.int64]
    """[L]."""


def best_of(logits: Tensor) -> Best:
    """Of float32 [L, vocab]."""
    if logits.device.type == "cpu":
        # numpy's argmax is vectorised, torch's is not: a tenth of the time at 16 x 49,152.
        array = logits.numpy()
        ids = array.argmax(axis=-1)
        return Best(array[np.arange(len(ids)), ids], ids)
    values, indices = logits.max(dim=-1)
    return Best(values.cpu().numpy(), indices.cpu().numpy())


def packed(best: Best, first: int) -> Tensor:
    """float32 [L, 2]: values, and ids counted from `first`, as bits of int32."""
    found = np.empty((len(best.ids), 2), dtype=np.float32)
    found[:, 0] = best.values
    found[:, 1] = (best.ids + first).astype(np.int32).view(np.float32)
    return torch.from_numpy(found)


def best_of_packed(parts: Tensor) -> Best:
    """Of float32 [L, 2 * ranks]: what `packed` made on each rank, in the order of the ranks' ids."""
    array = parts.numpy().reshape(len(parts), parts.shape[1] // 2, 2)
    # The first rank that has the largest value has the lowest id, as in the whole row.
    rows, rank = np.arange(len(array)), array[:, :, 0].argmax(axis=-1)
    ids = np.ascontiguousarray(array[rows, rank, 1]).view(np.int32)
    return Best(array[rows, rank, 0], ids.astype(np.int64))
