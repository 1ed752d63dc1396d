"""The self-test at start-up: a small made-up input through the chosen kernels, alone, in a batch and in pieces.

Nothing of it comes from a file or a random number, so a digest of its results names the arithmetic of this processor.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from plimsoll.api.model import Activation, LayerSpec, ModelFacts, NormSpec, RopeFacts
from plimsoll.api.precision import HeldCache
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.worker.draw import uniforms
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.kernels.quantized import SUPER, QuantizedMatrix
from plimsoll.runtime.kernels.table import AttentionBatch, Draw, Kernels
from plimsoll.runtime.messages import Determinism
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.rope import rope_table
from plimsoll.runtime.models.weights import DecoderLayer, Norm, Weight

ROWS = 160
"""Of the sequence under test: more than one call for all layers takes."""
PIECES = (0, 1, 2, 5, 13, 30, 97, 159, ROWS)
"""Where the sequence is cut: single rows as in decoding, and pieces on both sides of where kernels change."""
BESIDE = 23
"""Rows of another sequence, in front of the one under test where that is computed in a batch."""
BLOCK, GROUP, HIDDEN = 16, 32, 128
HEADS, KV_HEADS, DIM = 4, 2, 32
OWN_BLOCKS, OTHER_BLOCKS = -(-ROWS // BLOCK), -(-BESIDE // BLOCK)

Piece = Callable[[int, int], Tensor]
"""(start, stop) -> [stop - start, columns]: these rows of the sequence, after the rows before them. All rows at once
are computed beside another sequence."""
Case = Callable[[], Piece]
"""A fresh start: nothing is cached."""


def self_test(ops: Kernels, dtype: torch.dtype) -> Determinism:
    """Whether rows have the same bits alone, in a batch and in pieces, and a digest of these bits.

    Kernels that promise no such thing are not tested.

    Args:
        dtype: of the cache, and of weights that are no codes.
    """
    if ops.varies is not None:
        return Determinism(deterministic=False, reason=ops.varies)
    digest, differing = hashlib.sha256(), []
    for name, case in _cases(ops, dtype).items():
        whole, piece = _bits(case()(0, ROWS)), case()
        pieces = b"".join(_bits(piece(start, stop)) for start, stop in pairwise(PIECES))
        if whole != pieces:
            differing.append(name)
        digest.update(name.encode() + whole)
    found = f"sha256:{digest.hexdigest()}"
    if not differing:
        return Determinism(deterministic=True, digest=found)
    reason = f"the self-test found other bits in a batch than alone: {', '.join(differing)}"
    return Determinism(deterministic=False, digest=found, reason=reason)


def of_group(ranks: Sequence[Determinism]) -> Determinism:
    """What holds of ranks together, rank 0 first. Their sums are added in the order of ranks, on any number of rows."""
    if len({one.digest for one in ranks}) == 1:
        digest = ranks[0].digest
    else:
        digest = f"sha256:{hashlib.sha256(' '.join(one.digest for one in ranks).encode()).hexdigest()}"
    reasons = [
        f"rank {at}: {one.reason}" if len(ranks) > 1 else one.reason for at, one in enumerate(ranks) if one.reason
    ]
    return Determinism(
        deterministic=all(one.deterministic for one in ranks), digest=digest, reason=reasons[0] if reasons else ""
    )


def _bits(rows: Tensor) -> bytes:
    return rows.contiguous().numpy().tobytes()


def _cases(ops: Kernels, dtype: torch.dtype) -> Mapping[str, Case]:
    """Every operation that a model uses, by a name for people."""
    weights = dict(_matrices(ops, dtype))
    found: dict[str, Case] = {f"product of {name}": _product(ops, weight) for name, weight in weights.items()}
    found |= {f"product of {name}": _product(ops, weight, SUPER) for name, weight in _super_blocks(ops)}
    x, ones = _numbers(1, ROWS, HIDDEN), 1 + _numbers(2, HIDDEN)
    ids = _hashes(3, ROWS) % HIDDEN
    found["embedding"] = lambda: lambda start, stop: ops.embedding(ids[start:stop], weights["floats"])
    found["rms_norm"] = lambda: lambda start, stop: ops.rms_norm(x[start:stop], ones, 1e-5)
    found["layer_norm"] = lambda: lambda start, stop: ops.layer_norm(x[start:stop], ones, ones, 1e-5)
    found["add_rms_norm"] = lambda: (
        lambda start, stop: ops.add_rms_norm(x[start:stop], x[start:stop].flip(1).contiguous(), ones, 1e-5)
    )
    for activation in get_args(Activation):
        found[activation] = _activate(ops, activation, x)
    decoder = _decoder(ops, dtype, weights)
    found["rope"] = _rope(ops, *decoder.ropes[0])
    for precision in get_args(HeldCache):
        cache = KVCache(decoder.facts, OWN_BLOCKS + OTHER_BLOCKS, BLOCK, dtype, torch.device("cpu"), precision)
        found[f"attention to a cache in {cache.held}"] = _attention(ops, cache, None)
        found[f"attention in a window to a cache in {cache.held}"] = _attention(ops, cache, 40)
        found[f"layers with a cache in {cache.held}"] = _layers(decoder, cache)
    if ops.draw is not None:
        found["draws"] = _draws(ops.draw)
    return found


def _draws(draw: Draw) -> Case:
    """Of rows with filters of each kind in turn."""
    logits, kinds = 8 * _numbers(16, ROWS, 4 * HIDDEN), (SamplingParams(), SamplingParams(top_p=0.9, temperature=2.0))
    filters = [kinds[row % 3] if row % 3 < 2 else SamplingParams(top_k=20, min_p=0.01) for row in range(ROWS)]
    largest, numbers = logits.amax(1).numpy(), uniforms([17] * ROWS, range(ROWS))

    def piece(start: int, stop: int) -> Tensor:
        rows, here = range(stop - start), slice(start, stop)
        return torch.from_numpy(draw(logits[here], rows, largest[here], filters[here], numbers[here]))

    return lambda: piece


def _hashes(seed: int, *shape: int) -> Tensor:
    """int64, 0 to 2**32 - 1: the same on every machine."""
    found = (torch.arange(math.prod(shape)) + (seed << 20)) * 2654435761 & 0xFFFFFFFF
    found = (found ^ found >> 16) * 0x45D9F3B & 0xFFFFFFFF
    return (found ^ found >> 16).view(shape)


def _numbers(seed: int, *shape: int) -> Tensor:
    """float32 from -1 to 1, exactly."""
    return (_hashes(seed, *shape) >> 8).float() / (1 << 23) - 1


def _matrices(ops: Kernels, dtype: torch.dtype, rows: int = HIDDEN) -> Iterator[tuple[str, Weight]]:
    """[rows, HIDDEN] in each way in which weights are held."""
    codes, groups = _hashes(4, rows, HIDDEN), (rows, HIDDEN // GROUP)
    scales = (1.5 + _numbers(5, *groups)).mul_(1 / 64)
    yield "floats", ops.pack(_numbers(6, rows, HIDDEN).mul_(1 / 8).to(dtype))
    eight = (codes % 255 - 127).to(torch.int8)
    yield "8 bits", ops.pack_quantized(QuantizedMatrix(8, eight, scales / 16))
    four, half = (codes % 16).to(torch.uint8), scales.half()
    zeros = (_hashes(7, *groups) % 16).to(torch.uint8)
    yield "4 bits", ops.pack_quantized(QuantizedMatrix(4, four, half, zeros))
    yield "4 bits with minimums", ops.pack_quantized(QuantizedMatrix(4, four, half, None, half * -8))
    yield "8 bits with minimums", ops.pack_quantized(QuantizedMatrix(8, eight, half / 16, None, half))


def _super_blocks(ops: Kernels) -> Iterator[tuple[str, Weight]]:
    """[HIDDEN, SUPER], as a GGUF's Q4_K and Q6_K are held."""
    codes, scales = _hashes(13, HIDDEN, SUPER), (_hashes(14, HIDDEN, SUPER // 16) % 64 - 32).to(torch.int8)
    factors = (1.5 + _numbers(15, HIDDEN, 1)).mul_(1 / 2048).half()
    four, eight = (codes % 16).to(torch.uint8), (codes % 64 - 32).to(torch.int8)
    yield "8 bits in super-blocks", ops.pack_quantized(QuantizedMatrix(8, eight, scales, super_scales=factors))
    yield (
        "4 bits in super-blocks",
        ops.pack_quantized(QuantizedMatrix(4, four, scales[:, ::2], None, scales[:, 1::2], factors, factors * 8)),
    )


def _product(ops: Kernels, weight: Weight, columns: int = HIDDEN) -> Case:
    x, bias = _numbers(8, ROWS, columns), _numbers(9, HIDDEN)
    return lambda: lambda start, stop: ops.linear(x[start:stop], weight, bias)


def _activate(ops: Kernels, activation: Activation, x: Tensor) -> Case:
    return lambda: lambda start, stop: ops.activate(4 * x[start:stop], activation, True)


def _rope(ops: Kernels, cos: Tensor, sin: Tensor) -> Case:
    q, k, _ = _heads()

    def piece(start: int, stop: int) -> Tensor:
        turned = q[start:stop].clone(), k[start:stop].clone()
        ops.rope(*turned, cos[start:stop], sin[start:stop])
        return torch.cat(turned, 1)

    return lambda: piece


def _heads() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _numbers(10, ROWS, HEADS + 2 * KV_HEADS, DIM).split_with_sizes((HEADS, KV_HEADS, KV_HEADS), 1)
    return 4 * q, k, v


def _batch(start: int, stop: int) -> tuple[Tensor, Tensor, AttentionBatch]:
    """Which rows of the input a step computes and their positions, both int64 [T], and where they lie.

    All rows at once come after those of another sequence, which has other rows in other blocks.
    """
    own_table = list(reversed(range(OWN_BLOCKS)))
    other_table = [OWN_BLOCKS + at for at in range(OTHER_BLOCKS)] + [0] * (OWN_BLOCKS - OTHER_BLOCKS)
    own, other = (range(start, stop), own_table), (range(BESIDE), other_table)
    sequences = [other, own] if stop - start == ROWS else [own]
    positions = [at for places, _ in sequences for at in places]
    slots = [table[at // BLOCK] * BLOCK + at % BLOCK for places, table in sequences for at in places]
    starts, lengths = [0], [places.stop for places, _ in sequences]
    for places, _ in sequences:
        starts.append(starts[-1] + len(places))
    batch = AttentionBatch(
        torch.tensor(starts, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32),
        torch.tensor([table for _, table in sequences], dtype=torch.int32), torch.tensor(slots), starts, lengths,
    )  # fmt: skip
    rows = torch.tensor(positions)
    rows[: start - stop] += ROWS - BESIDE
    return rows, torch.tensor(positions), batch


def _attention(ops: Kernels, cache: KVCache, window: int | None) -> Case:
    q, k, v = _heads()

    def piece(start: int, stop: int) -> Tensor:
        rows, _, batch = _batch(start, stop)
        ops.write_kv(k[rows], v[rows], cache.layers[0], batch.slot_mapping)
        return ops.attention(q[rows], cache.layers[0], batch, DIM**-0.5, window, None)[start - stop :]

    return lambda: _emptied(cache, piece)


def _layers(decoder: Decoder, cache: KVCache) -> Case:
    """Steps of few rows are one call, where the table has such a thing."""
    ids = _hashes(11, ROWS) % HIDDEN

    def piece(start: int, stop: int) -> Tensor:
        rows, positions, batch = _batch(start, stop)
        return decoder.forward(ids[rows], positions, cache.layers, batch)[start - stop :]

    return lambda: _emptied(cache, piece)


def _emptied(cache: KVCache, piece: Piece) -> Piece:
    cache.pool.zero_()
    return piece


def _decoder(ops: Kernels, dtype: torch.dtype, weights: Mapping[str, Weight]) -> Decoder:
    """A model of two layers, with matrices of every kind."""
    rope, norm = RopeFacts(), NormSpec(1e-5)
    spec = LayerSpec(norm, DIM**-0.5, rope)
    facts = ModelFacts(
        "self-test", HIDDEN, HIDDEN, HIDDEN, HEADS, KV_HEADS, DIM, ROWS, rope, True, (spec, spec), norm
    )  # fmt: skip
    wide, by = dict(_matrices(ops, dtype, 2 * HIDDEN)), Norm(norm, 1 + _numbers(12, HIDDEN))

    def layer(one: str, other: str) -> DecoderLayer:
        return DecoderLayer(
            spec, wide[one], None, weights[other], None, wide[other], None, weights[one], None, by, by
        )  # fmt: skip

    layers = [layer("floats", "4 bits"), layer("8 bits", "4 bits with minimums")]
    return Decoder(facts, ops, [rope_table(facts, rope, ROWS)], weights["floats"], layers, by, weights["floats"])
