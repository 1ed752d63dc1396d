"""Weights, indices and shapes that no honest model has, through every operation of the native table.

Each case ends in a result or in a ValueError, IndexError or MemoryError, and writes nothing outside its own tensors.
`make sanitize` runs these cases, and more of them, on kernels that AddressSanitizer and UBSan watch.
"""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized import SCALE_DTYPES, QuantizedMatrix, dequantize
from plimsoll.runtime.kernels.table import AttentionBatch, Kernels

REFUSED = (ValueError, IndexError, MemoryError)
STRANGE = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e38, 3e38)
SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 257)
SEEDS = range(40)


def numbers(draw: random.Random, *shape: int) -> Tensor:
    """Float32, now and then strange; and now and then at an address that is no multiple of a vector."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(draw.getrandbits(30)))
    if made.numel() and draw.random() < 0.5:
        for _ in range(draw.randint(1, 3)):
            made.view(-1)[draw.randrange(made.numel())] = draw.choice(STRANGE)
    if draw.random() < 0.3:
        made = torch.cat((torch.zeros(1), made.flatten()))[1:].view(shape)
    return made


def matrix(draw: random.Random, bits: Any) -> QuantizedMatrix:
    """Of honest or hostile shape. Raises ValueError, as for the tensors of a checkpoint."""
    rows = draw.choice((0, *SIZES))
    group = (
        draw.choice((1, 4, 8, 16, 24, 32, 40, 72, 128, 136, 200)) if draw.random() < 0.3 else 8 * draw.randint(1, 33)
    )
    groups = draw.choice((0, 1, 2, 3, 5))
    top = draw.choice((16, 16, 16, 17, 256)) if bits == 4 else 256
    codes = torch.randint(0, top, (rows, group * groups), dtype=torch.uint8)
    scales = numbers(draw, rows, groups).to(draw.choice(SCALE_DTYPES))
    zeros = torch.randint(0, draw.choice((16, 16, 256)), (rows, groups), dtype=torch.uint8)
    if draw.random() < 0.1:
        scales = scales[:, : draw.randint(0, max(groups - 1, 0))]
    codes = codes if bits == 4 else codes.view(torch.int8)
    return QuantizedMatrix(bits, codes, scales, zeros if bits == 4 and draw.random() < 0.6 else None)


def quantized(draw: random.Random, ops: Kernels, dtype: torch.dtype) -> None:
    held = matrix(draw, draw.choice((4, 8)))
    (rows, columns), count = held.codes.shape, draw.choice((1, 2, 3, 5, 12, 13, 30, 80, 150))
    packed = ops.pack_quantized(held)
    x, bias = torch.randn(count, columns), draw.choice((None, numbers(draw, rows)))
    found = ops.linear(x, packed, bias)
    plain = dequantize(held, torch.float32)
    wanted = torch.nn.functional.linear(x.to(dtype).float(), plain, bias)
    # A scale that is no number, or whose products overflow, spoils the outputs of its own row and no other's.
    sound = plain.isfinite().all(1) & (plain.abs() < 1e30).all(1) & (held.scales.float().abs() < 1e30).all(1)
    sound &= torch.ones_like(sound) if bias is None else bias.isfinite() & (bias.abs() < 1e30)
    torch.testing.assert_close(found[:, sound], wanted[:, sound], rtol=1e-3, atol=1e-2)
    if held.bits == 8:
        ids = torch.randint(rows, (count,))
        torch.testing.assert_close(ops.embedding(ids, packed), plain[ids], equal_nan=True)


def whole(draw: random.Random, ops: Kernels, dtype: torch.dtype) -> None:
    rows, columns, count = draw.choice((0, *SIZES)), draw.choice((0, *SIZES)), draw.choice((0, 1, 2, 3, 13, 80))
    weight = numbers(draw, rows, columns).to(dtype)
    packed = ops.pack(weight)
    x = numbers(draw, count, columns if draw.random() < 0.9 else columns + 1)
    bias = draw.choice((None, numbers(draw, rows), numbers(draw, rows + 1), numbers(draw, rows).bfloat16()))
    found = ops.linear(draw.choice((x, x, x.double())), packed, bias)
    assert found.shape == (count, rows)
    ids = torch.randint(-1, rows + 2, (count,))
    within = bool(((ids >= 0) & (ids < rows)).all())
    try:
        read = ops.embedding(ids, packed)
    except IndexError:
        assert not within
    else:
        assert within
        torch.testing.assert_close(read, weight.float()[ids], rtol=0, atol=0, equal_nan=True)


def rowwise(draw: random.Random, ops: Kernels) -> None:
    rows, columns, dim = draw.choice((0, 1, 3, 17)), draw.choice((1, 3, 7, 8, 33, 130)), draw.choice((1, 2, 5, 8, 34))
    x, off = numbers(draw, rows, columns), int(draw.random() < 0.15)
    ops.rms_norm(x, numbers(draw, columns + off), draw.choice((0.0, 1e-5, float("nan"))))
    ops.add_rms_norm(x, numbers(draw, rows, columns + off), numbers(draw, columns), 1e-5)
    ops.activate(x, "silu", True)
    q = numbers(draw, rows, 3, dim)
    angles = numbers(draw, rows + off, dim // 2)
    ops.rope(q, q[:, :1], angles, angles)


def paged(draw: random.Random, ops: Kernels, dtype: torch.dtype) -> None:
    """Caches, slots, tables, starts and contexts, honest but for at most one of them."""
    dim, kv_heads = draw.choice((0, 1, 2, 3, 8, 20, 64, 129)), draw.choice((1, 2))
    group, block = draw.choice((0, 1, 3, 49)), draw.choice((16, 32))
    rows = [draw.randint(0, 5) for _ in range(draw.randint(1, 3))]
    contexts = [count + draw.choice((0, 0, 1, 15, 40)) for count in rows]
    blocks, width = draw.randint(1, 6), max(1, -(-max(contexts) // block))
    total, starts = sum(rows), [0, *itertools.accumulate(rows)]
    tables = torch.randint(0, blocks, (len(rows), width), dtype=torch.int32)
    slots = torch.randint(0, blocks * block, (total,))
    lie = draw.choice((None, "slot", "table", "context", "start", "last", "heads", "dim", "short", "dtype"))
    if lie == "slot" and total:
        slots[draw.randrange(total)] = draw.choice((-1, blocks * block, 1 << 62, -(1 << 63)))
    if lie == "table":
        tables[draw.randrange(len(rows)), 0] = draw.choice((-1, blocks, (1 << 31) - 1))
    if lie == "context":
        contexts[draw.randrange(len(rows))] = draw.choice((-1, width * block + 1, (1 << 31) - 1))
    if lie == "start":
        starts[draw.randrange(len(starts))] = draw.choice((-1, total + 1, 1 << 30))
    if lie == "last":
        starts[-1] += 1
    step = AttentionBatch(
        torch.tensor(starts[: -1 if lie == "short" else None], dtype=torch.int64 if lie == "dtype" else torch.int32),
        torch.tensor(contexts, dtype=torch.int32), tables, slots, starts, contexts,
    )  # fmt: skip
    cache = LayerCache(*(torch.zeros(blocks, kv_heads, block, dim + (lie == "dim"), dtype=dtype) for _ in range(2)))
    keys = numbers(draw, total, kv_heads, dim)
    try:
        ops.write_kv(keys, keys, cache, slots)
    finally:
        q = numbers(draw, total, kv_heads * group + (lie == "heads"), dim)
        window = draw.choice((None, 1, 5, 1 << 40))
        out = ops.attention(q, cache, step, draw.choice((max(dim, 1) ** -0.5, float("nan"), 3e38)), window)
    assert out.shape == (total, q.shape[1] * dim)


def drawn(draw: random.Random, ops: Kernels) -> None:
    """Values that the caller has not looked at, and largest values that are not."""
    rows, vocabulary, count = draw.choice((1, 3)), draw.choice((1, 7, 16, 63, 64, 1025, 5000)), draw.choice((0, 1, 4))
    logits = numbers(draw, rows, vocabulary)
    largest = np.array([draw.choice((0.0, -3.0, 5.0, 3e38)) for _ in range(count)], dtype=np.float32)
    filters = [
        SamplingParams(
            temperature=draw.choice((1e-5, 0.7, 1.0, 1e30)), top_k=draw.choice((0, 1, 3, 300, 1 << 40)),
            top_p=draw.choice((1e-9, 0.5, 0.99, 1 - 1e-12, 1.0)), min_p=draw.choice((0.0, 0.1, 1.0)),
        )
        for _ in range(count)
    ]  # fmt: skip
    named = [draw.randrange(rows) if draw.random() < 0.95 else draw.choice((-1, rows, 1 << 60)) for _ in range(count)]
    assert ops.draw is not None
    found = ops.draw(logits, named, largest, filters, np.array([draw.random() for _ in range(count)]))
    assert ((found >= 0) & (found < vocabulary)).all()


def operations(seed: int, dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """One case of each kind, and more of attention, which has most to go by."""
    draw, ops = random.Random(seed), native_kernels("cpu", dtype)
    torch.manual_seed(seed)
    yield lambda: quantized(draw, ops, dtype)
    yield lambda: whole(draw, ops, dtype)
    yield lambda: rowwise(draw, ops)
    for _ in range(5):
        yield lambda: paged(draw, ops, dtype)
    yield lambda: drawn(draw, ops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_strange_weights_and_indices_are_refused_or_computed(seed: int, dtype: torch.dtype) -> None:
    for case in operations(seed, dtype):
        with contextlib.suppress(*REFUSED):
            case()


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_a_weight_without_rows_or_columns_is_refused(shape: tuple[int, int]) -> None:
    ops = native_kernels("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match=f"a weight of {shape[0]} x {shape[1]} holds nothing"):
        ops.pack(torch.zeros(shape))


@pytest.mark.parametrize("index", [-1, 3, 1 << 40, -(1 << 63)])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_token_id_outside_the_vocabulary_reads_no_memory(bits: int, index: int) -> None:
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    ops, weight = native_kernels("cpu", dtype), torch.ones(3, 8)
    packed = ops.pack(weight.to(dtype))
    if bits == 8:
        packed = ops.pack_quantized(QuantizedMatrix(8, torch.ones(3, 8, dtype=torch.int8), torch.ones(3, 1)))
    with pytest.raises(IndexError, match="not below 3"):
        ops.embedding(torch.tensor([0, index]), packed)
    assert torch.equal(ops.embedding(torch.tensor([2]), packed), weight[:1])
