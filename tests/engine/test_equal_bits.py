"""At every precision of the native kernels an answer has the bits that it has alone, beside any other work."""

import random
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.precision import Precision
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import Result, make_engine, make_request, run, run_alone

MODEL_LEN, BLOCK = 192, 16
TOKEN_BYTES = 2 * 2 * 2 * 16 * 2
"""Layers x (key, value) x heads x dim x bfloat16."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, whose matrices have whole groups of 4 bits."""
    shape = {"hidden_size": 128, "intermediate_size": 224, "num_attention_heads": 8, "num_key_value_heads": 2}
    return make_checkpoint(tmp_path_factory.mktemp("bits") / "llama", **shape, head_dim=16)


def build(model: Path, precision: Precision, blocks: int, **options: Any) -> Engine:
    return make_engine(
        model, num_blocks=blocks, block_bytes=TOKEN_BYTES * BLOCK, block_size=BLOCK, kernels="native",
        precision=precision, max_model_len=MODEL_LEN, **options,
    )  # fmt: skip


def asked() -> list[EngineRequest]:
    """Greedy and seeded ones, of 1 to 150 tokens, every third with a long beginning in common."""
    requests = []
    for name, length in enumerate((1, 2, 3, 30, 31, 33, 64, 100, 150)):
        prompt = [3 + (17 * (name if i >= 48 or name % 3 else 0) + 31 * i) % 300 for i in range(length)]
        params: dict[str, Any] = {"temperature": 0.9, "seed": name} if name % 2 else {}
        requests.append(make_request(name, prompt, 20, logprobs=5, **params))
    return requests


def bits(result: Result) -> object:
    """Everything that was said, without rounding."""
    assert result.error is None
    return result.token_ids, repr(result.logprobs)


@pytest.mark.parametrize("precision", ["bfloat16", "w8a16", "w4a16"])
def test_load_order_chunks_prefixes_and_preemption_change_no_bit(model: Path, precision: Precision) -> None:
    alone = build(model, precision, MODEL_LEN // BLOCK, prefix_caching=False)
    wanted = {request.request_id: bits(run_alone(alone, request)) for request in asked()}

    def holds(engine: Engine, order: list[EngineRequest]) -> None:
        assert {name: bits(result) for name, result in run(engine, order).items()} == wanted

    shuffled = asked()
    random.Random(1).shuffle(shuffled)
    holds(build(model, precision, 100, prefix_caching=False), asked())
    kept = build(model, precision, 100)
    holds(kept, shuffled)
    holds(kept, asked())
    small = build(model, precision, MODEL_LEN // BLOCK + 4, max_batched_tokens=37)
    holds(small, shuffled)
    assert small.stats.preemptions > 0
