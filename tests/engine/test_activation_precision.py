"""An engine whose activations have 8 bits where they meet codes: equal answers under any load, and plain refusals."""

from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import PlimsollError, SpecError
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


def test_quantized_rows_change_an_answer_a_little_and_say_so_in_the_digest(folders: dict[str, Path]) -> None:
    ready = []
    for wish in ("auto", "bfloat16", "int8"):
        engine = make_engine(folders["four"], precision="auto", kernels="native", activation_precision=wish)
        ready.append(engine.ready)
        engine.close()
    assert ready[0].determinism == ready[1].determinism
    assert ready[0].kernels == ready[1].kernels
    assert ready[2].determinism.digest not in ("", ready[0].determinism.digest)


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
    with pytest.raises(PlimsollError, match="Leave out torch_rows and PLIMSOLL_TORCH_ROWS"):
        make_engine(folders["four"], precision="auto", activation_precision="int8", kernels="native")


def test_plain_torch_quantizes_rows_too(folders: dict[str, Path]) -> None:
    engine = make_engine(folders["eight"], precision="auto", activation_precision="int8", kernels="torch")
    assert engine.ready.kernels == "torch-int8"
    assert len(run(engine, [make_request("one", PROMPTS[1])])["one"].token_ids) == 8
    engine.close()
