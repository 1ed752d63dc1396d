"""What the largest step takes where each layer is one call of rows of 8 bits, and where it is not."""

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.budget import Load, budget
from plimsoll.api.device import TORCH_TABLE, DeviceFacts, TableFacts, native_table
from plimsoll.api.layers_at_once import FEW_ROWS
from plimsoll.api.model import ModelFacts
from tests.api.test_rank_budget import GIB, UNEVEN

QUICK = native_table(32, quick_bytes=True)
ROWS = 2048
INNER = 3 * UNEVEN.intermediate_size * 4
"""Bytes of gate, up and their product of a row."""


def activations(table: TableFacts = QUICK, facts: ModelFacts = UNEVEN, rows: int = ROWS, **wish: Any) -> int:
    load = Load(**{"precision": "w4a16", "max_batched_tokens": rows, **wish})
    return budget(facts, DeviceFacts("cpu", 8 * GIB, table), load).ranks[0].workspace_terms["activations"]


def test_what_an_mlp_makes_of_its_rows_is_not_counted_where_a_layer_is_one_call() -> None:
    whole = activations(activation_precision="bfloat16")
    assert activations() == activations(native_table(32), activation_precision="int8") == whole - ROWS * INNER
    assert activations(rows=FEW_ROWS) == activations(rows=FEW_ROWS, activation_precision="bfloat16") - FEW_ROWS * INNER


@pytest.mark.parametrize(
    ("table", "wish"),
    [
        (QUICK, {"precision": "bfloat16"}),
        (QUICK, {"tensor": 3}),
        (QUICK, {"rows": FEW_ROWS - 1}),
        (native_table(32), {}),
        (native_table(32, wide=True, quick_bytes=True), {}),
        (TORCH_TABLE, {"activation_precision": "int8"}),
    ],
    ids=["no codes", "ranks", "few rows", "rows of bfloat16 by default", "products of torch", "plain torch"],
)
def test_it_is_counted_where_operations_run_one_by_one(table: TableFacts, wish: dict[str, Any]) -> None:
    inner = UNEVEN.intermediate_size // wish.get("tensor", 1)
    assert activations(table, **wish) > wish.get("rows", ROWS) * 3 * inner * (table.activation_bytes or 2)


def test_it_is_counted_for_layers_that_no_call_covers() -> None:
    other = replace(UNEVEN, layers=tuple(replace(spec, activation="gelu") for spec in UNEVEN.layers))
    assert activations(facts=other) == activations() + ROWS * INNER
