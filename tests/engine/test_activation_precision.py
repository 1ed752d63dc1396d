"""An engine whose activations have 8 bits where they meet codes: equal answers under any load, and plain refusals."""

import logging
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.api.precision import ActivationPrecision
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.worker.loading import Prepared, prepare
from plimsoll.runtime.kernels.native import native_kernels, native_library
from tests.support import quantized
from tests.support.engines import make_engine, make_request, run

PROMPTS = [[(7 * i + j) % 300 + 4 for i in range(5 + 29 * j)] for j in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """4 and 8 bits, and the floats that the 4 bits stand for."""
    root = tmp_path_factory.mktemp("activations")
    wide = {"tokenizer": False, "vocab_size": 320}
    four, floats = quantized.make_quantized(root / "four", quantized.AWQ, **wide)
    eight, _ = quantized.make_quantized(root / "eight", quantized.COMPRESSED_8, **wide)
    return {"four": four, "eight": eight, "floats": floats}


def answers(folder: Path, together: bool, **options: Any) -> dict[str, Any]:
    engine = make_engine(folder, precision="auto", activation_precision="int8", **options)
    requests = [make_request(at, prompt, logprobs=1) for at, prompt in enumerate(PROMPTS)]
    found: dict[str, Any] = {}
    for some in [requests] if together else [[one] for one in requests]:
        found |= run(engine, some)
    assert "-int8" in engine.ready.kernels
    assert engine.ready.determinism.deterministic
    engine.close()
    return found


@pytest.mark.parametrize("stored", ["four", "eight"])
def test_answers_are_the_same_alone_together_and_in_other_chunks(folders: dict[str, Path], stored: str) -> None:
    alone = answers(folders[stored], together=False, kernels="native")
    for chunk in (16, 48, 2048):
        found = answers(folders[stored], together=True, kernels="native", max_batched_tokens=chunk)
        for name, one in alone.items():
            assert found[name].token_ids == one.token_ids
            assert found[name].logprobs == one.logprobs


def prepared(folder: Path, wish: ActivationPrecision, **options: Any) -> Prepared:
    config = EngineConfig(model=str(folder), memory=2 << 30, max_model_len=64, activation_precision=wish, **options)
    return prepare(config)


def test_the_default_is_what_this_processor_multiplies_faster_and_says_so(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = native_kernels("cpu", torch.bfloat16).facts.activation_rows
    assert wanted in ("int8", "bfloat16")
    with caplog.at_level(logging.INFO):
        found = {wish: prepared(folders["four"], wish, kernels="native") for wish in get_args(ActivationPrecision)}
    assert found["auto"].determinism == found[wanted].determinism
    assert found["auto"].kernels.name == found[wanted].kernels.name
    assert found["int8"].determinism.digest not in ("", found["bfloat16"].determinism.digest)
    assert found["auto"].of_followers().activation_precision == wanted
    said = [record.message for record in caplog.records if record.message.startswith("activations become")]
    assert said[0].startswith(f"activations become {wanted} where they meet w4a16 weights: ")
    assert said[2] == "activations become bfloat16 where they meet w4a16 weights, as activation_precision says"


@pytest.mark.parametrize(("wanted", "ending"), [("int8", "-int8-vnni"), ("bfloat16", "")])
def test_what_the_table_finds_faster_is_what_runs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wanted: str, ending: str
) -> None:
    """On any processor: as if it had VNNI and no AMX, and as if it had not."""
    library = native_library()
    monkeypatch.setattr(library, "int8_is_faster", lambda: wanted == "int8")
    monkeypatch.setattr(library, "vnni_works", lambda: True)
    plain = native_kernels("cpu", torch.bfloat16).name
    for stored in ("four", "eight"):
        assert prepared(folders[stored], "auto").kernels.name == plain + ending
    assert prepared(folders["floats"], "auto").kernels.name == plain
    assert prepared(folders["four"], "auto", kernels="torch").kernels.name == "torch"
    assert prepared(folders["four"], "auto", torch_rows=64).kernels.name == plain
    assert prepared(folders["four"], "bfloat16").kernels.name == plain


def test_floats_and_rows_for_torch_are_refused_by_name(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="held in bfloat16") as caught:
        make_engine(folders["floats"], precision="auto", activation_precision="int8")
    assert caught.value.field == "spec.serving.activationPrecision"
    with pytest.raises(PlimsollError, match="in bfloat16") as rows:
        make_engine(folders["four"], precision="auto", activation_precision="int8", torch_rows=64, kernels="native")
    assert rows.value.field == "spec.serving.activationPrecision"
    monkeypatch.setenv("PLIMSOLL_TORCH_ROWS", "64")
    with pytest.raises(PlimsollError, match="Leave out PLIMSOLL_TORCH_ROWS or this"):
        make_engine(folders["four"], precision="auto", activation_precision="int8", kernels="native")


def test_plain_torch_quantizes_rows_too(folders: dict[str, Path]) -> None:
    engine = make_engine(folders["eight"], precision="auto", activation_precision="int8", kernels="torch")
    assert engine.ready.kernels == "torch-int8"
    assert len(run(engine, [make_request("one", PROMPTS[1])])["one"].token_ids) == 8
    engine.close()
