"""What the C kernels take for granted, looked at before they get an address: they cannot see where a tensor ends."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll.api.precision import KEY_BITS
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.quantized_cache import QuantizedCache, block_bytes, head_bytes
from plimsoll.runtime.kernels.table import AttentionBatch, Cache

NO_MEMORY, APART = 1, 3
"""Of what kernels return; 0 is done, anything else an index outside (`csrc/bounds.h`)."""


def answered(code: int, outside: str) -> None:
    """Raises MemoryError, GroupError or, with the words `outside`, IndexError, where a kernel returned other than 0."""
    if code == NO_MEMORY:
        raise MemoryError("no memory for the working space of an operation")
    if code == APART:
        raise GroupError("the group of ranks has ended")
    if code:
        raise IndexError(outside)


def check_floats(**tensors: Tensor) -> None:
    """Raises ValueError for a tensor that is not float32 on the CPU."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.is_cpu:
            raise ValueError(f"{name} must be float32 on the CPU, found {tensor.dtype} on {tensor.device}")


def check_vectors(length: int, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor that is not float32 of `length` contiguous values."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_floats(**{name: tensor})
        if tensor.shape != (length,) or not tensor.is_contiguous():
            raise ValueError(f"{name} must be {length} contiguous values, found {tuple(tensor.shape)}")


def check_integers(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor, contiguous. Raises ValueError for another dtype."""
    if tensor.dtype != dtype or not tensor.is_cpu:
        raise ValueError(f"{name} must be {dtype} on the CPU, found {tensor.dtype} on {tensor.device}")
    return tensor.contiguous()


def check_batch(batch: AttentionBatch) -> None:
    """Raises ValueError where the tensors of a step are shorter than its sequences, or of other dtypes."""
    tables = batch.block_tables
    check_integers(tables, torch.int32, "block tables")
    for name, tensor, least in (
        ("query starts", batch.query_start, len(tables) + 1),
        ("context lengths", batch.context_lens, len(tables)),
    ):
        check_integers(tensor, torch.int32, name)
        if len(tensor) < least or not tensor.is_contiguous():
            raise ValueError(f"{name} must be {least} contiguous values, found {tuple(tensor.shape)}")
    if tables.shape[1] > 1 and tables.stride(1) != 1:
        raise ValueError("rows of block tables must be contiguous")


CACHE_KINDS = (torch.float32, torch.bfloat16, 8, 4)
"""Dtypes of floats and bits of codes, in the order of `csrc/cache.h`."""


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where C finds a layer's cache, and how it is held: the place of its kind in `CACHE_KINDS`."""

    keys: int
    values: int
    kind: int


def check_cache(dtype: torch.dtype, cache: Cache) -> CachePlace:
    """Raises ValueError for keys and values that are not contiguous, not alike, or neither of `dtype` nor codes."""
    if isinstance(cache, QuantizedCache):
        return _check_codes(cache)
    k_cache, v_cache = cache.keys, cache.values
    if not (k_cache.dtype == v_cache.dtype == dtype and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError(f"the cache must be contiguous {dtype}, found {k_cache.dtype} and {v_cache.dtype}")
    if k_cache.shape != v_cache.shape:
        raise ValueError(f"keys are {tuple(k_cache.shape)} and values {tuple(v_cache.shape)}: they do not fit")
    return CachePlace(k_cache.data_ptr(), v_cache.data_ptr(), CACHE_KINDS.index(dtype))


def _check_codes(cache: QuantizedCache) -> CachePlace:
    data, size, dim = cache.data, cache.block_size, cache.head_dim
    wide = block_bytes(cache.bits, size, dim)
    if data.dtype != torch.uint8 or not data.is_contiguous():
        raise ValueError(f"the cache must be contiguous {torch.uint8}, found {data.dtype}")
    if dim % 2:
        raise ValueError(f"a cache of codes has heads of an even number of dimensions, found {dim}")
    if data.shape[2:] != (wide,) or not data.is_cpu:
        raise ValueError(f"a block of codes must be {wide} bytes on the CPU, found {tuple(data.shape)}")
    values = data.data_ptr() + head_bytes(KEY_BITS[cache.bits], size, dim)
    return CachePlace(data.data_ptr(), values, CACHE_KINDS.index(cache.bits))
