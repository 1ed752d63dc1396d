"""Quantized linears packed and unpacked to the bit, and held to the formats' descriptions value by value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.errors import CheckpointError
from plimsoll.api.quantization import Quantization, parse_quantization
from plimsoll.api.shard import Run
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized.formats import layout_of, packed_tensors
from plimsoll.checkpoint.quantized.layout import Layout, Window
from plimsoll.checkpoint.quantized.linear import QuantizedLinear, ScaleDtype
from tests.support import unpacking
from tests.support.quantized import described, pack

DTYPES: dict[str, ScaleDtype] = {"F16": "F16", "BF16": "BF16", "F32": "F32"}


def rounded(scales: Any, dtype: ScaleDtype) -> Any:
    scales = scales.astype(np.float32)
    if dtype == "F16":
        return scales.astype(np.float16).astype(np.float32)
    return (scales.view(np.uint32) & 0xFFFF0000).view(np.float32) if dtype == "BF16" else scales


def linear(
    rows: int, columns: int, group: int, *, bits: int = 4, symmetric: bool = False, dtype: ScaleDtype = "F16",
    seed: int = 0,
) -> QuantizedLinear:  # fmt: skip
    """Codes of every value, zeros and scales at random. `group` 0 is one scale a row."""
    rng = np.random.default_rng(seed)
    groups = columns // group if group else 1
    scales = rounded(rng.uniform(1e-3, 2, (rows, groups)), dtype)
    if bits == 8:
        return QuantizedLinear(rng.integers(-128, 128, (rows, columns), dtype=np.int8), scales, None, dtype)
    codes = rng.integers(0, 16, (rows, columns), dtype=np.uint8)
    zeros = None if symmetric else rng.integers(0, 16, scales.shape, dtype=np.uint8)
    return QuantizedLinear(codes, scales, zeros, dtype)


def values(raw: Any) -> Any:
    return (raw.data.astype(np.uint32) << 16).view(np.float32) if raw.dtype == "BF16" else raw.data


def taken(layout: Layout, parts: Mapping[str, RawTensor], window: Window, said: Quantization) -> dict[str, RawTensor]:
    """What `window` needs of the parts."""
    found = {}
    for name, raw in parts.items():
        rows, columns = layout.cuts(window, said)[name]
        data = raw.data if rows is None else raw.data[slice(*rows)]
        data = data if columns is None else data[:, slice(*columns)]
        found[name] = RawTensor(raw.dtype, data.shape, data)
    return found


def columns_of(whole: QuantizedLinear, columns: Run) -> QuantizedLinear:
    groups = whole.scales.shape[1]
    first, last = (0, 1) if groups == 1 else (end // whole.group for end in columns)
    zeros = None if whole.zeros is None else whole.zeros[:, first:last]
    return QuantizedLinear(whole.codes[:, slice(*columns)], whole.scales[:, first:last], zeros, whole.scale_dtype)


def window_of(rows: int, columns: int) -> Window:
    return Window((rows, columns), (0, rows), (0, columns))


SHAPES = st.tuples(
    st.integers(1, 4).map(lambda n: 8 * n),
    st.sampled_from([(64, 32), (64, 64), (128, 32), (128, 128), (192, 64), (48, 16), (32, 0), (576, 64)]),
)
FORMATS = [
    Quantization("awq", 4, 64, False),
    Quantization("compressed-tensors", 4, 64, False),
    Quantization("compressed-tensors", 4, 64, True),
    Quantization("compressed-tensors", 8, 64, True),
    Quantization("gptq", 4, 64, True, zero_offset=1),
    Quantization("gptq", 4, 64, False, zero_offset=0),
    Quantization("gptq", 4, 64, False, zero_offset=1),
    Quantization("gptq", 8, 64, True, zero_offset=1),
    Quantization("gptq", 8, 64, True, zero_offset=0),
]


@pytest.mark.parametrize("said", FORMATS, ids=str)
@settings(max_examples=12, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from(list(DTYPES.values())), seed=st.integers(0, 99), data=st.data())
def test_what_is_packed_is_unpacked_to_the_bit_and_is_what_the_format_says(
    said: Quantization, shape: tuple[int, tuple[int, int]], dtype: ScaleDtype, seed: int, data: Any
) -> None:
    rows, (columns, group) = shape
    dtype = "F16" if dtype == "F32" and said.bits == 4 else dtype
    said = Quantization(said.format, said.bits, group, said.symmetric, (), said.zero_offset)
    given_linear = linear(rows, columns, group, bits=said.bits, symmetric=said.symmetric, dtype=dtype, seed=seed)
    layout = layout_of(said)
    parts = pack(said, given_linear, "m")
    wanted = layout.parts(rows, columns, said)
    assert {name: (raw.shape, raw.dtype) for name, raw in parts.items()} == {
        name: (part.shape, parts[name].dtype) for name, part in wanted.items()
    }
    assert layout.shape(parts[layout.codes].shape, said.bits) == (rows, columns)

    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    before, after = data.draw(st.integers(0, start)), data.draw(st.integers(stop, rows))
    unit = group if 0 < group < columns else 1
    left = data.draw(st.integers(0, columns // unit - 1))
    right = data.draw(st.integers(left + 1, columns // unit))
    whole, narrow = (0, columns), (left * unit, right * unit)
    for (first, last), within, across in (
        ((0, rows), (0, rows), whole), ((start, stop), (0, rows), whole), ((start, stop), (before, after), narrow)
    ):  # fmt: skip
        window = Window((rows, columns), within, across)
        found = layout.unpack(taken(layout, parts, window, said), said, window, (first, last), "m")
        part = columns_of(given_linear.rows(first, last), across)
        assert found.scale_dtype == dtype
        assert np.array_equal(found.codes, part.codes)
        assert found.codes.dtype == part.codes.dtype
        assert np.array_equal(found.scales, part.scales)
        assert found.zeros is None if part.zeros is None else np.array_equal(found.zeros, part.zeros)

    plain = {name: values(raw) for name, raw in parts.items()}
    weights, size = given_linear.dequantize(), group or columns
    for _ in range(30):
        n, k = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        if said.format == "awq":
            triple = unpacking.awq(plain, n, k, size)
        elif said.format == "compressed-tensors":
            triple = unpacking.compressed(plain, n, k, size, said.bits)
        else:
            triple = unpacking.gptq(plain, n, k, said.bits, said.zero_offset)
        assert unpacking.weight(triple) == weights[n, k]


@pytest.mark.parametrize("said", FORMATS, ids=str)
def test_every_value_of_a_weight_is_what_the_format_says(said: Quantization) -> None:
    given_linear = linear(24, 128, 64, bits=said.bits, symmetric=said.symmetric)
    plain = {name: raw.data for name, raw in pack(said, given_linear, "m").items()}
    read = {
        "awq": lambda n, k: unpacking.awq(plain, n, k, 64),
        "compressed-tensors": lambda n, k: unpacking.compressed(plain, n, k, 64, said.bits),
        "gptq": lambda n, k: unpacking.gptq(plain, n, k, said.bits, said.zero_offset),
    }[said.format]
    by_hand = [[unpacking.weight(read(n, k)) for k in range(128)] for n in range(24)]
    assert np.array_equal(np.array(by_hand), given_linear.dequantize())


def test_output_features_that_fill_no_word_are_padded_where_the_format_allows() -> None:
    given_linear = linear(13, 64, 32)
    parts = packed_tensors("compressed-tensors", "m", given_linear)
    assert parts["m.weight_zero_point"].shape == (2, 2)
    plain = {name.removeprefix("m."): raw.data for name, raw in parts.items()}
    by_hand = [[unpacking.weight(unpacking.compressed(plain, n, k, 32, 4)) for k in range(64)] for n in range(13)]
    assert np.array_equal(np.array(by_hand), given_linear.dequantize())
    with pytest.raises(CheckpointError, match="multiple of 8"):
        packed_tensors("awq", "m", given_linear)


def test_eight_bits_have_no_place_in_awq() -> None:
    with pytest.raises(CheckpointError, match="4-bit weights"):
        packed_tensors("awq", "m", linear(16, 64, 0, bits=8))


def test_scales_are_written_as_they_are_or_not_at_all() -> None:
    fine = linear(8, 64, 64)
    off = QuantizedLinear(fine.codes, fine.scales * np.float32(1.0001), fine.zeros, "F16")
    with pytest.raises(CheckpointError, match="no values of F16"):
        packed_tensors("awq", "m", off)
    with pytest.raises(CheckpointError, match="F16 or BF16"):
        packed_tensors("awq", "m", QuantizedLinear(fine.codes, fine.scales, fine.zeros, "F32"))
    large = QuantizedLinear(fine.codes, np.full_like(fine.scales, 1e6), fine.zeros, "F16")
    with pytest.raises(CheckpointError, match="float16"):
        packed_tensors("awq", "m", large)


@pytest.mark.parametrize("said", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_not_finite_are_refused_by_name(said: Quantization, bad: float) -> None:
    parts = pack(said, linear(16, 64, 64, bits=said.bits, symmetric=said.symmetric), "m")
    scales = next(raw for name, raw in parts.items() if "scale" in name)
    scales.data.flat[-1] = bad
    with pytest.raises(CheckpointError, match="not finite") as caught:
        layout_of(said).unpack(parts, said, window_of(16, 64), (0, 16), "layers.0.m")
    assert str(caught.value.field).startswith("layers.0.m.")


def test_gptq_of_scattered_columns_or_another_layout_is_refused() -> None:
    said = Quantization("gptq", 4, 32, True, zero_offset=1)
    parts = pack(said, linear(16, 64, 32, symmetric=True), "m")
    other = Quantization("gptq", 4, 32, True, zero_offset=0)
    with pytest.raises(CheckpointError, match="checkpoint_format"):
        layout_of(other).unpack(parts, other, window_of(16, 64), (0, 16), "m")
    parts["g_idx"].data[:] = parts["g_idx"].data[::-1].copy()
    with pytest.raises(CheckpointError, match="scattered"):
        layout_of(said).unpack(parts, said, window_of(16, 64), (0, 16), "m")


def test_a_shape_that_is_not_the_codes_is_refused() -> None:
    said = Quantization("compressed-tensors", 4, 32, False)
    parts = pack(said, linear(16, 64, 32), "m")
    parts["weight_shape"].data[0] = 15
    with pytest.raises(CheckpointError, match="the codes are those of"):
        layout_of(said).unpack(parts, said, window_of(16, 64), (0, 16), "m")


@pytest.mark.parametrize("said", FORMATS, ids=str)
@pytest.mark.parametrize("group", [0, 32, 128])
def test_the_configuration_that_is_written_says_what_was_meant(said: Quantization, group: int) -> None:
    ignored = () if said.format == "gptq" else ("lm_head",)
    said = Quantization(said.format, said.bits, group, said.symmetric, ignored, said.zero_offset)
    assert parse_quantization({"quantization_config": described(said)}) == said


def test_a_window_that_cuts_a_group_is_refused() -> None:
    said = Quantization("awq", 4, 32, False)
    with pytest.raises(ValueError, match="columns 16:64 cut a group of 32"):
        layout_of(said).cuts(Window((8, 64), (0, 8), (16, 64)), said)
