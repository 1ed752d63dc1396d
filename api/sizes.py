"""Bytes of weights and cache, exact for each rank; and the sums behind the workspace. Pure arithmetic."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from plimsoll.api.blocks import stored_blocks
from plimsoll.api.collectives import collective_bytes
from plimsoll.api.device import TORCH_TABLE, DeviceFacts, TableFacts
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, SUMMED, fused_roles, has_bias, norm_sizes, role_shape, stored_linears
from plimsoll.api.layers_at_once import FEW_ROWS, runs_wide
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import (
    CACHE_BITS,
    CODE_BITS,
    KEY_BITS,
    ActivationPrecision,
    Codes,
    HeldCache,
    Precision,
    code_bytes,
    element_bytes,
    embedding_codes,
    head_codes,
    held_codes,
)
from plimsoll.api.shard import Shard

#: int8 and int4 caches keep one (scale, minimum) pair of fp16 a head and token, for keys and for values each.
PAIR_BYTES = 4
#: Prompt positions whose logits exist at once when prompt log-probabilities are asked for.
PROMPT_LOGIT_ROWS = 8
#: Of each token of a vocabulary, for grammars: the vocabulary as it came, and its trie. Measured were 500 to 560 bytes
#: a token beside `GRAMMAR_BYTES`, of 32,000 to 262,144 tokens with 7 bytes each.
TRIE_BYTES = 576
#: Of what llguidance takes with the first grammar of all, however few tokens there are, and of its tables' growth.
GRAMMAR_BYTES = 8 << 20
#: What a running request's grammar keeps of where its answer is, and of what it has met, beside two masks of bits.
MATCHER_BYTES = 64 << 10


@dataclass(frozen=True)
class Matrix:
    """A weight as the runtime fuses it: `rows` out, `columns` in, on one rank, `count` times. Embedding and head are
    not `linear`."""

    rows: int
    columns: int
    linear: bool = True
    count: int = 1
    codes: Codes | None = None
    """How it is held in codes; None where it is held whole."""


def matrices(
    facts: ModelFacts, precision: Precision = "bfloat16", table: TableFacts = TORCH_TABLE, shard: Shard | None = None
) -> Iterator[Matrix]:
    """Every matrix that a rank holds with the kernels of `table`; without a shard, the whole model's.

    Raises:
        SpecError: `precision` cannot hold this model so (`held_codes`).
    """
    own = facts if shard is None else shard.facts(facts)
    hidden, vocab = facts.hidden_size, facts.vocab_size if shard is None else shard.vocab[1] - shard.vocab[0]
    names = find_family(facts.architecture).names
    yield Matrix(vocab, hidden, linear=False, codes=embedding_codes(facts, precision, table))
    if not facts.tie_embeddings:
        yield Matrix(vocab, hidden, linear=False, codes=head_codes(facts, precision, table))
    found: Counter[Matrix] = Counter()
    # Layers may differ in what a checkpoint stores whole; else those of one spec are alike.
    apart = precision in CODE_BITS and (facts.quantization is not None or stored_blocks(facts) is not None)
    runs = [(spec, [index]) for index, spec in enumerate(facts.layers)] if apart else []
    for spec, indices in runs or [(spec, [0] * count) for spec, count in facts.kinds]:
        prefix = names.layer.format(indices[0])
        for matrix in FUSED:
            roles = fused_roles(spec, matrix)
            modules = [prefix + linear.module for linear in stored_linears(names, spec, matrix)]
            rows, columns = sum(role_shape(own, role)[0] for role in roles), role_shape(own, roles[0])[1]
            codes = held_codes(facts, precision, modules, role_shape(facts, roles[0])[1])
            held = None if codes is None else replace(codes, group=min(codes.group, columns))
            found[Matrix(rows, columns, codes=held)] += len(indices)
    for one, count in found.items():
        yield replace(one, count=count)


def vector_elements(facts: ModelFacts, shard: Shard | None = None) -> int:
    """Elements of norms and biases of one rank; they stay in the precision of activations."""
    return sum(_norms_and_biases(facts, shard))


def vector_bytes(facts: ModelFacts, activation: int, shard: Shard | None = None) -> int:
    """Bytes of norms and biases of one rank. Weights that an offset was added to are float32: 16 bits would round it.

    Args:
        activation: bytes of one activation.
    """
    norms, biases = _norms_and_biases(facts, shard)
    return norms * (4 if facts.final_norm.offset else activation) + biases * activation


def _norms_and_biases(facts: ModelFacts, shard: Shard | None) -> tuple[int, int]:
    own = facts if shard is None else shard.facts(facts)
    norms, biases = facts.hidden_size, facts.hidden_size if facts.final_norm.bias else 0
    for spec, count in facts.kinds:
        lengths = sum(norm_sizes(own, spec).values())
        norms += count * lengths
        biases += count * lengths if spec.norm.bias else 0
        roles = [role for matrix in FUSED for role in fused_roles(spec, matrix) if has_bias(spec, role)]
        if shard is not None and not shard.leads:
            roles = [role for role in roles if role not in SUMMED]
        biases += count * sum(role_shape(own, role)[0] for role in roles)
    return norms, biases


def weight_bytes(facts: ModelFacts, precision: Precision, device: DeviceFacts, shard: Shard | None = None) -> int:
    """Bytes of all weights of a rank as they lie in memory, quantized ones with scales and zero points; without a
    shard, of the whole model. Rank 0 holds the most.

    Raises:
        SpecError: `precision` cannot hold this model (`held_codes`).
    """
    activation = device.table.activation_bytes or element_bytes(precision)
    total = vector_bytes(facts, activation, shard)
    for matrix in matrices(facts, precision, device.table, shard):
        rows = -(-matrix.rows // device.table.row_tile) * device.table.row_tile
        total += matrix.count * _matrix_bytes(rows, matrix, precision)
    return total


def _matrix_bytes(rows: int, matrix: Matrix, precision: Precision) -> int:
    codes = matrix.codes
    if codes is None:
        return rows * matrix.columns * element_bytes(precision)
    return rows * codes.row_bytes(matrix.columns)


def block_bytes(
    facts: ModelFacts,
    block_size: int,
    precision: Precision,
    cache: HeldCache = "float",
    shard: Shard | None = None,
) -> int:
    """Bytes of one block of `block_size` tokens over all layers of one rank, keys and values, with their scales."""
    heads = facts.num_kv_heads if shard is None else shard.counts[1]
    if cache == "float":
        vectors = 2 * facts.head_dim * element_bytes(precision)
    else:
        bits = CACHE_BITS[cache]
        vectors = sum(code_bytes(some, facts.head_dim) + PAIR_BYTES for some in (KEY_BITS[bits], bits))
    return facts.num_layers * heads * block_size * vectors


def workspace_terms(
    facts: ModelFacts, precision: Precision, device: DeviceFacts, max_batched_tokens: int, max_running: int,
    max_length: int, shard: Shard | None = None, nodes: int = 1, rows_wish: ActivationPrecision = "bfloat16",
) -> Mapping[str, int]:  # fmt: skip
    """Bytes that come and go while a step of one rank runs, by name.

    - `activations`: a layer at the largest chunk: the residual, the normed input and what a block adds to it; qkv and
      its mixed values; gate, up and their product; normed queries and keys where the model has such norms. Where
      `runs_wide` takes the largest step, what the MLP makes is in the kernels' working space.
    - `logits`: float32 logits of every running sequence, or of a slice of prompt positions where those are more, and
      `sampler_rows` of the table more for the sampler, which works on slices of them. A rank makes those of its part
      of the vocabulary; rank 0 gathers the whole beside its part, and samples.
    - `positions`: float32 cosines and sines up to the longest sequence, of each rotary embedding.
    - `kernels`: what the table of kernels keeps for itself.
    - `grammars`: the trie of the vocabulary, and where each running request is in its own. They lie in the host's
      memory of the process that samples: 0 on a GPU, and on ranks that follow.
    - `collectives`: what ranks take to talk to each other, on one of `nodes`; 0 where there is one rank.
    """
    activation = device.table.activation_bytes or element_bytes(precision)
    whole = facts.num_heads, facts.num_kv_heads, facts.intermediate_size
    heads, kv_heads, inner = whole if shard is None else shard.counts
    rows = []
    linear = (one.codes for one in matrices(facts, precision, device.table) if one.linear)
    wide = shard is None and max_batched_tokens >= FEW_ROWS
    wide = wide and runs_wide(facts, precision, device.table, rows_wish, linear)
    for spec, _ in facts.kinds:
        if wide:
            rows.append(3 * facts.hidden_size + (2 * heads + 2 * kv_heads) * facts.head_dim)
            continue
        row = 3 * facts.hidden_size + (2 * heads + 2 * kv_heads) * facts.head_dim + (3 if spec.gated else 2) * inner
        if spec.qk_norm is not None:
            row += (heads + kv_heads) * facts.head_dim
        # What a norm after attention makes is alive beside what the norm before the MLP makes of it.
        rows.append(row + (facts.hidden_size if spec.placement == "around" else 0))
    row, leads, sampled = max(rows), shard is None or shard.leads, max(max_running, PROMPT_LOGIT_ROWS)
    copied = sampled + device.table.sampler_rows
    return {
        "activations": max_batched_tokens * row * activation,
        "logits": _logits(facts.vocab_size, sampled, copied, shard) * 4,
        "positions": max_length * sum(rope.rotated(facts.head_dim) for rope in facts.ropes) * 4,
        "kernels": device.table.scratch_bytes,
        "grammars": grammar_bytes(facts.vocab_size, max_running) if device.kind == "cpu" and leads else 0,
        "collectives": 0
        if shard is None
        else collective_bytes(device.kind, shard.tensor, shard.rank, nodes, copied * facts.vocab_size * 4),
    }


def grammar_bytes(vocab: int, running: int) -> int:
    """Bytes that the grammars of `running` requests take at once. A mask has a bit a token, in whole words."""
    return GRAMMAR_BYTES + vocab * TRIE_BYTES + running * (MATCHER_BYTES + 2 * 4 * -(-vocab // 32))


def _logits(vocab: int, rows: int, copied: int, shard: Shard | None) -> int:
    """Elements of the logits that lie on a rank at once: of `rows`, and on the one that samples `copied` whole rows."""
    if shard is None:
        return copied * vocab
    part = rows * (shard.vocab[1] - shard.vocab[0])
    return part + copied * vocab if shard.leads else part
