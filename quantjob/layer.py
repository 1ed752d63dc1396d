"""The arithmetic of one decoder layer in float32, cut where quantisation looks: before and after each linear."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll.api.model import ModelFacts

#: Linear layers by role, in the order of the forward pass.
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class LayerWeights(dict[str, Tensor]):
    """Float32 weights of one layer by role: attention_norm, q, k, v, o, mlp_norm, gate, up, down; q_norm, k_norm and
    `<linear>_bias` where the model has them. Matrices are [out, in]; a fused projection comes apart.

    Linears may be read when first asked for, by `weights[role]`: by one thread, before others run through them.

    Attributes:
        index: which layer.
        window: tokens a position sees, itself included; None is all before it.
    """

    def __init__(
        self,
        index: int,
        window: int | None,
        tensors: Mapping[str, Tensor],
        unread: Mapping[tuple[str, ...], Callable[[], Mapping[str, Tensor]]] | None = None,
    ) -> None:
        """Args: unread: what reads linears that are not there yet, by their roles."""
        super().__init__(tensors)
        self.index = index
        self.window = window
        self._unread = dict(unread or {})

    def __missing__(self, role: str) -> Tensor:
        for roles in self._unread:
            if role in roles:
                self.update(self._unread.pop(roles)())
                return self[role]
        raise KeyError(role)

    def drop(self, roles: Iterable[str]) -> None:
        """Free what is held of them. It is not read again."""
        for role in roles:
            self.pop(role, None)


@dataclass
class LayerMath:
    """The functions of a layer of this shape; `cos` and `sin` float32 [>= L, head_dim / 2]."""

    facts: ModelFacts
    cos: Tensor
    sin: Tensor
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last dimension."""
        variance = hidden.square().mean(-1, keepdim=True)
        return hidden * torch.rsqrt(variance + self.facts.rms_norm_eps) * weight

    def mix(self, weights: LayerWeights, normed: Tensor) -> Tensor:
        """(normed [L, hidden]) -> what attention gives to the output projection, [L, heads * head_dim]."""
        length = len(normed)
        q, k, v = (
            linear(weights, role, normed).view(length, -1, self.facts.head_dim).transpose(0, 1) for role in "qkv"
        )
        if "q_norm" in weights:
            q, k = self.norm(q, weights["q_norm"]), self.norm(k, weights["k_norm"])
        q, k = self._rotate(q), self._rotate(k)
        mask = self._mask(length, weights.window)
        mixed = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).reshape(length, -1)

    def attention(self, weights: LayerWeights, normed: Tensor) -> Tensor:
        """(normed [L, hidden]) -> what attention adds, [L, hidden]."""
        return linear(weights, "o", self.mix(weights, normed))

    def gated(self, weights: LayerWeights, normed: Tensor) -> Tensor:
        """(normed [L, hidden]) -> what goes into the down projection, [L, intermediate]."""
        return functional.silu(linear(weights, "gate", normed), inplace=True).mul_(linear(weights, "up", normed))

    def mlp(self, weights: LayerWeights, normed: Tensor) -> Tensor:
        """(normed [L, hidden]) -> what the MLP adds, [L, hidden]."""
        return linear(weights, "down", self.gated(weights, normed))

    def run(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """One sequence through the layer: [L, hidden] -> [L, hidden]."""
        hidden = hidden + self.attention(weights, self.norm(hidden, weights["attention_norm"]))
        return hidden + self.mlp(weights, self.norm(hidden, weights["mlp_norm"]))

    def _rotate(self, heads: Tensor) -> Tensor:
        """[H, L, head_dim]: dimension i turns with i + head_dim / 2."""
        length, half = heads.shape[1], heads.shape[2] // 2
        cos, sin = self.cos[:length], self.sin[:length]
        first, second = heads[..., :half], heads[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def _mask(self, length: int, window: int | None) -> Tensor | None:
        if window is None or window >= length:
            return None
        if (length, window) not in self._masks:
            distance = torch.arange(length)[:, None] - torch.arange(length)
            self._masks[length, window] = (distance >= 0) & (distance < window)
        return self._masks[length, window]


def linear(weights: LayerWeights, role: str, inputs: Tensor) -> Tensor:
    """`inputs` [L, K] through the linear of that role, with its bias if it has one."""
    return functional.linear(inputs, weights[role], weights.get(f"{role}_bias"))
