"""Text sampled from the model itself, by our own engine: calibration without any data.

The idea is Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning", NAACL
2025, arXiv 2410.17170: what a model writes without a prompt is near to what it was trained on. Texts start at the
model's start token; every second one goes on with a token drawn from the whole vocabulary, so that they do not all
begin alike. The first tokens are drawn at a higher temperature, which spreads the subjects; the rest at 1, the model's
own distribution. Each window is filled by texts of its own: one that ends is followed by the next, and the last one is
stopped where the window is full, so that no token is drawn in vain.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from plimsoll.api.errors import DoesNotFitError, PlimsollError
from plimsoll.api.job_budget import SAMPLED_AT_ONCE
from plimsoll.api.sizes import block_bytes
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.quantjob.data import Tokens, tokens_of
from plimsoll.quantjob.token_store import DrawnWindows
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.llm import LLM
from plimsoll.runtime.messages import EngineRequest, TokenOutput

#: Tokens at the start of a text that are drawn at the higher temperature, and that temperature.
OPENING, OPENING_TEMPERATURE = 8, 1.3
#: Tokens of a block of the cache.
BLOCK = 64

#: (tokens that are there, tokens wanted)
OnTokens = Callable[[int, int], None]


def self_tokens(
    model: Path,
    sets: Sequence[tuple[int, int]],
    length: int,
    *,
    memory: int | None = None,
    threads: int | None = None,
    progress: OnTokens = lambda done, of: None,
    field: str = "--calib-dataset",
    folder: Path | None = None,
    key: str = "",
) -> list[Tokens]:
    """Windows int64 [samples, length] of text that the model at `model` writes, for each (samples, seed) of `sets`.

    The same for the same seed, on any number of threads. The model is whole in memory meanwhile, and `SAMPLED_AT_ONCE`
    texts of `length` tokens beside it.

    Args:
        memory: bytes that the process may take; None for what the machine or the container has.
        threads: None follows the container's limit.
        progress: called after each step of the engine.
        folder: where finished windows are kept and found again; None keeps nothing.
        key: what tells windows in `folder` from those of another model.

    Raises:
        DoesNotFitError: the model does not fit, rounded to 4 bits either; what to do instead is named.
        CheckpointError: it cannot be read.
        OSError: `folder` cannot be written.
    """
    drawn = [DrawnWindows(folder, f"{key}/{length}", seed) for _, seed in sets]
    whole = all(number in some.windows for some, (samples, _) in zip(drawn, sets, strict=True)
                for number in range(samples))  # fmt: skip
    # Windows of two precisions are not mixed.
    if not whole or len({some.precision for some in drawn}) > 1:
        with _engine(model, length, memory, threads, field) as llm:
            for some in drawn:
                some.begin(llm.engine.ready.precision)
            wanted = [(some, number) for some, (samples, _) in zip(drawn, sets, strict=True)
                      for number in range(samples)]  # fmt: skip
            _Drawing(llm, wanted, length, progress).run()
    return [
        tokens_of(
            np.array([some.windows[number] for number in range(samples)], dtype=np.int64).reshape(samples, length),
            f"self, sampled in {some.precision} with seed {seed}",
        )
        for some, (samples, seed) in zip(drawn, sets, strict=True)
    ]


def _engine(model: Path, length: int, memory: int | None, threads: int | None, field: str) -> LLM:
    facts = open_checkpoint(model).facts
    cache = SAMPLED_AT_ONCE * -(-length // BLOCK) * block_bytes(facts, BLOCK, "bfloat16")
    options = {"kv_cache_bytes": cache, "block_size": BLOCK, "max_running": SAMPLED_AT_ONCE, "threads": threads}
    try:
        return LLM(model, memory=memory, max_model_len=length, max_batched_tokens=max(length, BLOCK), **options)
    except DoesNotFitError as error:
        raise DoesNotFitError(
            f"sampling text needs the whole model in memory once, which {error.message}", field=field, value="self",
            ways=("a dataset in place of self, which needs one layer in memory", *error.ways),
        ) from None  # fmt: skip


class _Window:
    """One window that is being filled: `ids` so far, of which those from `start` on are the text that is being written.

    Each text is drawn by two requests: its opening, then the rest.
    """

    def __init__(self, number: int, seed: int, length: int, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.number = number
        self.ids: list[int] = []
        self._seed, self._length = seed, length
        self._tokenizer, self._vocab = tokenizer, min(vocab_size, tokenizer.vocab_size)
        self._text = -1
        self._opens = True
        self._begin()

    @property
    def full(self) -> bool:
        return len(self.ids) >= self._length

    @property
    def request(self) -> EngineRequest:
        """What draws the next tokens of it."""
        name = f"{self._seed}/{self.number}/{self._text}/{self._opens}"
        room = self._length - len(self.ids)
        params = SamplingParams(
            temperature=OPENING_TEMPERATURE if self._opens else 1.0,
            max_tokens=min(OPENING, room) if self._opens else room,
            ignore_eos=self._opens,
            seed=int.from_bytes(random.Random(name).randbytes(4), "big"),
        )
        prompt = self.ids[self._start :]
        return EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, arrival=time.monotonic())

    def ended(self) -> None:
        """The request is over; `ids` holds what it drew."""
        if self._opens:
            self._opens = False
        elif not self.full:
            self.ids += self._tokenizer.eos_token_ids[:1]
            self._begin()

    def _begin(self) -> None:
        """The next text starts here."""
        self._text += 1
        self._start, self._opens = len(self.ids), True
        bos, special = self._tokenizer.bos_token_id, self._tokenizer.special_ids
        start = list(self._tokenizer.eos_token_ids[:1]) if bos is None else [bos]
        draw = random.Random(f"{self._seed}/{self.number}/{self._text}")
        if (self.number + self._text) % 2 or not start:
            token = draw.randrange(self._vocab)
            while token in special:
                token = draw.randrange(self._vocab)
            start = [*start, token]
        self.ids = (self.ids + start)[: self._length]


class _Drawing:
    """Fills windows, `SAMPLED_AT_ONCE` at a time; a finished one makes room for the next."""

    def __init__(
        self, llm: LLM, wanted: Sequence[tuple[DrawnWindows, int]], length: int, progress: OnTokens
    ) -> None:  # fmt: skip
        self._llm, self._length, self._progress = llm, length, progress
        self._todo = deque(one for one in wanted if one[1] not in one[0].windows)
        self._done = (len(wanted) - len(self._todo)) * length
        self._of = len(wanted) * length
        self._running: dict[str, tuple[DrawnWindows, _Window]] = {}

    def run(self) -> None:
        engine = self._llm.engine
        self._tell()
        while self._todo or self._running:
            while self._todo and len(self._running) < SAMPLED_AT_ONCE:
                drawn, number = self._todo.popleft()
                window = _Window(number, drawn.seed, self._length, self._llm.tokenizer, engine.facts.vocab_size)
                self._go_on(drawn, window)
            for output in engine.step():
                self._take(output)
            self._tell()

    def _go_on(self, drawn: DrawnWindows, window: _Window) -> None:
        if window.full:
            self._done += self._length
            drawn.keep(window.number, window.ids)
            return
        request = window.request
        self._running[request.request_id] = (drawn, window)
        self._llm.engine.add(request)

    def _take(self, output: TokenOutput) -> None:
        if output.error is not None:
            raise PlimsollError(
                f"the model cannot write text: {output.error}", field=str(self._llm.engine.config.model)
            )
        drawn, window = self._running[output.request_id]
        window.ids += output.token_ids
        if output.finish_reason is not None:
            del self._running[output.request_id]
            window.ended()
            self._go_on(drawn, window)

    def _tell(self) -> None:
        self._progress(self._done + sum(len(window.ids) for _, window in self._running.values()), self._of)
