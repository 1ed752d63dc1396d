"""At every precision of the native kernels an answer has the bits that it has alone, beside any other work."""

import random
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.precision import HeldCache, Precision
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import Result, make_engine, make_request, run, run_alone
from tests.support.prompt_passes import DrawnPace

MODEL_LEN, BLOCK = 192, 16
HEAD_BYTES = {"float": 16 * 2, "int8": 16 + 4, "int4": (16 * 10 // 8 + 8) // 2}
"""Of a token, by cache; a layer has keys and values of two heads."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, whose matrices have whole groups of 4 bits."""
    shape = {"hidden_size": 128, "intermediate_size": 224, "num_attention_heads": 8, "num_key_value_heads": 2}
    return make_checkpoint(tmp_path_factory.mktemp("bits") / "llama", **shape, head_dim=16)


def build(
    model: Path, precision: Precision, blocks: int, cache_precision: HeldCache = "float", **options: Any
) -> Engine:
    head = HEAD_BYTES[cache_precision] * (2 if (precision, cache_precision) == ("float32", "float") else 1)
    return make_engine(
        model, num_blocks=blocks, block_bytes=2 * 2 * 2 * head * BLOCK, block_size=BLOCK, kernels="native",
        precision=precision, cache_precision=cache_precision, max_model_len=MODEL_LEN, **options,
    )  # fmt: skip


def asked() -> list[EngineRequest]:
    """64, greedy and seeded, of 1 to 150 tokens, every third with a long beginning in common."""
    requests = []
    for name in range(64):
        length = (1, 2, 3, 30, 31, 33, 64, 100, 150)[name % 9] + name // 9
        prompt = [3 + (17 * (name if i >= 48 or name % 3 else 0) + 31 * i) % 300 for i in range(length)]
        params: dict[str, Any] = {"temperature": 0.9, "seed": name} if name % 2 else {}
        requests.append(make_request(name, prompt, 20, logprobs=5, **params))
    return requests


def bits(result: Result) -> object:
    """Everything that was said, without rounding."""
    assert result.error is None
    return result.token_ids, repr(result.logprobs)


@pytest.mark.parametrize("cache", ["float", "int8", "int4"])
@pytest.mark.parametrize("precision", ["bfloat16", "w8a16", "w4a16", "float32"])
def test_load_order_chunks_prefixes_and_preemption_change_no_bit(
    model: Path, precision: Precision, cache: HeldCache
) -> None:
    def built(blocks: int, **options: Any) -> Engine:
        return build(model, precision, blocks, cache, **options)

    alone = built(MODEL_LEN // BLOCK, prefix_caching=False)
    wanted = {request.request_id: bits(run_alone(alone, request)) for request in asked()}

    def holds(engine: Engine, order: list[EngineRequest]) -> None:
        assert {name: bits(result) for name, result in run(engine, order).items()} == wanted

    shuffled = asked()
    random.Random(1).shuffle(shuffled)
    for at_once, chunk in ((4, 2048), (16, 37), (48, 512)):
        holds(built(400, prefix_caching=False, max_running=at_once, max_batched_tokens=chunk), shuffled)
    kept = built(800, max_batched_tokens=32)
    for order in (asked(), shuffled):
        holds(kept, order)
    assert kept.stats.prefix_hits > 64
    small = built(MODEL_LEN // BLOCK + 4, prefix_caching=False, max_batched_tokens=128)
    holds(small, shuffled)
    assert small.stats.preemptions > 0
    for blocks, caching in ((400, True), (MODEL_LEN // BLOCK + 4, False)):
        cut = built(blocks, prefix_caching=caching, max_batched_tokens=256, paced=True)
        pace = cut.scheduler.pace = DrawnPace(2, random.Random(blocks).randint)
        arrivals = random.Random(2)
        found = run(cut, shuffled, arrivals=lambda: arrivals.randint(0, 2))  # noqa: B023
        assert {name: bits(result) for name, result in found.items()} == wanted
        assert pace.parts > 32
