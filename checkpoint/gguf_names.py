"""What a GGUF file calls things, and what Hugging Face calls them."""

import re

from plimsoll.api.errors import CheckpointError

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Rotary tables: `rope_freqs` becomes the configuration's rope_scaling, the others are computed.
_TABLES = re.compile(r"rope_freqs\.weight|(blk\.\d+\.)?attn_rot_embd\.weight|blk\.\d+\.rope_freqs\.weight")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z_]+)\.(weight|bias)")


def huggingface_name(name: str, where: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None for one that holds no weights.

    Raises:
        CheckpointError: a tensor no supported architecture has; ignoring it would change the answers.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    if _TABLES.fullmatch(name):
        return None
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        raise CheckpointError(
            f"tensor {name[:120]!r} belongs to no architecture that can be served", field=where,
            fix="Served: dense Llama, Mistral, Qwen2, Qwen3, InternLM2",
        )  # fmt: skip
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
