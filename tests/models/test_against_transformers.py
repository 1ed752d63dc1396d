"""Log-probabilities at every position against Hugging Face transformers, float32, on tiny random models."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.paging import prompt_logprobs
from tests.support.tables import float32_tables, table_name

LENGTHS = (53, 1, 90, 16)
LONGEST = 90


def rope(kind: str, **params: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **params}}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {}),
    "Llama, tied, biased": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "Llama, one key-value head, wide heads": (
        "LlamaForCausalLM",
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 24},
    ),
    "Llama, heads of 100 as in OpenLLaMA-3B": (
        "LlamaForCausalLM",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 100},
    ),
    "Qwen3, heads of 6": ("Qwen3ForCausalLM", {"head_dim": 6}),
    "Llama, every head its own": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "Mistral": ("MistralForCausalLM", {}),
    "Mistral, full attention": ("MistralForCausalLM", {"sliding_window": None}),
    "Qwen2": ("Qwen2ForCausalLM", {}),
    "Qwen2, sliding above the first layer": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "InternLM2": ("InternLM2ForCausalLM", {}),
    "InternLM2, stretched": (
        "InternLM2ForCausalLM",
        {"max_position_embeddings": 64, **rope("dynamic", factor=2.0)},
    ),
    "linear": ("LlamaForCausalLM", rope("linear", factor=2.5)),
    "dynamic within the trained length": ("LlamaForCausalLM", rope("dynamic", factor=2.0)),
    "dynamic beyond it": ("LlamaForCausalLM", {"max_position_embeddings": 64, **rope("dynamic", factor=2.0)}),
    "yarn": ("Qwen2ForCausalLM", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "yarn, attention factor": (
        "Qwen3ForCausalLM",
        rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3),
    ),
    "llama3": (
        "LlamaForCausalLM",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
}


def make_prompts() -> list[list[int]]:
    source = random.Random(5)
    return [[source.randrange(VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(name: str) -> Path:
        architecture, overrides = MODELS[name]
        return make_checkpoint(root / name.replace(" ", "-"), architecture, tokenizer=False, **overrides)

    return folder


def reference(folder: Path, prompts: list[list[int]]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    # transformers has no InternLM2: the Llama model it was packed from computes the same function.
    twin = folder.with_name(folder.name + "-llama")
    model = AutoModelForCausalLM.from_pretrained(
        twin if twin.exists() else folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].log_softmax(-1) for prompt in prompts]


def load(folder: Path, kernels: Kernels, max_model_len: int | None = None) -> Decoder:
    checkpoint = open_checkpoint(folder)
    return load_decoder(checkpoint, checkpoint.facts, kernels, torch.float32, max_model_len=max_model_len)


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", float32_tables(), ids=table_name)
@pytest.mark.parametrize("name", MODELS)
def test_every_position_is_within_1e_4(folders: Any, name: str, kernels: Kernels) -> None:
    """Whole prompts in one batch, and the same cut into odd chunks, over two sizes of block."""
    folder, prompts = folders(name), make_prompts()
    length = None
    if MODELS[name][1].get("max_position_embeddings") == 64:
        # Stretched dynamic RoPE agrees where the prompt is as long as the engine allows, and only there.
        length, prompts = LONGEST, [prompt for prompt in prompts if len(prompt) == LONGEST]
    wanted = reference(folder, prompts)
    decoder = load(folder, kernels, length)
    assert_same(prompt_logprobs(decoder, prompts, block_size=64), wanted)
    assert_same(prompt_logprobs(decoder, prompts, chunks=(1, 7, 33, 2, 16), block_size=16), wanted)


def test_a_short_prompt_in_a_stretched_dynamic_model_is_a_prefix_of_a_long_one(folders: Any) -> None:
    """Where transformers would change the angles with the length, ours stay: a cached prefix is worth the same."""
    decoder = load(folders("dynamic beyond it"), float32_tables()[0], LONGEST)
    prompt = max(make_prompts(), key=len)
    long, short = prompt_logprobs(decoder, [prompt])[0], prompt_logprobs(decoder, [prompt[:40]])[0]
    torch.testing.assert_close(long[:40], short, rtol=0, atol=1e-5)
