"""What changes single logits before a token is chosen: bias, forbidden tokens, penalties on what was said already."""

from collections.abc import Sequence

import numpy as np
import torch

from plimsoll.runtime.engine.core.sampling_params import SamplingParams


def has_penalties(params: SamplingParams) -> bool:
    """Whether any of the three penalties changes a logit."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def add_bias(logits: torch.Tensor, rows: Sequence[int], biases: Sequence[dict[int, float]]) -> None:
    """Adds OpenAI's `logit_bias`, in place, to the given rows of [batch, vocabulary]."""
    at, ids, values = _scatter(
        logits, [(row, list(bias), list(bias.values())) for row, bias in zip(rows, biases, strict=True)]
    )
    logits[at, ids] += values


def forbid(logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
    """Takes tokens out of the choice, in place."""
    at, ids, values = _scatter(
        logits, [(row, list(ids), [-np.inf] * len(ids)) for row, ids in zip(rows, token_ids, strict=True)]
    )
    logits[at, ids] = values


def allow(logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
    """Takes all other tokens out of the choice, in place."""
    for row, ids in zip(rows, token_ids, strict=True):
        at = torch.tensor(ids, dtype=torch.long, device=logits.device)
        kept = logits[row, at]
        logits[row].fill_(-torch.inf)
        logits[row, at] = kept


def keep(logits: torch.Tensor, rows: Sequence[int], masks: Sequence[bytes]) -> None:
    """Takes all tokens out of the choice whose bit in the row's mask is 0, in place."""
    vocabulary = logits.shape[-1]
    for row, mask in zip(rows, masks, strict=True):
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocabulary, bitorder="little")
        logits[row].masked_fill_(torch.from_numpy(bits == 0).to(logits.device), -torch.inf)


def penalise(
    logits: torch.Tensor,
    rows: Sequence[int],
    params: Sequence[SamplingParams],
    seen: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> None:
    """Applies the three penalties in place, all rows at once.

    Repetition (Keskar et al., 2019, as Hugging Face has it): positive logits of tokens in prompt or output are divided
    by it, negative ones multiplied. Then OpenAI's: frequency times the count in the output, and presence once.
    `seen` is what `TokenCounts.seen` returned for each row.
    """
    at, ids, count = _scatter(logits, [(row, *both) for row, both in zip(rows, seen, strict=True)])
    sizes = [len(ids) for ids, _ in seen]

    def per_token(values: list[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), sizes)).to(logits.device)

    repetition = per_token([p.repetition_penalty for p in params])
    value = logits[at, ids]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= per_token([p.frequency_penalty for p in params]) * count
    value -= per_token([p.presence_penalty for p in params]) * (count > 0)
    logits[at, ids] = value


def _scatter(
    logits: torch.Tensor, edits: Sequence[tuple[int, Sequence[int], Sequence[float]]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row numbers, token ids and values of all edits, each flat, on the device of `logits`."""
    at = np.repeat(np.array([row for row, _, _ in edits], dtype=np.int64), [len(ids) for _, ids, _ in edits])
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for _, ids, _ in edits])
    values = np.concatenate([np.asarray(values, dtype=np.float32) for _, _, values in edits])
    device = logits.device
    return torch.from_numpy(at).to(device), torch.from_numpy(ids).to(device), torch.from_numpy(values).to(device)
