"""Log-probabilities of the raw model distribution, with ranks and the likeliest alternatives."""

from collections.abc import Sequence

import torch

from plimsoll.runtime.engine.draw import likeliest
from plimsoll.runtime.types import Logprob, TokenLogprobs

SLICE = 64
"""Rows handled at once: bounds the temporary memory at a few times SLICE x vocabulary."""


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """What the model gave each chosen token, and its `counts[i]` likeliest alternatives.

    Args:
        logits: float32 [n, vocabulary], as the model computed them: no temperature, no penalty.
        token_ids: n chosen ids.
        counts: n numbers of alternatives, 0 for the chosen one alone.

    Ranks start at 1 and order equal logits by id.
    """
    ids = torch.tensor(token_ids, dtype=torch.long, device=logits.device)[:, None]
    norm = logits.logsumexp(dim=-1, keepdim=True)
    value = logits.gather(-1, ids)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < ids
    rank = 1 + ((logits > value) | ((logits == value) & earlier)).sum(dim=-1)
    chosen = zip(token_ids, (value - norm)[:, 0].tolist(), rank.tolist(), strict=True)
    most = min(max(counts, default=0), logits.shape[-1])
    if not most:
        return [TokenLogprobs(Logprob(token, logprob, place), []) for token, logprob, place in chosen]
    values, others = likeliest(logits, most)
    alternatives = zip((values - norm).tolist(), others.tolist(), counts, strict=True)
    return [
        TokenLogprobs(
            Logprob(token, logprob, place),
            [Logprob(other, lp, i + 1) for i, (other, lp) in enumerate(zip(ids_[:k], lps[:k], strict=True))],
        )
        for (token, logprob, place), (lps, ids_, k) in zip(chosen, alternatives, strict=True)
    ]


def prompt_logprobs(logits: torch.Tensor, next_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log-probabilities of a prompt's own tokens: row i of `logits` [n, vocabulary] predicted `next_ids[i]`.

    `count` is the number of alternatives. Works through the rows in slices, so any n is fine.
    """
    result: list[TokenLogprobs] = []
    for start in range(0, len(next_ids), SLICE):
        ids = next_ids[start : start + SLICE]
        result += token_logprobs(logits[start : start + SLICE].float(), ids, [count] * len(ids))
    return result
