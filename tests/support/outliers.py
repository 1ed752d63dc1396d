"""Channels made large without changing what a model computes: what rounding loses on, and scales recover."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import role_shape
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

    names = find_family(facts.architecture).names
    for index, spec in enumerate(facts.layers):
        prefix, offset = names.layer.format(index), spec.norm.offset

        def scale(role: str, by: torch.Tensor, prefix: str = prefix) -> None:
            """Rows ([N, 1]) or columns ([K]) of a linear, in the place that it has in a fused tensor."""
            linear = names.linear(role)
            name = f"{prefix}{linear.module}.weight"
            before = linear.roles[: linear.roles.index(role)]
            first = sum(role_shape(facts, one)[0] for one in before)
            tensor = weights[name].clone()
            rows = slice(first, first + role_shape(facts, role)[0])
            tensor[rows] = tensor[rows] * by.to(tensor.dtype)
            weights[name] = tensor

        for norm, readers in (("attention_norm", "qkv"), ("mlp_norm", ("gate", "up"))):
            large = chosen(facts.hidden_size)
            name = f"{prefix}{names.norms[norm]}.weight"
            weights[name] = ((weights[name].float() + offset) * large - offset).to(weights[name].dtype)
            for reader in readers:
                scale(reader, 1 / large)
        large = chosen(facts.intermediate_size)
        scale("up", large[:, None])
        scale("down", 1 / large)
        large = chosen(facts.num_kv_heads * facts.head_dim)
        scale("v", large[:, None])
        heads = large.view(facts.num_kv_heads, 1, -1).expand(-1, facts.num_heads // facts.num_kv_heads, -1)
        scale("o", 1 / heads.reshape(-1))
    save_file(weights, file, metadata={"format": "pt"})
    return folder
