"""A model run one decoder layer at a time: never more than one layer's weights in memory, in float32."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from plimsoll.api.architecture import find_architecture
from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.quantjob.layer import LINEARS, LayerMath, LayerWeights
from plimsoll.quantjob.rounding import Rounding, fit
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.models.loader import TORCH_DTYPES
from plimsoll.runtime.models.rope import rope_table

#: Elements of the embedding or the head that are float32 at a time.
_PIECE = 4 * 1024 * 1024


def not_finite(where: str) -> CheckpointError:
    """The refusal of a tensor with such a value."""
    return CheckpointError(
        "holds values that are not finite", field=where,
        fix="Download the checkpoint again; weights like these give no answers",
    )  # fmt: skip


class StreamedModel:
    """Forward pass of `checkpoint` (Hugging Face, GGUF or quantised), a layer at a time.

    Results depend on no number of threads, and a sequence's result on no other sequence.

    Attributes:
        facts: of the checkpoint.
        num_layers: decoder layers.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, round_to: Rounding | None = None, workers: Workers | None = None
    ) -> None:
        """Reads nothing yet.

        Args:
            round_to: round each linear to nearest on reading: the figures of round-to-nearest without writing a file.
            workers: the threads to use; a pool of one thread a processor if None.
        """
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.num_layers = self.facts.num_layers
        self.workers = workers or Workers()
        self._arch = find_architecture(self.facts.architecture)
        self._round_to = round_to
        self._math: dict[int, LayerMath] = {}
        self._head: Tensor | None = None

    def math(self, length: int) -> LayerMath:
        """The layer's arithmetic for sequences of `length` tokens."""
        if length not in self._math:
            self._math = {length: LayerMath(self.facts, *rope_table(self.facts, self.facts.rope, length))}
        return self._math[length]

    def embed(self, tokens: Tensor) -> Tensor:
        """(tokens int64 [S, L]) -> float32 [S, L, hidden]. Raises SpecError for a token the model does not have."""
        facts = self.facts
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < facts.vocab_size:
            raise SpecError(
                f"holds tokens outside the vocabulary of {facts.vocab_size}", field="tokens", value=int(tokens.max()),
                fix="Use the tokenizer that came with this checkpoint",
            )  # fmt: skip
        hidden = torch.empty(*tokens.shape, facts.hidden_size)
        step = max(1, _PIECE // facts.hidden_size)
        for start in range(0, facts.vocab_size, step):
            here = (tokens >= start) & (tokens < start + step)
            if here.any():
                rows = self._read(f"{self._arch.embedding}.weight", start, min(start + step, facts.vocab_size))
                hidden[here] = rows[tokens[here] - start].to(torch.float32)
        return hidden

    def layer(self, index: int, *, at_once: bool = True) -> LayerWeights:
        """Args: at_once: read the linears now, not when each is asked for.

        Raises CheckpointError for a tensor that cannot be read or holds a value that is not finite.
        """
        facts, prefix = self.facts, self._arch.layer.format(index)
        sliding = facts.sliding_layers is None or facts.sliding_layers[index]
        window = facts.sliding_window if sliding else None
        weights = LayerWeights(index, window, self._vectors(prefix), self._linears(prefix))
        for role in LINEARS if at_once else ():
            weights[role]
        return weights

    def _vectors(self, prefix: str) -> dict[str, Tensor]:
        """Norms and biases by role."""
        facts, arch = self.facts, self._arch
        named = {"attention_norm": f"{arch.attention_norm}.weight", "mlp_norm": f"{arch.mlp_norm}.weight"}
        if facts.qk_norm:
            named |= {"q_norm": f"{arch.q_norm}.weight", "k_norm": f"{arch.k_norm}.weight"}
        if facts.output_bias:
            named["o_bias"] = f"{arch.output}.bias"
        if facts.mlp_bias:
            mlp = zip(("gate", "up", "down"), (*arch.gate_up, arch.down), strict=True)
            named |= {f"{role}_bias": f"{name}.bias" for role, name in mlp}
        found = {}
        if facts.qkv_bias and arch.qkv_layout == "stacked":
            named |= {f"{role}_bias": f"{name}.bias" for role, name in zip("qkv", arch.qkv, strict=True)}
        elif facts.qkv_bias:
            found = self._apart(prefix + arch.qkv[0], "bias", "_bias")
        return found | {role: self._whole(prefix + name) for role, name in named.items()}

    def _linears(self, prefix: str) -> dict[tuple[str, ...], Callable[[], dict[str, Tensor]]]:
        """What reads them, by their roles."""
        arch = self._arch
        named = {"o": arch.output, "gate": arch.gate_up[0], "up": arch.gate_up[1], "down": arch.down}
        if arch.qkv_layout == "stacked":
            named |= dict(zip("qkv", arch.qkv, strict=True))

        def one(role: str) -> dict[str, Tensor]:
            return self._rounded({role: self._whole(f"{prefix}{named[role]}.weight")})

        found: dict[tuple[str, ...], Callable[[], dict[str, Tensor]]] = {(role,): partial(one, role) for role in named}
        if arch.qkv_layout != "stacked":
            found["q", "k", "v"] = lambda: self._rounded(self._apart(prefix + arch.qkv[0], "weight", ""))
        return found

    def _rounded(self, linears: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._round_to is None:
            return linears
        return {role: fit(weight, self._round_to).nearest(weight) for role, weight in linears.items()}

    def run(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """A micro-batch through a whole layer: float32 [S, L, hidden] -> a new one."""
        math = self.math(hidden.shape[1])
        return torch.stack(self.workers.map(lambda sequence: math.run(weights, sequence), hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """(hidden [R, hidden] of the last layer) -> float32 [R, vocab]: final norm and head, which stays in memory in
        the precision it is stored in."""
        if self._head is None:
            self._final_norm = self._whole(f"{self._arch.final_norm}.weight")
            tied = self.facts.tie_embeddings
            self._head = self._in_pieces(f"{self._arch.embedding if tied else self._arch.head}.weight")
        normed = self.math(1).norm(hidden, self._final_norm)
        step = max(1, _PIECE // self.facts.hidden_size)
        head = self._head
        starts = range(0, len(head), step)
        return torch.cat(
            self.workers.map(lambda start: normed @ head[start : start + step].to(torch.float32).T, starts), 1
        )

    def _in_pieces(self, name: str) -> Tensor:
        """[vocab, hidden] as stored, a run of rows at a time: decoding blocks takes several times what comes of it."""
        rows, step = self.facts.vocab_size, max(1, _PIECE // self.facts.hidden_size)
        first = self._read(name, 0, min(step, rows))
        found = torch.empty(rows, self.facts.hidden_size, dtype=first.dtype)
        found[: len(first)] = first
        for start in range(len(first), rows, step):
            stop = min(start + step, rows)
            found[start:stop] = self._read(name, start, stop)
        return found

    def _whole(self, name: str) -> Tensor:
        values = self._read(name, 0, None).to(torch.float32)
        if not torch.isfinite(values).all():
            raise not_finite(f"{self.checkpoint.path}: {name}")
        return values

    def _apart(self, name: str, kind: str, suffix: str) -> dict[str, Tensor]:
        """Queries, keys and values of a tensor whose rows lie as [kv_heads, queries a kv head + 2, head_dim]."""
        facts = self.facts
        group = facts.num_heads // facts.num_kv_heads
        whole = self._whole(f"{name}.{kind}").unflatten(0, (facts.num_kv_heads, group + 2, facts.head_dim))
        parts = whole[:, :group], whole[:, group : group + 1], whole[:, group + 1 :]
        return {role + suffix: part.flatten(0, 2).contiguous() for role, part in zip("qkv", parts, strict=True)}

    def _read(self, name: str, start: int, stop: int | None) -> Tensor:
        """As stored: float of some width."""
        raw = self.checkpoint.read(name, None if stop is None else (start, stop))
        if raw.dtype not in TORCH_DTYPES:
            raise CheckpointError("weights must be floating point", field=name, value=raw.dtype)
        return torch.from_numpy(raw.data).view(TORCH_DTYPES[raw.dtype])
