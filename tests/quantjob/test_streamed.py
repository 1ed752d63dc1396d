"""The streamed forward pass against transformers, and its independence of threads and neighbours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.rounding import Rounding
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.workers import Workers
from tests.support.checkpoints import VOCAB_SIZE, make_checkpoint

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, tied, biased": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "Mistral, sliding": ("MistralForCausalLM", {}),
    "Qwen2, sliding above the first layer": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3ForCausalLM", {}),
    "InternLM2": ("InternLM2ForCausalLM", {}),
    "stretched beyond the trained length": (
        "LlamaForCausalLM",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
}


def tokens(sequences: int = 3, length: int = 50) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (sequences, length), generator=torch.Generator().manual_seed(1))


def streamed_logits(model: StreamedModel, ids: Tensor) -> Tensor:
    hidden = model.embed(ids)
    for index in range(model.num_layers):
        hidden = model.run(model.layer(index), hidden)
    return model.logits(hidden.flatten(0, 1)).unflatten(0, ids.shape)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    architecture, overrides = SHAPES[name]
    folder = make_checkpoint(tmp_path / "model", architecture, tokenizer=False, **overrides)
    twin = tmp_path / "model-llama"
    reference = AutoModelForCausalLM.from_pretrained(twin if twin.exists() else folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = reference(tokens()).logits.log_softmax(-1)
    found = streamed_logits(StreamedModel(open_checkpoint(folder)), tokens()).log_softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_bits_depend_neither_on_threads_nor_on_neighbours(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", tokenizer=False))
    ids = tokens(5)
    alone, together = StreamedModel(checkpoint, workers=Workers(1)), StreamedModel(checkpoint, workers=Workers(3))
    wanted = streamed_logits(together, ids)
    assert torch.equal(streamed_logits(alone, ids), wanted)
    hidden = together.embed(ids)
    weights = together.layer(0)
    assert torch.equal(alone.run(weights, hidden[1:2]), together.run(weights, hidden)[1:2])


def test_rounding_on_reading_moves_linears_alone(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", tokenizer=False))
    plain = StreamedModel(checkpoint).layer(0)
    for rounding, levels in ((Rounding(4, 32), 16), (Rounding(8), 255)):
        rounded = StreamedModel(checkpoint, round_to=rounding).layer(0)
        for role, values in plain.items():
            assert torch.equal(rounded[role], values) == role.endswith("norm")
        row = rounded["down"][0, : rounding.group_size or None]
        assert 2 < len(row.unique()) <= levels


def test_a_token_outside_the_vocabulary_and_a_weight_that_is_no_number_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "model", tokenizer=False)
    with pytest.raises(SpecError, match="outside the vocabulary"):
        StreamedModel(open_checkpoint(folder)).embed(torch.tensor([[VOCAB_SIZE]]))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = StreamedModel(open_checkpoint(folder))
    model.layer(0)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        model.layer(1)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "InternLM2ForCausalLM"])
def test_linears_are_read_when_they_are_asked_for_and_once_let_go_of_not_again(
    architecture: str, tmp_path: Path
) -> None:
    model = StreamedModel(open_checkpoint(make_checkpoint(tmp_path / "model", architecture, tokenizer=False)))
    whole, weights = model.layer(1), model.layer(1, at_once=False)
    assert set(weights) == {"attention_norm", "mlp_norm"}
    assert torch.equal(weights["v"], whole["v"])
    assert "down" not in weights
    for role in whole:
        assert torch.equal(weights[role], whole[role])
    weights.drop(("v", "down"))
    assert set(weights) == set(whole) - {"v", "down"}
    with pytest.raises(KeyError):
        weights["v"]
