"""What a job calibrates and what it measures on: two sets of windows without a token in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plimsoll.api.errors import SpecError
from plimsoll.api.model import ModelFacts
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.quantjob.data import Corpus, Tokens, check_dataset
from plimsoll.quantjob.evaluation import check_length
from plimsoll.quantjob.selftext import OnTokens, self_tokens

#: Tokens of a window at least: fewer have no context to speak of. A run that calibrates on fewer tokens than the second
#: number is warned.
LEAST_LENGTH, FEW_TOKENS = 16, 2048
#: Added to the seed of `self` text that is measured on: other texts than those that calibrate.
HELD_OUT = 1 << 32
#: (calibration, held out); None for a set of no windows.
Pair = tuple[Tokens | None, Tokens | None]


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
        if self.length < LEAST_LENGTH:
            raise SpecError(
                f"must be {LEAST_LENGTH} or more", field="--calib-seqlen", value=self.length,
                fix="Use 512, or what the model will serve",
            )  # fmt: skip
        check_length(self.length, facts, "--calib-seqlen")

    def check_places(self) -> None:
        """Raises SpecError for text that cannot be there, before the checkpoint is fetched or read."""
        for field, dataset in (("--calib-dataset", self.dataset), ("--eval-dataset", self.held_out_dataset)):
            wanted = self.samples if field == "--calib-dataset" else self.held_out
            if dataset is not None and wanted:
                check_dataset(dataset, field)

    def notes(self) -> Iterator[str]:
        """What a person should know of windows that are few."""
        for option, use, samples in (
            ("--calib-samples", "calibrate", self.samples), ("--eval-samples", "are measured on", self.held_out),
        ):  # fmt: skip
            tokens = samples * self.length
            if 0 < tokens < (FEW_TOKENS if use == "calibrate" else FEW_TOKENS // 4):
                worse = (
                    "the weights fit them and lose on other text" if use == "calibrate" else "figures vary by chance"
                )
                yield f"only {tokens} tokens {use}, so that {worse}: give more {option} or a longer --calib-seqlen"

    @property
    def measured(self) -> str:
        """The dataset that is measured on."""
        return self.dataset if self.held_out_dataset is None else self.held_out_dataset

    @property
    def sampled(self) -> dict[str, tuple[int, int]]:
        """(windows, seed) of `self` text, by use."""
        found = {}
        if self.dataset == "self" and self.samples:
            found["calibration"] = (self.samples, self.seed)
        if self.measured == "self" and self.held_out:
            found["held out"] = (self.held_out, self.seed + HELD_OUT)
        return found


def token_sets(
    plan: TokenPlan,
    model: Path,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    *,
    memory: int | None = None,
    threads: int | None = None,
    progress: OnTokens = lambda done, of: None,
    folder: Path | None = None,
    key: str = "",
    ready: Callable[[], None] = lambda: None,
) -> Pair:
    """(calibration, held out); None for a set of no windows. Texts are read before any is sampled.

    Args:
        model: the checkpoint's path, to sample `self` text from.
        memory: bytes that sampling may take; None for what the machine or the container has.
        threads: of sampling; None follows the container's limit.
        progress: called with the tokens of `self` text that are there.
        folder, key: where windows of `self` text are kept, and what tells them from those of another model.
        ready: called once all texts are read, before any is sampled.

    Raises:
        SpecError: the texts cannot be read, or are too few.
        DoesNotFitError: `self` text was asked for, and the model does not fit into memory whole.
    """
    plan.check(facts)
    found = _read(plan, tokenizer)
    ready()
    if plan.sampled:
        texts = self_tokens(
            model, list(plan.sampled.values()), plan.length, memory=memory, threads=threads, progress=progress,
            folder=folder, key=key,
        )  # fmt: skip
        found |= dict(zip(plan.sampled, texts, strict=True))
    return found.get("calibration"), found.get("held out")


def _read(plan: TokenPlan, tokenizer: Tokenizer) -> dict[str, Tokens]:
    """What comes from files and the hub, by use."""
    found, after = {}, 0
    corpus = None
    if plan.dataset != "self" and plan.samples:
        corpus = Corpus(plan.dataset, tokenizer, plan.seed, field="--calib-dataset", option="--calib-samples")
        found["calibration"] = corpus.head(plan.samples, plan.length)
        after = plan.samples * plan.length
    if plan.measured != "self" and plan.held_out:
        if corpus is None or plan.measured != plan.dataset:
            corpus, after = Corpus(plan.measured, tokenizer, plan.seed, field="--eval-dataset"), 0
        corpus.option = "--eval-samples"
        found["held out"] = corpus.tail(plan.held_out, plan.length, after=after)
    return found
