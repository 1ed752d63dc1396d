"""Sampling in one pass for the batch; rows that ask for little cost little."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plimsoll.api.errors import message_of
from plimsoll.runtime.engine.core.sampling_row import SamplingRow, TokenCounts
from plimsoll.runtime.engine.worker.draw import draw, pick, uniforms
from plimsoll.runtime.engine.worker.logprobs import NOT_A_NUMBER, token_logprobs
from plimsoll.runtime.engine.worker.penalties import add_bias, allow, forbid, has_penalties, keep, penalise
from plimsoll.runtime.kernels.table import Draw
from plimsoll.runtime.messages import TokenLogprobs
from plimsoll.runtime.models.best import Best, best_of

logger = logging.getLogger(__name__)

SLICE_ROWS = 16
"""Rows whose filtered distributions exist at once: what sampling takes beside the logits is part of the budget."""

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by less would only overflow."""

NOTHING_LEFT = (
    "no token is left to choose: logit_bias, allowed_token_ids, bad_words and min_tokens forbid them all together"
)


@dataclass(slots=True)
class SampledToken:
    """The token chosen; or -1, and in `error` the reason why this row alone has none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    rejected: bool = False
    """The error is of the request's own fields: no engine could choose a token."""
    ended: bool = False
    """There is no token because the row's grammar accepts and no token may follow."""


