"""Key biases are measured beside the keys that they are added to, however a checkpoint stores the two."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.key_biases import key_bias_ranges
from plimsoll.runtime.kernels.quantized_cache import spread
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model, pack_internlm2
from tests.support.quantized import AWQ, quantize_folder

HEAD = 16
"""Channels of a head of the tiny models; they have two key heads in each of two layers."""


def biased(folder: Path, architecture: str = "Qwen2ForCausalLM", layer: int = 1, channel: int = HEAD + 3) -> Path:
    """Small biases everywhere, and one of 30 in one channel of a layer's keys."""
    made = make_checkpoint(folder, architecture, tokenizer=False, num_key_value_heads=2)
    weights = load_file(made / "model.safetensors")
    weights[f"model.layers.{layer}.self_attn.k_proj.bias"][channel] = 30.0
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


def by_hand(folder: Path) -> dict[str, float]:
    """The root mean square of all heads, in torch."""
    weights, ratios = load_file(folder / "model.safetensors"), []
    for layer in range(2):
        at = f"model.layers.{layer}."
        keys = weights[f"{at}self_attn.k_proj.weight"].float() * weights[f"{at}input_layernorm.weight"].float()
        bias = weights[f"{at}self_attn.k_proj.bias"].float().view(-1, HEAD)
        each = keys.square().sum(1).view(-1, HEAD).mean(1).sqrt()
        ratios.append(torch.stack([(b.amax(1) - b.amin(1)) / each for b in (bias, spread(bias))]))
    return dict(zip(("int8", "int4"), torch.cat(ratios, dim=1).square().mean(1).sqrt().tolist(), strict=True))


@pytest.mark.parametrize(("layer", "channel"), [(0, 3), (0, HEAD + 3), (1, 3), (1, HEAD + 15)])
def test_one_wide_head_counts_wherever_it_is(tmp_path: Path, layer: int, channel: int) -> None:
    folder = biased(tmp_path / "qwen2", layer=layer, channel=channel)
    found = key_bias_ranges(open_checkpoint(folder))
    assert found == pytest.approx(by_hand(folder), rel=1e-5)
    # One channel of 16 is spread over all of them, half of them with another sign.
    assert found["int8"] / found["int4"] == pytest.approx(2, rel=0.2)


def test_bfloat16_and_codes_give_nearly_the_same(tmp_path: Path) -> None:
    folder = biased(tmp_path / "floats")
    expected = by_hand(folder)
    quantized, _ = quantize_folder(folder, tmp_path / "codes", AWQ)
    assert key_bias_ranges(open_checkpoint(quantized)) == pytest.approx(expected, rel=0.05)
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert key_bias_ranges(open_checkpoint(folder)) == pytest.approx(expected, rel=0.02)


def test_keys_are_found_where_they_are_stored_with_queries_and_values(tmp_path: Path) -> None:
    llama = make_checkpoint(tmp_path / "llama", tokenizer=False, attention_bias=True)
    packed = pack_internlm2(llama, tmp_path / "internlm2")
    weights, stored = load_file(llama / "model.safetensors"), load_file(packed / "model.safetensors")
    for layer in range(2):
        parts = (weights[f"model.layers.{layer}.self_attn.{role}_proj.bias"].view(2, -1, HEAD) for role in "qkv")
        stored[f"model.layers.{layer}.attention.wqkv.bias"] = torch.cat(list(parts), dim=1).flatten().contiguous()
        stored[f"model.layers.{layer}.attention.wo.bias"] = weights[f"model.layers.{layer}.self_attn.o_proj.bias"]
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"bias": True}))
    assert key_bias_ranges(open_checkpoint(packed)) == pytest.approx(by_hand(llama), rel=1e-5)


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM"])
def test_a_gguf_gives_what_its_model_has(tmp_path: Path, architecture: str) -> None:
    wanted = {} if architecture.startswith("Qwen2") else {"attention_bias": True}
    model = make_model(architecture, **wanted)
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    gguf = make_gguf(tmp_path / "model.gguf", model)
    assert key_bias_ranges(open_checkpoint(gguf)) == pytest.approx(by_hand(folder), rel=1e-5)


def test_nothing_is_said_of_keys_without_biases_nor_of_keys_that_are_normed(tmp_path: Path) -> None:
    assert key_bias_ranges(open_checkpoint(make_checkpoint(tmp_path / "llama", tokenizer=False))) is None
    normed = make_checkpoint(tmp_path / "qwen3", "Qwen3ForCausalLM", tokenizer=False, attention_bias=True)
    assert open_checkpoint(normed).facts.layers[0].qkv_bias
    assert key_bias_ranges(open_checkpoint(normed)) is None
