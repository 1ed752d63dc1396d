"""Drawing tokens: one uniform number a row, inverted through the filtered distribution in a fixed order.

A draw is a function of the row's logits, its filters and its own (seed, index): what else is in the batch cannot
change it, and a preempted request that is computed again draws the same tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from plimsoll.runtime.kernels.table import DrawFilter

CHUNK = 64
"""The vocabulary is looked at in chunks of this many: only their sums need a float64 running sum, and their maxima
bound the likeliest tokens."""

CANDIDATES = (256, 4096)
"""How many of the likeliest tokens top-k and top-p look at: first of all rows, then of those that reach further. What
is left after these is sorted whole."""

WHOLE_ROWS = 4
"""Rows that are sorted whole at once: 30 bytes or so a token of the vocabulary each."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> np.ndarray:
    """float64 [n] in [0, 1): number `indices[i]` of the stream that `seeds[i]` names.

    SplitMix64 (Steele, Lea and Flood, 2014) read by position instead of in turn. Any Python integer is a seed.
    """
    state = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    bits = _mix(state + (np.array(indices, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The given rows, in ascending order; `logits` itself, uncopied, when they are all of them."""
    if len(rows) == logits.shape[0]:
        return logits
    return logits.index_select(0, torch.tensor(rows, dtype=torch.long, device=logits.device))


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest values of each row of [n, vocabulary] and their ids, both [n, count].

    Ordered by value, then by id: topk alone orders equals as it likes. Which of several equals at the very end of
    the list are chosen may be its own affair unless `count` is the vocabulary.
    """
    if count >= logits.shape[-1]:
        return _sorted(logits)
    if logits.device.type == "cpu":
        ids = torch.from_numpy(_likeliest_ids(logits, count))
        return logits.gather(-1, ids), ids
    values, ids = logits.topk(count, dim=-1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, order)
    return values, ids


def _likeliest_ids(logits: torch.Tensor, count: int) -> np.ndarray:
    """int64 [n, count]. A bound that `count` tokens reach tells what can be chosen: the `count`-th largest maximum of a
    chunk where there are many more chunks, else the `count`-th largest value. A third of topk's time, or less."""
    array = logits.numpy()
    chunks = array.shape[-1] // CHUNK
    bounded = array
    if chunks >= 2 * count:
        bounded = logits[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK)).amax(dim=-1).numpy()
    bounds = np.partition(bounded, bounded.shape[-1] - count, axis=-1)[:, bounded.shape[-1] - count]
    found = np.empty((len(array), count), dtype=np.int64)
    for i, (row, bound) in enumerate(zip(array, bounds, strict=True)):
        above = np.flatnonzero(row >= bound)
        found[i] = _falling(row[above], above)[:count]
    return found


def _sorted(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.device.type != "cpu":
        values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values, ids
    ids = torch.from_numpy(_falling(logits.numpy(), np.arange(logits.shape[-1])))
    return logits.gather(-1, ids), ids


def _falling(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids, int64 [..., n], by falling value, float32 [..., n], and among equals by rising id.

    numpy sorts integers with vector instructions, ten times faster than torch sorts floats: a key is the value's bits,
    made to ascend as the value falls, above the id. Adding 0 turns -0 into its equal.
    """
    bits = (values + np.float32(0)).view(np.int32)
    keys = -(bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys += ids
    keys.sort(axis=-1)
    return np.asarray(keys & 0xFFFFFFFF)


def draw(logits: torch.Tensor, filters: Sequence[DrawFilter], uniform: np.ndarray) -> list[int]:
    """One token id a row, by torch: what a faster `Kernels.draw` must agree with.

    The weights of the two may differ by what float32 rounds: a uniform number that close to the border between two
    tokens may draw the other one.

    Args:
        logits: float32 [n, vocabulary]; the largest of each row is finite.
        filters: of each row. min_p (Nguyen et al., 2024) comes first, then top_k, then top_p (Holtzman et al., 2020) of
            what these left, as in vLLM.
        uniform: float64 [n] in [0, 1).
    """
    logits, vocabulary = _divided(logits, filters), logits.shape[-1]
    whole: list[int] = []
    nucleus: list[int] = []
    for row, by in enumerate(filters):
        (whole if by.top_p >= 1.0 and not 0 < by.top_k < vocabulary else nucleus).append(row)
    tokens = [0] * logits.shape[0]
    if whole:
        part = pick(logits, whole)
        chosen = _draw_whole(part, [filters[row].min_p for row in whole], uniform[whole])
        for row, token in zip(whole, chosen, strict=True):
            tokens[row] = token
    if nucleus:
        part = pick(logits, nucleus)
        limits = [(by.top_k, by.top_p, by.min_p) for by in map(filters.__getitem__, nucleus)]
        chosen = _draw_nucleus(part, limits, uniform[nucleus])
        for row, token in zip(nucleus, chosen, strict=True):
            tokens[row] = token
    return tokens


def _divided(logits: torch.Tensor, filters: Sequence[DrawFilter]) -> torch.Tensor:
    """By the temperature of each row."""
    if all(by.temperature == 1.0 for by in filters):
        return logits
    temperature = torch.tensor([by.temperature for by in filters], dtype=torch.float32, device=logits.device)
    scaled = logits / temperature[:, None]
    overflow = ~scaled.amax(dim=-1).isfinite()
    if bool(overflow.any()):
        # Only differences count: with the largest at zero none overflows.
        shifted = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
        scaled = torch.where(overflow[:, None], shifted, scaled)
    return scaled


def _chunked(logits: torch.Tensor, min_p: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, float32 [n, chunks, CHUNK], zero where min_p or padding says so; and each row's largest, [n]."""
    weights = logits.softmax(dim=-1)
    largest = weights.amax(dim=-1)
    if any(min_p):
        floor = torch.tensor(min_p, dtype=weights.dtype, device=weights.device) * largest
        weights.masked_fill_(weights < floor[:, None], 0.0)
    short = -weights.shape[-1] % CHUNK
    if short:
        weights = torch.nn.functional.pad(weights, (0, short))
    return weights.view(weights.shape[0], -1, CHUNK), largest


def _last_positive(weights: torch.Tensor) -> torch.Tensor:
    """Index of the last positive entry of each row: where a draw that rounding pushed past the end belongs."""
    places = torch.arange(weights.shape[-1], device=weights.device)
    return (places * (weights > 0)).amax(dim=-1)


def _draw_whole(logits: torch.Tensor, min_p: Sequence[float], uniform: np.ndarray) -> list[int]:
    """Inverts the distribution function in the order of ids: first over chunks, then inside the chunk."""
    weights, _ = _chunked(logits, min_p)
    rows = torch.arange(weights.shape[0], device=weights.device)
    sums = weights.sum(dim=-1).double()
    running = sums.cumsum(dim=-1)
    target = _to(uniform, weights) * running[:, -1]
    chunk = torch.minimum((running <= target[:, None]).sum(dim=-1), _last_positive(sums))
    before = torch.where(chunk > 0, running[rows, (chunk - 1).clamp(min=0)], 0.0)
    inside = weights[rows, chunk]
    place = (inside.double().cumsum(dim=-1) <= (target - before)[:, None]).sum(dim=-1)
    return [int(token) for token in (chunk * CHUNK + torch.minimum(place, _last_positive(inside))).tolist()]


def _draw_nucleus(logits: torch.Tensor, filters: Sequence[tuple[int, float, float]], uniform: np.ndarray) -> list[int]:
    """Draws among the likeliest tokens, taking more of them for the rows whose filters reach further."""
    vocabulary = logits.shape[-1]
    tokens = [0] * len(filters)
    # Without top_k, top_p is a share of everything that min_p left, seen among the candidates or not.
    mass = _to(np.full(len(filters), np.nan), logits)
    open_ended = [row for row, (k, _, _) in enumerate(filters) if not 0 < k < vocabulary]
    if open_ended:
        probabilities, largest = _chunked(pick(logits, open_ended), [filters[row][2] for row in open_ended])
        mass[open_ended] = probabilities.sum(dim=-1).double().sum(dim=-1) / largest
    left = list(range(len(filters)))
    for count in (*(count for count in CANDIDATES if count < vocabulary), vocabulary):
        # No more candidates at once than those of a few whole rows: their memory is part of the budget.
        step = max(1, WHOLE_ROWS * vocabulary // count)
        unsettled: list[int] = []
        for start in range(0, len(left), step):
            part = left[start : start + step]
            found = _draw_among(pick(logits, part), count, [filters[row] for row in part], mass[part], uniform[part])
            for row, (token, settled) in zip(part, found, strict=True):
                tokens[row] = token
                if not settled and count < vocabulary:
                    unsettled.append(row)
        left = unsettled
        if not left:
            break
    return tokens


def _draw_among(
    logits: torch.Tensor,
    count: int,
    filters: Sequence[tuple[int, float, float]],
    mass: torch.Tensor,
    uniform: np.ndarray,
) -> list[tuple[int, bool]]:
    """A token a row out of the `count` likeliest, and whether no token beyond them could have changed it."""
    vocabulary = logits.shape[-1]
    values, ids = likeliest(logits, count)
    k, p, floor = (_to(np.array(column, dtype=np.float64), logits) for column in zip(*filters, strict=True))
    rows = torch.arange(len(filters), device=logits.device)
    weights = (values - values[:, :1]).double().exp()
    places = torch.arange(count, device=logits.device)
    limited = (k > 0) & (k < vocabulary)
    keep = (weights >= floor[:, None]) & ((places < k[:, None]) | ~limited[:, None])
    # A limited row's mass is known only if its limit lies among the candidates.
    measured = (keep.sum(dim=-1) < count) | ~limited
    weights = weights * keep
    running = weights.cumsum(dim=-1)
    share = p * torch.where(limited, running[:, -1], mass)
    keep &= (running - weights < share[:, None]) | (places == 0)
    kept = keep.sum(dim=-1)
    end = running[rows, kept - 1]
    # And what a row keeps must end strictly above the last candidate: no equal may have been left outside.
    settled = measured & (values[rows, kept - 1] > values[:, -1])
    target = _to(uniform, logits) * end
    place = torch.minimum((running <= target[:, None]).sum(dim=-1), kept - 1)
    return list(zip(ids[rows, place].tolist(), settled.tolist(), strict=True))


def _to(numbers: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(numbers).to(like.device)
