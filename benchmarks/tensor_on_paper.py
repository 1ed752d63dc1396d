"""Tensor-parallel decoding on a node of eight H100, on paper: bytes, compute, sums over NVLink, speed-up.

    python -m benchmarks.tensor_on_paper [--batch 16] [--length 2048] [--sum-microseconds 10]

Nothing is measured here. Bytes of a rank are the planner's. The rest is a roofline (Williams et al. 2009): a step takes
the longer of reading and computing, and then its sums, which nothing hides. Prints the table of docs/sizing.md.
"""

import argparse
from dataclasses import dataclass, replace

from plimsoll.api.budget import Budget, Load, budget
from plimsoll.api.device import TORCH_TABLE, DeviceFacts
from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import element_bytes
from plimsoll.api.rank_budget import RankBudget, length
from plimsoll.api.shard import shards
from plimsoll.api.sizes import matrices

GIB, MIB = 1 << 30, 1 << 20
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Card:
    """One GPU of a node: bytes, and what it does a second at its best."""

    memory: int
    read: float
    """Bytes of its memory a second."""
    flops: float
    """Dense bfloat16 operations a second."""
    link: float
    """Bytes a second that it sends to its neighbours, and as many that it receives."""


#: NVIDIA's data sheet of the H100 SXM: 80 GB (79 GiB are seen), 3.35 TB/s, 989 TFLOPS; NVLink 900 GB/s, half each way.
H100 = Card(79 * GIB, 3.35e12, 989e12, 450e9)


@dataclass(frozen=True)
class Step:
    """What one decoding step costs rank 0, in bytes, operations and seconds."""

    tensor: int
    held: int
    """Bytes of weights."""
    cache_tokens: int
    """Tokens that the cache of the group holds."""
    read: int
    """Bytes of weights and of cached keys and values that the step reads."""
    flops: int
    sums: int
    """Collectives: two a layer, one for the embedding, one that gathers logits."""
    sent: int
    """Bytes that the rank sends for them."""
    compute_seconds: float
    sum_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute_seconds + self.sum_seconds


def step_of(facts: ModelFacts, card: Card, tensor: int, batch: int, tokens: int, sum_seconds: float) -> Step | None:
    """A decoding step of `batch` requests that have `tokens` tokens each, at bfloat16; None where it does not fit.

    Args:
        sum_seconds: what one collective of few bytes takes.
    """
    device = DeviceFacts("cuda", card.memory, TORCH_TABLE)
    load = Load("bfloat16", tensor=tensor, max_length=tokens, max_running=batch)
    try:
        found: Budget = budget(facts, device, load)
    except DoesNotFitError:
        return None
    if found.kv_tokens < batch * tokens:
        return None
    rank = found.ranks[0]
    sizes = _read(facts, rank, batch, tokens)
    flops = _flops(facts, rank, batch, tokens)
    sums = 0 if tensor == 1 else 2 * facts.num_layers + 2
    sent = _sent(facts, rank, batch)
    compute = max(sizes / card.read, flops / card.flops)
    return Step(
        tensor, rank.weights, found.kv_tokens, sizes, flops, sums, sent, compute, sums * sum_seconds + sent / card.link
    )


def _read(facts: ModelFacts, rank: RankBudget, batch: int, tokens: int) -> int:
    """All weights once, the embedding by rows alone, and every cached key and value."""
    embedding = 0 if facts.tie_embeddings else length(rank.shard.vocab) * facts.hidden_size * element_bytes("bfloat16")
    cached = facts.num_layers * 2 * length(rank.shard.keys) * facts.head_dim * element_bytes("bfloat16")
    return rank.weights - embedding + batch * tokens * cached


def _flops(facts: ModelFacts, rank: RankBudget, batch: int, tokens: int) -> int:
    """Two an element of each matrix and row; four an element of each query and cached token."""
    shard = None if rank.shard.tensor == 1 else shards(facts, rank.shard.tensor, "bfloat16")[0]
    held = list(matrices(facts, "bfloat16", TORCH_TABLE, shard))
    linears = sum(one.count * one.rows * one.columns for one in held if one.linear)
    head = length(rank.shard.vocab) * facts.hidden_size
    attention = facts.num_layers * 4 * length(rank.shard.queries) * facts.head_dim * tokens
    return batch * (2 * (linears + head) + attention)


def _sent(facts: ModelFacts, rank: RankBudget, batch: int) -> int:
    """Bytes of a ring: a sum sends 2 (t - 1) / t of its vector, a gather of float32 logits this rank's part."""
    size = rank.shard.tensor
    if size == 1:
        return 0
    vectors = (2 * facts.num_layers + 1) * batch * facts.hidden_size * element_bytes("bfloat16")
    return vectors * 2 * (size - 1) // size + batch * length(rank.shard.vocab) * 4


def _llama(hidden: int, inner: int, layers: int, heads: int) -> ModelFacts:
    return facts_from_config({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    })  # fmt: skip


#: Public shapes of Llama 3.1.
MODELS = {"8B": _llama(4096, 14336, 32, 32), "70B": _llama(8192, 28672, 80, 64)}


def table(batch: int, tokens: int, sum_seconds: float, card: Card = H100) -> list[list[str]]:
    """Rows of cells: model, tensor, and what rank 0 holds, reads, computes and sends; the speed-up is over the fewest
    GPUs that hold the model and this batch."""
    rows = []
    for name, facts in MODELS.items():
        first = None
        for tensor in SIZES:
            step = step_of(facts, card, tensor, batch, tokens, sum_seconds)
            if step is None:
                rows.append([name, str(tensor), "does not fit", *["–"] * 7])
                continue
            first = first or step
            rows.append([
                name, str(tensor), f"{step.held / GIB:.1f}", f"{step.cache_tokens / 1000:.0f}k",
                f"{step.read / GIB:.1f}", f"{step.flops / 1e9:.0f}", f"{step.sums}", f"{step.sent / MIB:.1f}",
                f"{1e3 * step.compute_seconds:.2f} + {1e3 * step.sum_seconds:.2f}",
                f"{first.seconds / step.seconds:.1f}",
            ])  # fmt: skip
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048, help="tokens that each request has in the cache")
    parser.add_argument("--sum-microseconds", type=float, default=10.0, help="of one collective of few bytes")
    parser.add_argument("--link-gigabytes", type=float, default=450.0, help="a second, each way")
    given = parser.parse_args()
    card = replace(H100, link=given.link_gigabytes * 1e9)
    for row in table(given.batch, given.length, given.sum_microseconds / 1e6, card):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
