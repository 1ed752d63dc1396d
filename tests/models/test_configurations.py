"""What a config.json says, in every spelling: log-probabilities against transformers, which reads the same file."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plimsoll.checkpoint import open_checkpoint
from plimsoll.runtime.models.loader import load_decoder
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.support.paging import prompt_logprobs
from tests.support.tables import float32_tables

_source = random.Random(7)
PROMPT = [_source.randrange(VOCAB_SIZE) for _ in range(90)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope_scaling beside rope_parameters": ("Qwen3ForCausalLM", {"rope_scaling": YARN}),
    "the same in the words of transformers 4": (
        "Qwen2ForCausalLM",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "rope_scaling beside a base of rope_parameters": (
        "Qwen3ForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": YARN},
    ),
    "rope_scaling beside rope_parameters and a base at the top": (
        "LlamaForCausalLM",
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 3.0}},
    ),
    "rope_scaling with a base of its own": ("LlamaForCausalLM", {"rope_scaling": YARN | {"rope_theta": 2e4}}),
    "an empty rope_scaling": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "rope_scaling": {}},
    ),
    "the trained length at the top, yarn": (
        "Qwen2ForCausalLM",
        {"original_max_position_embeddings": 32, "rope_scaling": YARN},
    ),
    "the trained length at the top, llama3": (
        "LlamaForCausalLM",
        {"original_max_position_embeddings": 32, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 128}},
    ),
    "the trained length at the top, linear": (
        "MistralForCausalLM",
        {"original_max_position_embeddings": 32, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "llama3 without a trained length": ("LlamaForCausalLM", {"rope_scaling": LLAMA3}),
    "yarn without a trained length": ("LlamaForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 2.0}}),
    "yarn with all that it takes": (
        "Qwen3ForCausalLM",
        {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.1,
                                 "truncate": False}},
    ),
    "windows in some layers, by their kinds": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ministral": (
        "MistralForCausalLM",
        {"model_type": "ministral", "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "swish": ("LlamaForCausalLM", {"hidden_act": "swish"}),
    "keys that ask for nothing": (
        "LlamaForCausalLM",
        {"partial_rotary_factor": 1.0, "logits_scaling": 1.0, "is_causal": True, "rope_interleaved": False,
         "sliding_window": 4, "max_window_layers": 1},
    ),
}  # fmt: skip


def described(folder: Path, config: dict[str, Any]) -> Path:
    """`folder` with these keys in its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def ours(folder: Path) -> Tensor:
    checkpoint = open_checkpoint(folder)
    decoder = load_decoder(checkpoint, checkpoint.facts, float32_tables()[0], torch.float32)
    return prompt_logprobs(decoder, [PROMPT], block_size=16)[0]


def theirs(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_means_what_transformers_reads(name: str, tmp_path: Path) -> None:
    architecture, config = SPELLINGS[name]
    folder = described(make_checkpoint(tmp_path / "model", architecture, tokenizer=False), config)
    torch.testing.assert_close(ours(folder), theirs(folder), rtol=0, atol=1e-4)


@pytest.mark.parametrize("said", ["false", "False", 0])
def test_a_flag_as_text_or_number_means_what_it_says(said: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tokenizer=False, tie_word_embeddings=False)
    wanted = theirs(folder)
    torch.testing.assert_close(ours(described(folder, {"tie_word_embeddings": said})), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "InternLM2ForCausalLM"])
def test_a_tied_model_with_another_head_uses_it_and_says_so(architecture: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, tokenizer=False, tie_word_embeddings=False)
    twin = tmp_path / "model-llama"
    wanted = theirs(twin if twin.exists() else folder)
    described(folder, {"tie_word_embeddings": True})
    torch.testing.assert_close(ours(folder), wanted, rtol=0, atol=1e-4)
    (notice,) = open_checkpoint(folder).notices
    assert "tie_word_embeddings" in notice
    assert "as it is stored" in notice


def test_a_tied_model_with_a_copy_of_its_embedding_for_a_head_is_tied(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tokenizer=False, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, folder / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.facts.tie_embeddings, checkpoint.notices) == (True, ())
    other = embedding.clone()
    other[-1, -1] += 1
    save_file(weights | {"lm_head.weight": other}, folder / "model.safetensors", {"format": "pt"})
    assert not open_checkpoint(folder).facts.tie_embeddings


@pytest.mark.parametrize("said", ["torch.float32", "auto"])
def test_a_precision_as_torch_prints_it_is_read(said: str, tmp_path: Path) -> None:
    folder = described(make_checkpoint(tmp_path / "model", tokenizer=False), {"dtype": said})
    torch.testing.assert_close(ours(folder), theirs(folder), rtol=0, atol=1e-4)
