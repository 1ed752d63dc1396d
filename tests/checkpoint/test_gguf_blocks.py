"""Blocks of any bytes as codes, scales and minimums: the values that the `gguf` package makes of them, to the bit."""

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.blocks import BLOCKS, held_together
from plimsoll.api.errors import CheckpointError
from plimsoll.api.precision import Codes
from plimsoll.checkpoint.gguf_blocks import unpack
from plimsoll.runtime.kernels.quantized import QuantizedMatrix, dequantize
from plimsoll.runtime.models.held_together import as_held

KINDS = st.sampled_from(list(BLOCKS))


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Of any bits, with scales and minimums of float16 of any size and sign."""
    block = BLOCKS[kind]
    elements, size = gguf.GGML_QUANT_SIZES[BlockType[kind]]
    packed = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    count = 2 if block.minimum else 1
    factors = (rng.standard_normal((rows, columns // elements, count)) * 10.0 ** rng.integers(-7, 4)).astype("<f2")
    first = size - 2 if kind == "Q6_K" else 0
    packed[:, :, first : first + 2 * count] = factors.view(np.uint8).reshape(rows, columns // elements, 2 * count)
    return packed.reshape(rows, columns // elements * size)


@settings(deadline=None, max_examples=100)
@given(KINDS, st.integers(0, 5), st.integers(1, 3), st.integers(0, 1 << 16))
def test_every_kind_has_the_values_of_the_gguf_package_to_the_bit(kind: str, rows: int, blocks: int, seed: int) -> None:
    packed = random_blocks(kind, rows, blocks * 256, np.random.default_rng(seed))
    found, block = unpack(packed, kind, "it"), BLOCKS[kind]
    assert found.shape == (rows, blocks * 256)
    if not rows:
        return
    assert (found.bits, found.group) == (block.bits, block.group)
    wanted = gguf.quants.dequantize(packed, BlockType[kind]).astype(np.float32)
    np.testing.assert_array_equal(found.dequantize().view(np.uint32), wanted.view(np.uint32))
    np.testing.assert_array_equal(found.rows(0, 1).dequantize(), wanted[:1])


@settings(deadline=None, max_examples=200)
@given(st.lists(KINDS, min_size=1, max_size=3), st.integers(0, 1 << 16))
def test_kinds_that_are_held_together_keep_their_values(kinds: list[str], seed: int) -> None:
    block = held_together(kinds)
    assert (block is None) == (len({BLOCKS[kind].size for kind in kinds}) > 1)
    if block is None:
        return
    held = Codes(block.bits, block.group, True, block.minimum, block.size == 256)
    for kind in kinds:
        packed = random_blocks(kind, 3, 512, np.random.default_rng(seed))
        linear = unpack(packed, kind, "it")
        scales = torch.from_numpy(linear.scales)
        parts = (linear.minimums, linear.super_scales, linear.super_minimums)
        stored = QuantizedMatrix(
            linear.bits, torch.from_numpy(linear.codes), scales if held.supers else scales.half(), None,
            *(None if part is None else torch.from_numpy(part) for part in parts),
        )  # fmt: skip
        found = as_held(stored, held)
        assert found.bits == held.bits
        assert found.group_size == held.group
        assert (found.minimums is not None) == held.minimums
        assert torch.equal(dequantize(found, torch.float32), dequantize(stored, torch.float32))
        np.testing.assert_array_equal(dequantize(stored, torch.float32).numpy(), linear.dequantize())


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_random_bytes_are_read_or_refused_by_name(kind: str) -> None:
    size, rng, messages = gguf.GGML_QUANT_SIZES[BlockType[kind]][1], np.random.default_rng(5), list[str]()
    for _ in range(200):
        packed = rng.integers(0, 256, (2, 2 * size), dtype=np.uint8)
        try:
            assert np.isfinite(unpack(packed, kind, "blk.0.it").dequantize()).all()
        except CheckpointError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 200
    assert all("blk.0.it" in message and kind in message for message in messages)
