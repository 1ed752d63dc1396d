"""The self-test at start-up: one digest a processor, and the name of an operation whose rows depend on others."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.runtime.engine.worker.self_test import of_group, self_test
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from plimsoll.runtime.messages import Determinism
from tests.support.engines import make_engine

CPU = torch.device("cpu")
IN_A_PROCESS = """
import torch
from plimsoll.runtime.engine.worker.self_test import self_test
from plimsoll.runtime.kernels.native import native_kernels
torch.set_num_threads(2)
torch.randn(1000)
print(self_test(native_kernels("cpu", torch.bfloat16), torch.bfloat16).digest)
"""


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_native_kernels_keep_the_bits_of_a_row_on_any_number_of_threads(dtype: torch.dtype) -> None:
    found = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.add(self_test(native_kernels("cpu", dtype), dtype))
    assert len(found) == 1
    test = found.pop()
    assert (test.deterministic, test.reason) == (True, "")
    assert test.digest.startswith("sha256:")
    assert len(test.digest) == len("sha256:") + 64


def test_rows_of_8_bits_have_equal_bits_and_a_digest_of_their_own() -> None:
    found = [self_test(native_kernels("cpu", dtype, int8=True), dtype) for dtype in (torch.bfloat16, torch.float32)]
    assert all(test.deterministic for test in found)
    rounded = self_test(native_kernels("cpu", torch.bfloat16), torch.bfloat16)
    assert rounded.digest not in [test.digest for test in found]


def test_the_digest_is_the_same_in_another_process() -> None:
    said = subprocess.run([sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, check=True).stdout
    assert said.strip() == self_test(native_kernels("cpu", torch.bfloat16), torch.bfloat16).digest


def test_the_digest_is_another_where_one_bit_is() -> None:
    ops = native_kernels("cpu", torch.bfloat16)

    def moved(*arguments: Any) -> torch.Tensor:
        made = ops.rms_norm(*arguments)
        return torch.where(made == made.max(), torch.nextafter(made, made + 1), made)

    assert self_test(replace(ops, rms_norm=moved), torch.bfloat16).digest != self_test(ops, torch.bfloat16).digest


def by_rows(operation: Callable[..., Any]) -> Callable[..., Any]:
    """`operation` with other results where it has many rows."""

    def varying(x: torch.Tensor, *arguments: Any) -> Any:
        if len(x) <= 100:
            return operation(x, *arguments)
        if operation.__name__ == "rope":
            x.mul_(1 + 1e-6)
            return operation(x, *arguments)
        return operation(x, *arguments) * (1 + 1e-6)

    return varying


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("linear", "product of floats, product of 8 bits, product of 4 bits, product of 4 bits with minimums"),
        ("embedding", "embedding"),
        ("rms_norm", "rms_norm"),
        ("layer_norm", "layer_norm"),
        ("add_rms_norm", "add_rms_norm"),
        ("activate", "silu, gelu, gelu_tanh, relu2"),
        ("rope", "rope"),
        ("attention", "attention to a cache in bfloat16"),
    ],
)
def test_an_operation_whose_bits_depend_on_the_number_of_rows_is_named(operation: str, named: str) -> None:
    ops = native_kernels("cpu", torch.bfloat16)
    test = self_test(replace(ops, **{operation: by_rows(getattr(ops, operation))}), torch.bfloat16)
    assert not test.deterministic
    assert named in test.reason
    assert test.digest


def test_layers_in_one_call_are_held_to_the_operations_one_by_one() -> None:
    ops = native_kernels("cpu", torch.bfloat16)
    assert ops.layers is not None
    make = ops.layers

    def layers(*model: Any) -> Any:
        run = make(*model)
        assert run is not None

        def moved(*step: Any) -> torch.Tensor | None:
            made = run(*step)
            return None if made is None else made * (1 + 1e-6)

        return moved

    test = self_test(replace(ops, layers=layers), torch.bfloat16)
    assert test.reason.endswith(
        ": layers with a cache in bfloat16, layers with a cache in int8, layers with a cache in int4"
    )


def test_attention_that_reads_another_sequence_is_named() -> None:
    ops = native_kernels("cpu", torch.bfloat16)

    def mixed(q: torch.Tensor, cache: Any, batch: Any, *arguments: Any) -> torch.Tensor:
        return ops.attention(q, cache, replace(batch, block_tables=batch.block_tables.roll(1, 0)), *arguments)

    test = self_test(replace(ops, attention=mixed), torch.bfloat16)
    assert "attention in a window to a cache in int4" in test.reason


def tables() -> list[tuple[str, Kernels]]:
    return [
        ("plain torch sums in an order", torch_kernels("cpu", torch.bfloat16)),
        ("torch multiplies steps of 128 rows and more", select(CPU, torch.bfloat16, torch_rows=128)),
    ]


def test_kernels_that_promise_nothing_say_why_and_have_no_digest() -> None:
    for words, ops in tables():
        test = self_test(ops, torch.bfloat16)
        assert (test.deterministic, test.digest) == (False, "")
        assert test.reason.startswith(words)


@pytest.mark.parametrize(
    "options", [{"kernels": "torch"}, {"kernels": "native", "torch_rows": 64, "precision": "bfloat16"}]
)
def test_an_engine_that_must_be_deterministic_refuses_to_start_where_it_cannot_be(
    tiny_llama: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(SpecError, match="cannot be kept equal") as caught:
        make_engine(tiny_llama, deterministic=True, **options)
    assert caught.value.field == "spec.serving.deterministic"
    assert ("depend on load, or leave out torch_rows" in str(caught.value)) == ("torch_rows" in options)
    engine = make_engine(tiny_llama, **options)
    assert not engine.ready.determinism.deterministic
    engine.close()


def test_rows_for_torch_of_the_environment_count_too(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIMSOLL_TORCH_ROWS", "64")
    with pytest.raises(PlimsollError, match="torch multiplies steps of 64 rows and more"):
        make_engine(tiny_llama, deterministic=True, kernels="native", precision="bfloat16")


def test_an_engine_says_what_its_kernels_found(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, deterministic=True, kernels="native")
    assert engine.ready.determinism == self_test(native_kernels("cpu", torch.float32), torch.float32)
    assert engine.ready.kernels.startswith("native-")
    engine.close()


def test_ranks_together_are_what_all_of_them_are() -> None:
    one, other = (Determinism(deterministic=True, digest=f"sha256:{name}") for name in "ab")
    fault = Determinism(deterministic=False, reason="because")
    assert of_group([one, one]) == one
    together = of_group([one, other])
    assert together.deterministic
    assert together.digest not in (one.digest, other.digest, of_group([other, one]).digest)
    broken = of_group([one, fault])
    assert (broken.deterministic, broken.reason) == (False, "rank 1: because")
