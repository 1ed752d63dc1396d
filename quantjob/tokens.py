"""What a job calibrates and what it measures on: two sets of windows without a token in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plimsoll.api.errors import SpecError
from plimsoll.api.model import ModelFacts
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.quantjob.data import Corpus, Tokens
from plimsoll.quantjob.evaluation import check_length
from plimsoll.quantjob.selftext import self_tokens

#: Added to the seed of `self` text that is measured on: other texts than those that calibrate.
HELD_OUT = 1 << 32


@dataclass(frozen=True)
class TokenPlan:
    """Which windows of which texts.

    Attributes:
        dataset: of calibration: `self`, a path, `hf://datasets/…`.
        samples: windows that calibrate; 0 for a method that looks at no text.
        length: tokens of each window, of both sets.
        held_out: windows to measure on; 0 for none.
        held_out_dataset: where they come from; None takes the tail of `dataset`, or more `self` text.
        seed: of the order of texts, and of sampling.
    """

    dataset: str
    samples: int
    length: int
    held_out: int
    held_out_dataset: str | None = None
    seed: int = 0

    def check(self, facts: ModelFacts) -> None:
        """Raises SpecError, before anything is read, for windows that cannot be."""
        for field, value in (("--calib-samples", self.samples), ("--eval-samples", self.held_out)):
            if value < 0:
                raise SpecError("must be 0 or more", field=field, value=value)
        check_length(self.length, facts, "--calib-seqlen")


def token_sets(
    plan: TokenPlan,
    model: Path,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    *,
    memory: int | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Tokens | None, Tokens | None]:
    """(calibration, held out); None for a set of no windows.

    Args:
        model: the checkpoint's path, to sample `self` text from.
        memory: bytes that sampling may take; None for what the machine or the container has.
        threads: of sampling; None follows the container's limit.
        progress: told the share of `self` text that is there.

    Raises:
        SpecError: the texts cannot be read, or are too few.
        DoesNotFitError: `self` text was asked for, and the model does not fit into memory whole.
    """
    plan.check(facts)
    same = plan.held_out_dataset in (None, plan.dataset)
    measured = plan.dataset if same else str(plan.held_out_dataset)
    sampled = {}
    if plan.dataset == "self" and plan.samples:
        sampled["calibration"] = (plan.samples, plan.seed)
    if measured == "self" and plan.held_out:
        sampled["held out"] = (plan.held_out, plan.seed + HELD_OUT)
    found: dict[str, Tokens] = {}
    if sampled:
        texts = self_tokens(
            model, list(sampled.values()), plan.length, memory=memory, threads=threads, progress=progress
        )
        found = dict(zip(sampled, texts, strict=True))
    after = 0
    corpus = None
    if plan.dataset != "self" and plan.samples:
        corpus = Corpus(plan.dataset, tokenizer, plan.seed, field="--calib-dataset")
        found["calibration"] = corpus.head(plan.samples, plan.length)
        after = plan.samples * plan.length
    if measured != "self" and plan.held_out:
        if not same or corpus is None:
            corpus, after = Corpus(measured, tokenizer, plan.seed, field="--eval-dataset"), 0
        found["held out"] = corpus.tail(plan.held_out, plan.length, after=after)
    return found.get("calibration"), found.get("held out")
