"""Load changes no answer: steps of hundreds of rows give each row the bits that it has alone, at every precision."""

from pathlib import Path

import pytest

from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.machine import processor
from plimsoll.runtime.messages import EngineRequest
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.engines import Result, make_engine, make_request, run, run_alone
from tests.support.tables import float32_tables

pytestmark = pytest.mark.skipif(len(float32_tables()) < 2, reason="the native kernels cannot run here")


@pytest.fixture(autouse=True)
def _amx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor that says it multiplies bfloat16 in hardware: no reason to leave the native kernels."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags : {' '.join(processor.processor_flags())} avx512_bf16 amx_bf16\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    monkeypatch.delenv("PLIMSOLL_TORCH_ROWS", raising=False)


def engine(model: Path, precision: str, num_blocks: int = 100, **options: object) -> Engine:
    block_bytes = 4096 * (2 if precision == "float32" else 1)
    return make_engine(
        model, precision=precision, kernels="native", num_blocks=num_blocks, block_bytes=block_bytes, **options  # type: ignore[arg-type]
    )  # fmt: skip


def crowd() -> list[EngineRequest]:
    """Eight requests, greedy and seeded, of 5 to 220 tokens; half of them begin alike."""
    shared = [(5 * i) % VOCAB_SIZE for i in range(160)]
    found = []
    for name in range(8):
        own = [(11 * name + 7 * i) % VOCAB_SIZE for i in range(5 + 8 * name)]
        wish = {"temperature": 0.9, "seed": name} if name % 2 else {"prompt_logprobs": 1 if name == 2 else None}
        found.append(make_request(name, (shared if name % 4 > 1 else []) + own, 6, logprobs=3, **wish))
    return found


def said(result: Result) -> tuple[object, ...]:
    return result.token_ids, result.logprobs, result.prompt_logprobs, result.finish_reason


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "w8a16", "w4a16"])
def test_a_crowd_hears_to_the_bit_what_each_hears_alone(tiny_llama: Path, precision: str) -> None:
    alone = engine(tiny_llama, precision, max_batched_tokens=64, prefix_caching=False)
    wanted = [said(run_alone(alone, request)) for request in crowd()]
    for step, blocks in ((2048, 100), (150, 20)):
        busy = engine(tiny_llama, precision, blocks, max_batched_tokens=step)
        found = run(busy, crowd())
        assert [said(found[str(name)]) for name in range(8)] == wanted
        assert busy.stats.prefix_hits
