"""Channels made large without changing what a model computes: what rounding loses on, and scales recover."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from plimsoll.checkpoint import open_checkpoint


def inject_outliers(folder: Path, factor: float = 16.0, share: int = 4, seed: int = 0) -> Path:
    """Multiply one of `share` channels of each norm, and of the rows of up, by `factor`, and divide the columns that
    read them. Of values, whole channels of a key-value head with the columns of every head that reads them."""
    facts = open_checkpoint(folder).facts
    file = folder / "model.safetensors"
    weights = load_file(file)
    generator = torch.Generator().manual_seed(seed)

    def chosen(channels: int) -> torch.Tensor:
        scale = torch.ones(channels)
        scale[torch.randperm(channels, generator=generator)[: channels // share]] = factor
        return scale

    for index in range(facts.num_layers):
        prefix = f"model.layers.{index}."

        def scale(name: str, by: torch.Tensor, prefix: str = prefix) -> None:
            tensor = weights[prefix + name]
            weights[prefix + name] = (tensor * by.to(tensor.dtype)).contiguous()

        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            large = chosen(facts.hidden_size)
            scale(f"{norm}.weight", large)
            for reader in readers:
                scale(f"{reader}.weight", 1 / large)
        large = chosen(facts.intermediate_size)
        scale("mlp.up_proj.weight", large[:, None])
        scale("mlp.down_proj.weight", 1 / large)
        large = chosen(facts.num_kv_heads * facts.head_dim)
        scale("self_attn.v_proj.weight", large[:, None])
        heads = large.view(facts.num_kv_heads, 1, -1).expand(-1, facts.num_heads // facts.num_kv_heads, -1)
        scale("self_attn.o_proj.weight", 1 / heads.reshape(-1))
    save_file(weights, file, metadata={"format": "pt"})
    return folder
