"""What rows of activations become where they meet weights of 4 or 8 bits, and wishes that do not apply."""

from plimsoll.api.device import DeviceKind, TableFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.names import MANIFEST, Names
from plimsoll.api.precision import CODE_BITS, ActivationPrecision, Precision

FIELD = "spec.serving.activationPrecision"


def refuse_activations(
    wish: ActivationPrecision, precision: Precision, kind: DeviceKind, torch_rows: int | None, names: Names = MANIFEST
) -> None:
    """Raises SpecError where `wish` means nothing for weights held in `precision` on this kind of device.

    Args:
        torch_rows: rows of a step from which products are torch's, which take bfloat16; None is never.
    """
    if wish == "auto":
        return
    if kind != "cpu":
        raise SpecError(
            "only products on a CPU know it",
            field=FIELD,
            value=wish,
            fix="Leave it out: kernels of a GPU round nothing",
        )
    if wish == "int8" and precision not in CODE_BITS:
        raise SpecError(
            f"goes with weights of 4 or 8 bits, and they are held in {precision}", field=FIELD, value=wish,
            fix="Hold weights as w8a16 or w4a16, or leave it out",
        )  # fmt: skip
    if wish == "bfloat16" and precision == "float32":
        raise SpecError(
            "weights are held in float32, which meet activations in float32", field=FIELD, value=wish,
            fix="Hold weights as bfloat16, w8a16 or w4a16, or leave it out",
        )  # fmt: skip
    if wish == "int8" and torch_rows is not None:
        raise SpecError(
            f"contradicts {names.torch_rows}, by which steps of {torch_rows} rows meet weights in bfloat16",
            field=FIELD, value=wish, fix="Leave out one of them",
        )  # fmt: skip


def rows_of(wish: ActivationPrecision, precision: Precision, table: TableFacts) -> ActivationPrecision:
    """What rows become where they meet weights held in `precision`; auto: they stay as they are.

    `auto` takes what `table` says is faster. A wish stays as it is.
    """
    if wish != "auto" or precision not in CODE_BITS or table.activation_rows is None:
        return wish
    return table.activation_rows


def rows_note(
    wish: ActivationPrecision, precision: Precision, table: TableFacts, names: Names = MANIFEST
) -> str | None:
    """What rows become beside weights in codes, and why, for people; None where they stay as they are."""
    found = rows_of(wish, precision, table)
    if found == "auto" or precision not in CODE_BITS:
        return None
    said = f"activations become {found} where they meet {precision} weights"
    if wish != "auto":
        return f"{said}, as {names.activations} says"
    if found == "int8":
        return f"{said}: this processor multiplies bytes faster; {names.activations} bfloat16 keeps 16 bits"
    where = f"with AVX2 or SDOT, without AMX and {names.torch_rows}"
    return f"{said}: auto takes int8 on processors {where}"
