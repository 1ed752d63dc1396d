"""Log-probabilities of the raw model distribution, with ranks and the likeliest alternatives."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.engine.core.sequence import Sequence as EngineSequence
from plimsoll.runtime.engine.worker.draw import likeliest
from plimsoll.runtime.messages import Logprob, TokenLogprobs

NOT_A_NUMBER = "the model's output for this request is not a number"


class NotANumberError(PlimsollError):
    """Logits hold NaN or +inf, or nothing above -inf: there is no distribution."""

    def __init__(self) -> None:
        super().__init__(NOT_A_NUMBER)


SLICE = 64
"""Rows handled at once: bounds the temporary memory at a few times SLICE x vocabulary."""


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], asked: Sequence[int | Sequence[int]]
) -> list[TokenLogprobs]:
    """What the model gave each chosen token, and the alternatives that are asked for.

    Args:
        logits: float32 [n, vocabulary], as the model computed them: no temperature, no penalty.
        token_ids: n chosen ids.
        asked: for each row, how many of the likeliest alternatives, 0 for the chosen one alone; or the ids of the
            alternatives, which come in this order after the chosen one.

    Ranks start at 1 and order equal logits by id.
    """
    ids = torch.tensor(token_ids, dtype=torch.long, device=logits.device)[:, None]
    scores = logits.log_softmax(dim=-1)
    value = scores.gather(-1, ids)[:, 0].tolist()
    found = [
        TokenLogprobs(Logprob(token, logprob, place), [])
        for token, logprob, place in zip(token_ids, value, _ranks(logits, ids), strict=True)
    ]
    counts = [count if isinstance(count, int) else 0 for count in asked]
    most = min(max(counts, default=0), logits.shape[-1])
    if most:
        _, others = likeliest(logits, most)
        rows = zip(found, scores.gather(-1, others).tolist(), others.tolist(), counts, strict=True)
        for entry, lps, best, k in rows:
            entry.top.extend(
                Logprob(other, lp, i + 1) for i, (other, lp) in enumerate(zip(best[:k], lps[:k], strict=True))
            )
    for row, wanted in enumerate(asked):
        if not isinstance(wanted, int):
            found[row].top.extend(_scored(scores[row], wanted, found[row].chosen))
    return found


def _scored(scores: torch.Tensor, wanted: Iterable[int], chosen: Logprob) -> Iterator[Logprob]:
    """`chosen`, then log-probabilities of the ids `wanted`, each once. `scores` is [vocabulary]. Ranks are not counted:
    that takes a look at the whole vocabulary for each id, while other requests wait."""
    others = [token for token in dict.fromkeys(wanted) if token != chosen.token_id]
    yield chosen
    yield from (Logprob(*entry, 0) for entry in zip(others, scores[others].tolist(), strict=True))


def _ranks(logits: torch.Tensor, ids: torch.Tensor) -> list[int]:
    """1 + how many ids come before each row's own, by logit and then by id. `ids` is [n, 1]."""
    if logits.device.type == "cpu":
        # numpy compares and counts with vector instructions; torch's sum of booleans takes ten times as long.
        rows = zip(logits.numpy(), ids[:, 0].tolist(), strict=True)
        return [
            1 + int(np.count_nonzero(row > row[token]) + np.count_nonzero(row[:token] == row[token]))
            for row, token in rows
        ]
    value = logits.gather(-1, ids)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < ids
    return [1 + int(n) for n in ((logits > value) | ((logits == value) & earlier)).sum(dim=-1).tolist()]


def prompt_logprobs(logits: torch.Tensor, next_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log-probabilities of a prompt's own tokens: row i of `logits` [n, vocabulary] predicted `next_ids[i]`.

    `count` is the number of alternatives. Works through the rows in slices, so any n is fine.

    Raises:
        NotANumberError: a row of the logits is no distribution.
    """
    result: list[TokenLogprobs] = []
    for start in range(0, len(next_ids), SLICE):
        ids = next_ids[start : start + SLICE]
        rows = logits[start : start + len(ids)].float()
        # The largest of a row is NaN where the row holds any.
        if not bool(rows.amax(dim=-1).isfinite().all()):
            raise NotANumberError
        result += token_logprobs(rows, ids, [count] * len(ids))
    return result


def extend_prompt_logprobs(seq: EngineSequence, parts: Iterable[tuple[int, torch.Tensor]]) -> None:
    """Adds what this step's rows say about prompt tokens. Rows reported before a preemption are left out.

    Args:
        parts: (row within the step's chunk, logits from there on), as `StepResult.prompt_logits`.

    Raises:
        NotANumberError: a row of the logits is no distribution.
    """
    known, count = seq.prompt_logprobs, seq.params.prompt_logprobs
    assert known is not None
    assert count is not None
    for row, logits in parts:
        # Row r of the chunk is about token num_computed + r + 1; the next one missing is len(known).
        first = seq.num_computed + row + 1
        skip = max(0, len(known) - first)
        next_ids = seq.token_ids[first + skip : min(first + len(logits), seq.prompt_len)]
        if next_ids:
            known += prompt_logprobs(logits[skip : skip + len(next_ids)], next_ids, count)
