"""The one decoder: every family is this forward pass with other weights and other specs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts
from plimsoll.api.shard import Shard, vocab_widths
from plimsoll.runtime.kernels.table import AttentionBatch, Kernels, KVCaches
from plimsoll.runtime.models.best import Best, best_of, best_of_packed, packed
from plimsoll.runtime.models.group import Group
from plimsoll.runtime.models.layer import norm, run_layer
from plimsoll.runtime.models.rows import Rows
from plimsoll.runtime.models.weights import DecoderLayer, Norm, Weight


class Decoder:
    """Token ids in, logits out; no state of its own besides the weights and a count of what is done.

    One rank's, where there is a group: each rank has its heads, its width and its rows of embedding and head, and makes
    the same calls. Hidden states are the same on every rank.

    Args:
        facts: sizes and specs; of this rank, where there is a group.
        kernels: the table every operation goes through.
        ropes: (cos, sin) as `rope_table` makes them of each of `facts.ropes`, on the table's device; as many rows as
            there are positions.
        embedding: [vocab, hidden], or the rank's rows of it; the same object as `head` where they are tied.
        shard: what this rank holds.
        group: the ranks that compute this model together.

    Attributes:
        done: layers and heads computed so far. It moves in the middle of a step, so that a long one is no hang.
    """

    def __init__(
        self,
        facts: ModelFacts,
        kernels: Kernels,
        ropes: Sequence[tuple[Tensor, Tensor]],
        embedding: Weight,
        layers: Sequence[DecoderLayer],
        final_norm: Norm,
        head: Weight,
        shard: Shard | None = None,
        group: Group | None = None,
    ) -> None:
        self.facts = facts
        self.kernels = kernels
        self.ropes = tuple(ropes)
        self.embedding = embedding
        self.layers = tuple(layers)
        self.final_norm = final_norm
        self.head = head
        self._next_norms = (*(layer.attention_norm for layer in self.layers[1:]), final_norm)
        known = facts.ropes
        self._rope_of = [None if spec.rope is None else known.index(spec.rope) for spec in facts.layers]
        self.done = 0
        self.group = group
        self._vocab = (0, facts.vocab_size) if shard is None else shard.vocab
        self._widths = vocab_widths(facts, 1 if shard is None else shard.tensor)
        adder = None if group is None else group.adder
        self.run_layers = None
        if kernels.layers is not None and (group is None or adder is not None):
            self.run_layers = kernels.layers(facts, self.layers, final_norm, self.ropes, adder)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, norms and biases as they lie in memory; a tied head counts once."""
        return sum(weight.nbytes for weight in self._weights())

    def _weights(self) -> Iterator[Weight]:
        yield self.embedding
        yield from (part for part in (self.final_norm.weight, self.final_norm.bias) if part is not None)
        if self.head is not self.embedding:
            yield self.head
        for layer in self.layers:
            yield from layer.parts()

    def forward(
        self, token_ids: Tensor, positions: Tensor, caches: KVCaches, batch: AttentionBatch, due: Tensor | None = None
    ) -> Tensor:
        """(token_ids, positions int64 [T]; rows due int64 [L], or None for all) -> normed hidden states of the due rows
        [L, hidden]. Writes keys and values of all rows."""
        return self.advance(self.enter(token_ids, positions, batch), caches, len(self.layers), due)

    def enter(self, token_ids: Tensor, positions: Tensor, batch: AttentionBatch) -> Rows:
        """(token_ids, positions int64 [T]) -> rows that are before the first layer."""
        residual = self._embed(token_ids)
        if self.facts.embedding_multiplier != 1.0:
            residual = residual.mul_(self.facts.embedding_multiplier)
        return Rows(residual, positions, batch)

    def advance(self, rows: Rows, caches: KVCaches, stop: int, due: Tensor | None = None) -> Tensor:
        """Takes rows through the layers before `stop` that are not behind them, in place; writes keys and values.

        After the last layer it returns normed hidden states [T, hidden], or of the rows `due` (int64 [L]) alone: no
        others need more of that layer than keys and values. After other layers what it returns is of no use. Neither
        how a pass is cut into ranges of layers nor which rows are due changes any bit.
        """
        first, rows.done = rows.done, stop
        at_once = self.run_layers and self.run_layers(
            rows.residual, rows.positions, caches, rows.batch, self._count, first, stop, due
        )
        if at_once is not None:
            rows.hidden = None
            return at_once
        ops, hidden = self.kernels, rows.hidden
        angles = [(cos.index_select(0, rows.positions), sin.index_select(0, rows.positions)) for cos, sin in self.ropes]
        if hidden is None:
            hidden = norm(ops, rows.residual, self.layers[first].attention_norm)
        for index in range(first, stop):
            rope = self._rope_of[index]
            hidden = run_layer(
                ops, self.facts, self.layers[index], hidden, rows.residual, None if rope is None else angles[rope],
                caches[index], rows.batch, self._next_norms[index], self.group,
            )  # fmt: skip
            self._count(1)
        rows.hidden = hidden
        return hidden if due is None else hidden.index_select(0, due)

    def _count(self, layers: int) -> None:
        self.done += layers

    def _embed(self, token_ids: Tensor) -> Tensor:
        """(int64 [T]) -> [T, hidden]. Ids of other ranks' rows add nothing here."""
        if self.group is None:
            return self.kernels.embedding(token_ids, self.embedding)
        start, stop = self._vocab
        foreign = (token_ids < start) | (token_ids >= stop)
        rows = self.kernels.embedding(token_ids.clamp(start, stop - 1).sub_(start), self.embedding)
        return self.group.sum(rows.masked_fill_(foreign.unsqueeze(1), 0))

    def best(self, hidden: Tensor) -> Best:
        """What `best_of` finds in `logits`, to the bit: of a group, each rank gives its own best, not its logits.

        Empty on ranks that follow.
        """
        if self.group is None:
            return best_of(self.logits(hidden))
        self.done += 1
        own = finish_logits(self.facts, self.kernels.linear(hidden, self.head, None).to(torch.float32))
        parts = self.group.gather(packed(best_of(own), self._vocab[0]), (2,) * self.group.size)
        return best_of_packed(own.new_empty(0, 2) if parts is None else parts)

    def logits(self, hidden: Tensor) -> Tensor:
        """(hidden [L, hidden] as `forward` returns it) -> float32 [L, vocab].

        Of a group's ranks the first has them; on the others they are [0, vocab].
        """
        self.done += 1
        found = self.kernels.linear(hidden, self.head, None)
        if self.group is not None:
            gathered = self.group.gather(found, self._widths)
            found = found.new_empty(0, self.facts.vocab_size) if gathered is None else gathered
        return finish_logits(self.facts, found.to(torch.float32))


def finish_logits(facts: ModelFacts, logits: Tensor) -> Tensor:
    """The model's multiplier and soft cap on float32 logits [L, vocab], in place."""
    if facts.logit_multiplier != 1.0:
        logits.mul_(facts.logit_multiplier)
    if facts.logit_softcap is not None:
        logits.div_(facts.logit_softcap).tanh_().mul_(facts.logit_softcap)
    return logits
