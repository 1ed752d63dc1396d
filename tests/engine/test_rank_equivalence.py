"""An engine of several ranks answers as one rank does, however its work is cut, shared and taken back.

Each family is tried once. `PLIMSOLL_FUZZ=2` tries it in every form and on 2, 3 and 4 ranks.
"""

import os
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from plimsoll.api.precision import Precision
from plimsoll.api.shard import shards
from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.engine import engine as engine_module
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker import loading
from plimsoll.runtime.messages import EngineRequest
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import assert_same, make_engine, make_request, run, run_alone
from tests.support.prompt_passes import DrawnPace
from tests.support.rank_threads import RankThreads

MODEL_LEN, BLOCK_SIZE = 112, 16
SHAPES: dict[str, Any] = {
    "vocab_size": 331, "hidden_size": 288, "intermediate_size": 160, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 32, "tokenizer": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {}, "MistralForCausalLM": {}, "Qwen2ForCausalLM": {}, "Qwen3ForCausalLM": {},
    "InternLM2ForCausalLM": {}, "Gemma2ForCausalLM": {"query_pre_attn_scalar": 24},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": 16}, "Phi3ForCausalLM": {},
}  # fmt: skip
#: The precision that weights are held in, and the two formats that files have them in.
FORMS = ("float32", "bfloat16", "w8a16", "w4a16", "awq", "gptq")
ALL = int(os.environ.get("PLIMSOLL_FUZZ", "1")) > 1
CASES = (
    list(product(FAMILIES, FORMS, (2, 3, 4)))
    if ALL
    else [(family, FORMS[at % 6], 2 + (at + at // 3) % 3) for at, family in enumerate(FAMILIES)]
)


def made(folder: Path, family: str, form: str) -> tuple[Path, Precision]:
    """A model of this family, and the precision that it is loaded in. bfloat16 is that of its file."""
    stored = "bfloat16" if form == "bfloat16" else "float32"
    plain = make_checkpoint(folder / "plain", family, dtype=stored, **SHAPES | FAMILIES[family])
    if form in quantized.ALL:
        return quantized.quantize_folder(plain, folder / form, quantized.ALL[form])[0], "w4a16"
    return plain, "float32" if form == "bfloat16" else form  # type: ignore[return-value]


def requests() -> list[EngineRequest]:
    """Greedy and seeded, most with a prefix in common, one with log-probabilities of its prompt."""
    shared, found = [3 + 7 * at % 300 for at in range(33)], []
    for name in range(5):
        own = [3 + (17 * name + 31 * at) % 300 for at in range(5 + 3 * name)]
        params: dict[str, Any] = {"logprobs": 6}
        if name % 2:
            params |= {"temperature": 0.8, "top_k": 5, "seed": name}
        if name == 2:
            params["prompt_logprobs"] = 2
        found.append(make_request(name, own if name == 4 else shared + own, 24, **params))
    return found


def build(folder: Path, precision: Precision, tensor: int, num_blocks: int, **options: Any) -> Engine:
    facts = open_checkpoint(folder).facts
    keys = max(part.counts[1] for part in shards(facts, tensor, precision))
    element = 4 if precision == "float32" else 2
    return make_engine(
        folder, num_blocks=num_blocks, block_size=BLOCK_SIZE, precision=precision, tensor=tensor,
        activation_precision="auto" if precision == "float32" else "bfloat16",
        block_bytes=BLOCK_SIZE * facts.num_layers * 2 * keys * facts.head_dim * element, max_model_len=MODEL_LEN,
        memory=1 << 30, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _ranks_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are float32: rounded to bfloat16 they would differ by more than sums in another order do."""
    monkeypatch.setattr(loading, "find_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(engine_module, "Ranks", RankThreads)


@pytest.mark.parametrize(("family", "form", "tensor"), CASES)
def test_ranks_answer_as_one_while_prompts_are_cut_prefixes_shared_and_requests_preempted(
    tmp_path: Path, family: str, form: str, tensor: int
) -> None:
    folder, precision = made(tmp_path, family, form)
    alone = build(folder, precision, 1, MODEL_LEN // BLOCK_SIZE, prefix_caching=False)
    engine = build(folder, precision, tensor, 10, max_batched_tokens=24)
    try:
        assert len(engine.ready.ranks) == tensor
        found = run(engine, requests())
        assert engine.stats.preemptions
        assert engine.stats.prefix_hits
    finally:
        engine.close()
    for request in requests():
        assert_same(request, run_alone(alone, request), found[request.request_id])


@pytest.mark.parametrize(("family", "form", "tensor"), [CASES[0], CASES[5]])
def test_ranks_run_passes_in_parts_of_layers_as_one_does(tmp_path: Path, family: str, form: str, tensor: int) -> None:
    folder, precision = made(tmp_path, family, form)
    alone = build(folder, precision, 1, MODEL_LEN // BLOCK_SIZE, prefix_caching=False)
    engine, drawn = build(folder, precision, tensor, 20, paced=True), random.Random(1)
    pace = engine.scheduler.pace = DrawnPace(engine.facts.num_layers, drawn.randint)
    try:
        found = run(engine, requests(), arrivals=lambda: drawn.randint(0, 1))
        assert pace.parts > 4
    finally:
        engine.close()
    for request in requests():
        assert_same(request, run_alone(alone, request), found[request.request_id])
