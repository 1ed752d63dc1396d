"""Gemma 2 and 3 and Phi-3: log-probabilities against transformers from both formats, the budget, and quantization."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plimsoll.api.device import DeviceFacts
from plimsoll.api.families.registry import find_family
from plimsoll.api.sizes import weight_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.evaluation import compare
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint, make_gguf, make_model
from tests.support.outliers import inject_outliers
from tests.support.paging import prompt_logprobs
from tests.support.quantizing import job_options, run_job, write_text
from tests.support.tables import float32_tables, table_name

SHORT = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128}
FACTORS = {
    "short_factor": [1.0 + 0.1 * index for index in range(6)],
    "long_factor": [1.5 + index for index in range(6)],
}
LINEAR = {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma 2": ("Gemma2ForCausalLM", {"num_hidden_layers": 4, "query_pre_attn_scalar": 24}),
    "Gemma 2, tight caps, untied": (
        "Gemma2ForCausalLM",
        {
            "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0, "head_dim": 32, "query_pre_attn_scalar": 32,
            "tie_word_embeddings": False,
        },
    ),
    "Gemma 3, local and global positions": (
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4, "query_pre_attn_scalar": 16, "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "Gemma 3, every sixth layer full": (
        "Gemma3ForCausalLM",
        {"num_hidden_layers": 7, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    ),
    "Phi-3": ("Phi3ForCausalLM", {}),
    "Phi-3, sliding": ("Phi3ForCausalLM", {"sliding_window": 12}),
    "Phi-4-mini, three quarters of a head rotated": (
        "Phi3ForCausalLM",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        },
    ),
    "Phi-4-mini, LongRoPE, short": (
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 128, "max_position_embeddings": 256,
            "rope_parameters": {**SHORT, **FACTORS, "partial_rotary_factor": 0.75},
        },
    ),
    "Phi-4-mini, LongRoPE, long": (
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 40, "max_position_embeddings": 256,
            "rope_parameters": {
                **SHORT, **FACTORS, "original_max_position_embeddings": 40, "partial_rotary_factor": 0.75,
            },
        },
    ),
}  # fmt: skip
#: What a GGUF cannot say: llama.cpp knows neither where windows lie otherwise nor another scale of scores.
ONLY_SAFETENSORS = ("Gemma 2", "Gemma 3, local and global positions")
LENGTHS = (53, 90)


def length_of(name: str) -> int:
    """Longest sequence to set up for: within the original length where the short factors are asked for."""
    return 96 if name.endswith("short") else 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(name: str) -> Path:
        architecture, overrides = MODELS[name]
        return make_checkpoint(root / name.replace(" ", "-"), architecture, tokenizer=False, **overrides)

    return folder


@pytest.fixture(scope="module")
def references(folders: Any) -> Any:
    @cache
    def reference(name: str) -> list[Tensor]:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folders(name), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.inference_mode():
            return [model(torch.tensor([prompt])).logits[0].log_softmax(-1) for prompt in prompts()]

    return reference


def prompts() -> list[list[int]]:
    return [[(11 * index + 7 * length) % VOCAB_SIZE for index in range(length)] for length in LENGTHS]


def assert_same(path: Path, kernels: Kernels, name: str, wanted: list[Tensor]) -> None:
    checkpoint = open_checkpoint(path)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32, max_model_len=length_of(name))
    for chunks in ((1000,), (1, 7, 33, 2, 16)):
        for ours, theirs in zip(prompt_logprobs(decoder, prompts(), chunks=chunks), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    assert weight_bytes(checkpoint.facts, "float32", device) == decoder.weight_bytes


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
@pytest.mark.parametrize("name", MODELS)
def test_every_position_is_within_1e_4(folders: Any, references: Any, name: str, kernels: Kernels) -> None:
    assert_same(folders(name), kernels, name, references(name))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONLY_SAFETENSORS])
def test_a_gguf_gives_the_same(folders: Any, references: Any, name: str, tmp_path: Path) -> None:
    architecture, overrides = MODELS[name]
    path = make_gguf(tmp_path / "model.gguf", make_model(architecture, **overrides))
    assert set(open_checkpoint(path).tensors) == set(open_checkpoint(folders(name)).tensors)
    assert_same(path, float32_tables()[-1], name, references(name))


@pytest.mark.parametrize("table", ["native", "torch"])
@pytest.mark.parametrize("architecture", ["Gemma3ForCausalLM", "Phi3ForCausalLM"])
def test_the_budget_counts_what_is_held_in_half_precision(architecture: str, table: str, tmp_path: Path) -> None:
    from plimsoll.runtime.kernels.selection import select

    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", architecture, dtype="bfloat16", tokenizer=False))
    kernels = select(torch.device("cpu"), torch.bfloat16, table)
    decoder = load_decoder(checkpoint, checkpoint.facts, kernels, torch.bfloat16, precision="w8a16")
    device = DeviceFacts("cpu", 1 << 30, kernels.facts)
    assert weight_bytes(checkpoint.facts, "w8a16", device) == decoder.weight_bytes


@pytest.mark.parametrize("architecture", ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"])
def test_awq_closes_more_than_half_of_rounding_to_nearest(architecture: str, tmp_path: Path) -> None:
    source = make_checkpoint(
        tmp_path / "model", architecture, hidden_size=128, intermediate_size=192, num_hidden_layers=2, head_dim=32,
        dtype="bfloat16",
    )  # fmt: skip
    inject_outliers(source)
    run_job(job_options(source, tmp_path / "out", write_text(tmp_path / "text.txt")))
    workers, checkpoint = Workers(2), open_checkpoint(source)
    others = {
        "nearest": StreamedModel(checkpoint, round_to=Rounding(4, 32), workers=workers),
        "ours": StreamedModel(open_checkpoint(tmp_path / "out"), workers=workers),
    }
    from plimsoll.quantjob.data import tokens_of

    ids = torch.randint(0, VOCAB_SIZE, (4, 64), generator=torch.Generator().manual_seed(1))
    found = compare(StreamedModel(checkpoint, workers=workers), others, tokens_of(ids.numpy(), "random")).others
    for ours, nearest in zip(found["ours"].layer_error, found["nearest"].layer_error, strict=True):
        assert ours < nearest / 2
    assert find_family(architecture).groupings
