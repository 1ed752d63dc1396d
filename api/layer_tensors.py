"""The tensors of a model: what a layer holds by role, and how the checkpoint of its family stores that."""

from collections.abc import Mapping

from plimsoll.api.families.family import Linear, Names
from plimsoll.api.families.registry import find_family
from plimsoll.api.model import LayerSpec, ModelFacts

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
"""Roles of linears, in the order of the forward pass. A layer without a gate has no `gate`."""
FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"), "output": ("o",), "gate_up": ("gate", "up"), "down": ("down",),
}  # fmt: skip
"""The matrices that the engine multiplies by, and the roles whose rows each stacks."""

SUMMED = ("o", "down")
"""Roles whose columns are split over ranks: their products are sums over ranks, and biases are added once."""


def fused_roles(spec: LayerSpec, matrix: str) -> tuple[str, ...]:
    """Roles of `FUSED[matrix]` that a layer of this spec has."""
    return tuple(role for role in FUSED[matrix] if role != "gate" or spec.gated)


def stored_linears(names: Names, spec: LayerSpec, matrix: str) -> tuple[Linear, ...]:
    """What the checkpoint stores of `FUSED[matrix]`, top to bottom."""
    return tuple(dict.fromkeys(names.linear(role) for role in fused_roles(spec, matrix)))


def role_shape(facts: ModelFacts, role: str) -> tuple[int, int]:
    """[rows, columns] of a linear."""
    hidden, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    return {
        "q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }[role]  # fmt: skip


def has_bias(spec: LayerSpec, role: str) -> bool:
    """Whether the linear of `role` adds a bias."""
    return {"q": spec.qkv_bias, "k": spec.qkv_bias, "v": spec.qkv_bias, "o": spec.output_bias}.get(role, spec.mlp_bias)


def norm_sizes(facts: ModelFacts, spec: LayerSpec) -> dict[str, int]:
    """Role to length of every norm that a layer of this spec has."""
    hidden, dim = facts.hidden_size, facts.head_dim
    found: dict[str, int] = {}
    if spec.placement != "after":
        found |= {"attention_norm": hidden, "mlp_norm": hidden}
    if spec.placement != "before":
        found |= {"attention_post_norm": hidden, "mlp_post_norm": hidden}
    if spec.qk_norm is not None:
        queries, keys = (facts.num_heads, facts.num_kv_heads) if spec.qk_norm == "whole" else (1, 1)
        found |= {"q_norm": queries * dim, "k_norm": keys * dim}
    return found


def expected_tensors(facts: ModelFacts) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor the model needs. A tied head is not among them."""
    names = find_family(facts.architecture).names
    shapes: dict[str, tuple[int, ...]] = {f"{names.embedding}.weight": (facts.vocab_size, facts.hidden_size)}
    for index, spec in enumerate(facts.layers):
        prefix = names.layer.format(index)
        for role, size in norm_sizes(facts, spec).items():
            shapes[f"{prefix}{names.norms[role]}.weight"] = (size,)
            if spec.norm.bias:
                shapes[f"{prefix}{names.norms[role]}.bias"] = (size,)
        for linear in names.linears:
            roles = [role for role in linear.roles if role != "gate" or spec.gated]
            if not roles:
                continue
            rows = sum(role_shape(facts, role)[0] for role in roles)
            shapes[f"{prefix}{linear.module}.weight"] = (rows, role_shape(facts, roles[0])[1])
            if has_bias(spec, roles[0]):
                shapes[f"{prefix}{linear.module}.bias"] = (rows,)
    shapes[f"{names.final_norm}.weight"] = (facts.hidden_size,)
    if facts.final_norm.bias:
        shapes[f"{names.final_norm}.bias"] = (facts.hidden_size,)
    if not facts.tie_embeddings:
        shapes[f"{names.head}.weight"] = (facts.vocab_size, facts.hidden_size)
    return shapes
