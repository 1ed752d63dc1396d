"""Wishes for rows of activations that do not go with the weights or the device."""

import pytest

from plimsoll.api.activations import FIELD, refuse_activations, rows_note, rows_of
from plimsoll.api.device import TORCH_TABLE, DeviceKind, native_table
from plimsoll.api.errors import SpecError
from plimsoll.api.names import OPTIONS
from plimsoll.api.precision import ActivationPrecision, Precision


@pytest.mark.parametrize(
    ("wish", "precision", "kind", "torch_rows", "words"),
    [
        ("int8", "w4a16", "cuda", None, "only products on a CPU"),
        ("bfloat16", "bfloat16", "cuda", None, "only products on a CPU"),
        ("int8", "bfloat16", "cpu", None, "goes with weights of 4 or 8 bits, and they are held in bfloat16"),
        ("int8", "float32", "cpu", None, "held in float32"),
        ("bfloat16", "float32", "cpu", None, "which meet activations in float32"),
        ("int8", "w8a16", "cpu", 128, "contradicts serving.torchRows"),
    ],
)
def test_a_wish_that_does_not_apply_is_refused_with_a_way_out(
    wish: ActivationPrecision, precision: Precision, kind: DeviceKind, torch_rows: int | None, words: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        refuse_activations(wish, precision, kind, torch_rows)
    assert (caught.value.field, caught.value.value) == (FIELD, wish)
    assert caught.value.fix


def test_a_wish_that_applies_and_none_at_all_are_taken() -> None:
    for precision in ("w4a16", "w8a16"):
        refuse_activations("int8", precision, "cpu", None)
        refuse_activations("bfloat16", precision, "cpu", 128)
    refuse_activations("bfloat16", "bfloat16", "cpu", None)
    refuse_activations("auto", "float32", "cuda", 128)


def test_auto_takes_what_the_table_multiplies_faster_beside_codes_alone() -> None:
    quick, slow, wide = native_table(32, quick_bytes=True), native_table(32), native_table(32, True, True)
    for precision in ("w4a16", "w8a16"):
        assert [rows_of("auto", precision, table) for table in (quick, slow, wide)] == ["int8", "bfloat16", "bfloat16"]
        assert rows_of("auto", precision, TORCH_TABLE) == "auto"
    assert rows_of("auto", "bfloat16", quick) == "auto"
    assert rows_of("bfloat16", "w4a16", quick) == "bfloat16"
    assert rows_of("int8", "w4a16", slow) == "int8"


def test_people_read_what_rows_become_and_why() -> None:
    quick, slow = native_table(32, quick_bytes=True), native_table(32)
    assert rows_note("auto", "w4a16", quick) == (
        "activations become int8 where they meet w4a16 weights: this processor multiplies bytes faster; "
        "serving.activationPrecision bfloat16 keeps 16 bits"
    )
    assert "bfloat16 where they meet w8a16 weights: auto takes int8 on" in str(rows_note("auto", "w8a16", slow))
    assert "as serving.activationPrecision says" in str(rows_note("int8", "w8a16", slow))
    assert "--activation-precision bfloat16 keeps" in str(rows_note("auto", "w4a16", quick, OPTIONS))
    assert "without AMX and --torch-rows" in str(rows_note("auto", "w8a16", slow, OPTIONS))
    assert rows_note("auto", "bfloat16", quick) is None
    assert rows_note("auto", "w4a16", TORCH_TABLE) is None
