"""Makers of tiny, valid checkpoints with random weights: every architecture, every format.

Weights are wide (standard deviation 0.25) and norms and biases uneven, so that a forgotten bias, a wrong head order or
a wrong rotation moves the logits far beyond rounding.
"""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "InternLM2ForCausalLM",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
END_OF_TEXT, TURN_START, TURN_END, PAD = range(4)
VOCAB_SIZE = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog. A ship's line shows how far she may be loaded before she founders.",
    "Paris is the capital of France; 日本の首都は東京です。 Naïve café, straße, привет, 😀🎉. 0123456789",
) * 4


@lru_cache(maxsize=1)
def tokenizer_json() -> str:
    """A byte-level BPE of `VOCAB_SIZE` entries with ChatML's special tokens, as the text of tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """tokenizer.json and tokenizer_config.json into `folder`."""
    (folder / "tokenizer.json").write_text(tokenizer_json())
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[TURN_END],
        "pad_token": SPECIAL_TOKENS[PAD],
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_config(architecture: str, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments of the architecture's transformers configuration; `overrides` win."""
    config: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "initializer_range": 0.25,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": TURN_END,
        "pad_token_id": PAD,
    }
    if architecture in ("MistralForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        config["sliding_window"] = 16
    if architecture == "Qwen3ForCausalLM":
        config["head_dim"] = 32
    return config | overrides


#: Heads and a width that two or more ranks share unevenly.
UNEVEN = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96, "intermediate_size": 160}


def make_checkpoint(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    *,
    dtype: str = "float32",
    seed: int = 0,
    shard_bytes: int | None = None,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """A Hugging Face folder as transformers writes it (InternLM2, which transformers lacks, by `pack_internlm2`).

    Args:
        dtype: torch's name of the stored precision.
        shard_bytes: write shards of at most so many bytes, with an index.
        overrides: configuration values, for example `num_hidden_layers=3` or
            `rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}`.
    """
    if architecture == "InternLM2ForCausalLM":
        twin = make_checkpoint(
            folder.with_name(folder.name + "-llama"), dtype=dtype, seed=seed, tokenizer=tokenizer, **overrides
        )
        return pack_internlm2(twin, folder)
    model = make_model(architecture, seed=seed, **overrides)
    import torch

    model.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard_bytes or "50GB")
    if tokenizer:
        write_tokenizer(folder)
    return folder


def make_model(architecture: str, *, seed: int = 0, **overrides: Any) -> Any:
    """The transformers model in float32 with seeded random weights, in eval mode."""
    import torch
    import transformers

    config = getattr(transformers, architecture).config_class(**tiny_config(architecture, **overrides))
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            about = 0.0 if architecture.startswith("Gemma") else 1.0
            parameter.copy_(about + 0.2 * noise if "norm" in name else 0.25 * noise)
    return model


def pack_internlm2(llama_folder: Path, folder: Path) -> Path:
    """The InternLM2 spelling of a Llama checkpoint with the same function: packed wqkv, its own names.

    wqkv rows are [kv_heads, queries per kv head + k + v, head_dim], as modeling_internlm2.py splits them.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((llama_folder / "config.json").read_text())
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    packed: dict[str, Any] = {}
    weights = {}
    for file in llama_folder.glob("*.safetensors"):
        weights |= load_file(file)
    import torch

    for name, tensor in weights.items():
        if "self_attn" in name and not name.endswith("o_proj.weight"):
            continue
        for theirs, ours in _INTERNLM2_NAMES.items():
            name = name.replace(theirs, ours)
        packed[name] = tensor.contiguous()
    for layer in range(config["num_hidden_layers"]):
        q, k, v = (
            weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"].unflatten(0, (kv_heads, -1, head_dim))
            for part in "qkv"
        )
        packed[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).flatten(0, 2).contiguous()
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    config["auto_map"] = {"AutoConfig": "configuration_internlm2.InternLM2Config"}
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    if (kind := rope.pop("rope_type", "default")) != "default":
        config["rope_scaling"] = {"type": kind, **rope}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (llama_folder / file).exists():
            shutil.copy(llama_folder / file, folder / file)
    return folder


_INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    # Gemma's, and Phi-3's.
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}


def make_gguf(
    path: Path,
    model: Any,
    *,
    block_type: str = "F32",
    architecture: str | None = None,
    extra: dict[str, Any] | None = None,
    replace: dict[str, tuple[Any, Any]] | None = None,
    pre: str = "gpt-2",
    sentencepiece: tuple[list[str], list[float], list[int]] | None = None,
    metadata: dict[str, Any] | None = None,
    tensors_a_part: int = 0,
) -> Path:
    """A GGUF of a transformers model, laid out as llama.cpp's converter does, with the tiny tokenizer.

    Args:
        block_type: a ggml type that the `gguf` package or `k_blocks` can quantize; matrices take it, vectors stay F32.
        architecture: `general.architecture`; default from the model (Mistral writes llama). `internlm2` for a Llama
            model gives what llama.cpp makes of InternLM2.
        extra: more tensors, by GGUF name.
        replace: GGUF name to (packed bytes, ggml type) in place of the model's values.
        pre: how the vocabulary says that text is split.
        sentencepiece: pieces, scores and token types of a vocabulary to write in place of the byte-level one.
        metadata: values that win over those from the model; None leaves the key out.
        tensors_a_part: split into parts of so many tensors, whose names begin with that of `path`; 0 is one file.
    """
    import gguf

    from tests.support.k_blocks import quantize

    config = model.config
    arch = architecture or {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=tensors_a_part)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if arch != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("llama", "internlm2", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    _write_rope(writer, rope)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("mistral", "gemma2", "gemma3_text", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if sentencepiece is None:
        _write_gguf_tokenizer(writer, pre)
    else:
        _write_sentencepiece(writer, *sentencepiece)
    kind = gguf.GGMLQuantizationType[block_type]
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, value in state.items():
        if arch in ("llama", "internlm2") and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            # llama.cpp's permute: rows i and i + head_dim / 2 of a head become neighbours.
            value = value.reshape(heads, 2, head_dim // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if arch.startswith("gemma"):
            value = value + 1 if name.endswith("norm.weight") else value
            name = name.replace("post_attention_layernorm", "post_attention_norm")
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if replace and name in replace:
            packed, packed_kind = replace[name]
            writer.add_tensor(name, packed, raw_dtype=packed_kind)
        elif value.ndim == 1 or block_type == "F32":
            writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(value), block_type), raw_dtype=kind)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_rope(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "longrope":
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_sentencepiece(writer: Any, pieces: list[str], scores: list[float], types: list[int]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _write_gguf_tokenizer(writer: Any, pre: str) -> None:
    from gguf import TokenType

    model = json.loads(tokenizer_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(TURN_END)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