class Sampler:
    """Chooses one token a row.

    Order, as in vLLM: logit bias, allowed tokens, forbidden tokens, grammars, penalties (repetition, frequency,
    presence), temperature, min_p, top_k, top_p. Log-probabilities are of the raw logits. A row's token depends on that
    row alone. A row's `forced` token comes before all of these.

    Args:
        table_draw: of the table of kernels; None draws with torch.
    """

    def __init__(self, vocab_size: int, table_draw: Draw | None = None) -> None:
        self.vocab_size = vocab_size
        self._table_draw = table_draw

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """One result a row of `logits`, float32 [len(rows), vocab_size], which is left as it was.

        A row whose logits hold NaN or +inf, or that leaves no token to choose, gets an error; the others do not notice.
        """
        if logits.shape != (len(rows), self.vocab_size):
            raise ValueError(f"logits are {tuple(logits.shape)}, expected {(len(rows), self.vocab_size)}")
        sampled: list[SampledToken] = []
        for start in range(0, len(rows), SLICE_ROWS):
            sampled += self._sample(logits[start : start + SLICE_ROWS], rows[start : start + SLICE_ROWS])
        return sampled

    def sample_apart(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """As `sample`. Should the batch fail as a whole, each row is tried alone: only the culprit gets an error."""
        try:
            return self.sample(logits, rows)
        except Exception:
            logger.exception("sampling %d rows together failed; trying each alone", len(rows))
        tokens = []
        for index, row in enumerate(rows):
            try:
                tokens += self.sample(logits[index : index + 1], [row])
            except Exception as error:
                tokens.append(SampledToken(-1, error=message_of(error)))
        return tokens

    def _sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        greedy = best_of(logits)
        tokens, largest = greedy.ids, greedy.values
        errors: dict[int, str] = dict.fromkeys(np.flatnonzero(~np.isfinite(greedy.values)).tolist(), NOT_A_NUMBER)
        edited, touched = self._edit(logits, rows, errors)
        if touched:
            again = best_of(pick(edited, touched))
            tokens[touched], largest[touched] = again.ids, again.values
            for row, finite in zip(touched, np.isfinite(again.values).tolist(), strict=True):
                if not finite:
                    errors.setdefault(row, _nothing_left(rows[row]))
        forced = {i: row.forced for i, row in enumerate(rows) if row.forced is not None}
        if forced:
            tokens[list(forced)] = list(forced.values())
        random = [
            i
            for i, row in enumerate(rows)
            if i not in errors and i not in forced and row.params.temperature >= GREEDY_BELOW
        ]
        if random:
            drawn = [rows[i] for i in random]
            filters = [row.params for row in drawn]
            uniform = uniforms([row.seed for row in drawn], [row.index for row in drawn])
            if self._table_draw is None:
                tokens[random] = draw(pick(edited, random), filters, uniform)
            else:
                tokens[random] = self._table_draw(edited, random, largest[random], filters, uniform)
        wanted = [i for i, row in enumerate(rows) if i not in errors and row.params.logprobs is not None]
        found: dict[int, TokenLogprobs] = {}
        if wanted:
            asked = [rows[i].params.logprob_token_ids or rows[i].params.logprobs or 0 for i in wanted]
            found = dict(zip(wanted, token_logprobs(pick(logits, wanted), tokens[wanted].tolist(), asked), strict=True))
        return [
            SampledToken(token, found.get(i))
            if (error := errors.get(i)) is None
            else SampledToken(-1, error=error or None, rejected=error != NOT_A_NUMBER, ended=not error)
            for i, token in enumerate(tokens.tolist())
        ]

    def take(self, best: Best, rows: Sequence[int]) -> list[SampledToken]:
        """What `sample` makes of logits whose largest are `best`, for those of its rows that `is_plain` holds for."""
        return [
            SampledToken(int(best.ids[row])) if np.isfinite(best.values[row]) else SampledToken(-1, error=NOT_A_NUMBER)
            for row in rows
        ]

    def _edit(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], errors: dict[int, str]
    ) -> tuple[torch.Tensor, list[int]]:
        """A copy with bias, bans and penalties applied and the rows they changed; the original if there are none."""
        for i, row in enumerate(rows):
            if row.forced is not None:
                continue
            foreign = [t for t in (*row.params.logit_bias, *row.forbidden) if not 0 <= t < self.vocab_size]
            if foreign:
                errors.setdefault(i, f"token id {foreign[0]} is outside the vocabulary of {self.vocab_size}")
            elif row.constraint is not None and (reason := row.constraint.error):
                errors.setdefault(i, f"the grammar cannot go on: {reason}")
        usable = [i for i, row in enumerate(rows) if i not in errors and row.forced is None]
        biased = [i for i in usable if rows[i].params.logit_bias]
        limited = [i for i in usable if rows[i].params.allowed_token_ids]
        banned = [i for i in usable if rows[i].forbidden]
        masks = {i: row.constraint.mask() for i in usable if (row := rows[i]).constraint is not None}
        penalised = [i for i in usable if has_penalties(rows[i].params)]
        touched = sorted({*biased, *limited, *banned, *masks, *penalised})
        if not touched:
            return logits, []
        logits = logits.clone()
        if biased:
            add_bias(logits, biased, [rows[i].params.logit_bias for i in biased])
        if limited:
            allow(logits, limited, [rows[i].params.allowed_token_ids for i in limited])
        if banned:
            forbid(logits, banned, [rows[i].forbidden for i in banned])
        if masks:
            keep(logits, list(masks), list(masks.values()))
        if penalised:
            penalise(logits, penalised, [rows[i].params for i in penalised], [_seen(rows[i]) for i in penalised])
        return logits, touched


def is_plain(row: SamplingRow) -> bool:
    """Whether the row's token is its largest logit as the model has it, and nothing else of its logits is needed."""
    params = row.params
    return (
        params.temperature < GREEDY_BELOW
        and params.logprobs is None
        and not params.logit_bias
        and not params.allowed_token_ids
        and not row.forbidden
        and row.forced is None
        and row.constraint is None
        and not has_penalties(params)
    )


def all_plain(rows: Iterable[SamplingRow]) -> bool:
    """Whether no row needs more than its largest logit."""
    return all(map(is_plain, rows))


def _seen(row: SamplingRow) -> tuple[Sequence[int], Sequence[int]]:
    if row.counts is None:
        row.counts = TokenCounts(row.prompt_token_ids)
    return row.counts.seen(row.output_token_ids, with_prompt=row.params.repetition_penalty != 1.0)


def _nothing_left(row: SamplingRow) -> str:
    """Why no token can be chosen; empty where that is the end of the row's answer."""
    if row.constraint is None:
        return NOTHING_LEFT
    return "" if row.constraint.accepting else f"{NOTHING_LEFT} with the grammar"
