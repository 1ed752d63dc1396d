"""How far what an endpoint serves is from a checkpoint, on held-out tokens."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plimsoll.api.job_budget import LOGIT_ROWS
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.endpoint import AT_ONCE, Endpoint
from plimsoll.quantjob.evaluation import (
    Array,
    Compared,
    Comparison,
    check_length,
    embedded,
    losses,
    multiply_adds,
    run_layer,
)
from plimsoll.quantjob.steps import OnShare, Steps, silent
from plimsoll.quantjob.streamed import StreamedModel

#: What the tokens that an endpoint does not tell have together at least: a sum of rounded numbers may leave less.
REST = 1e-6


def compare_endpoint(
    reference: StreamedModel,
    endpoint: Endpoint,
    tokens: Tokens,
    *,
    scratch: Path | None = None,
    progress: OnShare = silent,
) -> Comparison:
    """A checkpoint and what an endpoint serves, over the same tokens; the endpoint comes out as `endpoint`.

    An endpoint tells the likeliest few tokens of each position, not all: everything else counts as one token, so the
    divergence is a lower bound of the true one (merging outcomes never adds divergence), and near it while the rest is
    unlikely. Errors by layer are not to be had.

    Raises:
        SpecError: windows are too short or too long.
        EndpointError: the endpoint does not score prompts.
        CheckpointError: a tensor cannot be read.
    """
    check_length(tokens.windows.shape[1], reference.facts)
    ids = torch.from_numpy(tokens.windows)
    # The endpoint does what the checkpoint here does, once more; how fast is not known.
    own_share = 0.5

    def scored(done: int) -> None:
        progress((1 - own_share) * done / len(ids), (1 - own_share) * min(1.0, (done + AT_ONCE) / len(ids)))

    scored(0)
    given = endpoint.score(tokens.windows.tolist(), scored)
    batch = reference.workers.count
    hidden = embedded(reference, ids, batch, scratch, 0, None)
    lengths = multiply_adds(reference.facts, 1, *ids.shape)
    steps = Steps(
        [lengths.layer] * reference.num_layers + [lengths.window] * len(ids),
        lambda share, upto: progress(1 - own_share * (1 - share), 1 - own_share * (1 - upto)),
    )
    for layer in range(reference.num_layers):
        run_layer(reference, layer, hidden, batch, partial(steps.begin, layer))
    own: list[Array] = []
    kls: list[float] = []
    agrees: list[bool] = []
    for index, positions in enumerate(given):
        steps.begin(reference.num_layers + index)
        for start in range(0, len(positions), LOGIT_ROWS):
            some = positions[start : start + LOGIT_ROWS]
            logits = reference.logits(hidden[index, start : start + len(some)])
            own.append(losses(reference, logits, ids[index, start + 1 : start + 1 + len(some)]))
            likely = torch.log_softmax(logits.to(torch.float64), 1)
            first = likely.argmax(1).tolist()
            kls += [coarse_divergence(row, position.top) for row, position in zip(likely, some, strict=True)]
            agrees += [mine == position.first for mine, position in zip(first, some, strict=True)]
    progress(1.0, 1.0)
    loss = np.array([-position.chosen for positions in given for position in positions])
    note = f"KL divergence over the {endpoint.top} likeliest tokens the endpoint tells: a lower bound"
    found = {"endpoint": Compared(loss, np.array(kls), np.array(agrees), note=note)}
    return Comparison(np.concatenate(own), found, tokens.digest, tokens.source, *tokens.windows.shape)


def coarse_divergence(reference: Tensor, top: Mapping[int, float]) -> float:
    """KL of `reference` (log p float64 [vocab]) from a prediction of which `top` (log p by token) is known, nats.

    All other tokens count as one.
    """
    chosen = sorted(top)
    given = np.array([top[token] for token in chosen])
    wanted = reference[chosen].numpy()
    rests = [max(1 - float(np.exp(part).sum()), REST) for part in (wanted, given)]
    kl = float((np.exp(wanted) * (wanted - given)).sum()) + rests[0] * float(np.log(rests[0] / rests[1]))
    return max(kl, 0.0)
