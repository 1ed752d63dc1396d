"""Grammars that constrain answers, by llguidance: compiled beside the engine's loop, and masks while the model runs."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence as Items
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from plimsoll.runtime.engine.core.sampling_row import Constraint
from plimsoll.runtime.engine.core.scheduler import QueueFullError
from plimsoll.runtime.engine.core.sequence import Sequence
from plimsoll.runtime.grammar import compiled, failure
from plimsoll.runtime.messages import Vocabulary

logger = logging.getLogger(__name__)

CACHED, CACHED_CHARACTERS = 32, 1 << 20
"""Compiled grammars that are kept for requests to come, and the most that their texts have together."""

WAIT_SECONDS = 0.005


class Matcher(Constraint):
    """One sequence's way through its grammar.

    Args:
        ends: ids that are not allowed to follow: where the request ignores ends of text.
        size: bytes of a mask.
    """

    def __init__(self, matcher: LLMatcher, ends: Items[int], size: int) -> None:
        self._matcher, self._ends = matcher, ends
        self._current = False
        self._mask = np.zeros(size, dtype=np.uint8)

    @property
    def error(self) -> str:
        return failure(self._matcher)

    @property
    def accepting(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def stopped(self) -> bool:
        return bool(self._matcher.is_stopped())

    def compute(self) -> None:
        if not self._current:
            try:
                self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            except Exception:
                # Nothing is allowed then, so this request ends, and no other.
                logger.exception("the mask of a grammar cannot be computed")
                self._mask.fill(0)
            for token in self._ends:
                self._mask[token // 8] &= ~np.uint8(1 << token % 8)
            self._current = True

    def mask(self) -> bytes:
        return self._mask.tobytes()

    def take(self, token_id: int) -> bool:
        self._current = False
        return bool(self._matcher.consume_token(token_id))


class Grammars:
    """The grammars of one engine, whose thread calls; two threads of its own compile them and compute masks.

    Args:
        vocab_size: columns of the logits.
        ends: ids that end a text.

    Attributes:
        compiling: sequences whose grammar is not ready, oldest first.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, ends: Items[int]) -> None:
        self._vocabulary, self._vocab_size, self._ends = vocabulary, vocab_size, tuple(ends)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "grammar")
        self._masker = ThreadPoolExecutor(1, "mask")
        self._masks: Future[None] | None = None
        self.compiling: dict[Sequence, Future[Matcher]] = {}

    def compile(self, seq: Sequence, most: int) -> None:
        """Begins to compile the grammar of `seq`, which `ready` returns then.

        Raises QueueFullError where `most` sequences wait for theirs.
        """
        if len(self.compiling) >= most:
            raise QueueFullError(f"the grammars of {most} requests are being compiled", fix="Try again later")
        grammar = seq.params.grammar
        assert grammar is not None
        self.compiling[seq] = self._compiler.submit(self._compile, grammar, seq.params.ignore_eos)

    def ready(self, *, wait: bool) -> list[tuple[Sequence, BaseException | None]]:
        """Sequences that have their constraint now, or the reason why they have none.

        Args:
            wait: whether to wait a few milliseconds for the first.
        """
        if wait:
            futures.wait(self.compiling.values(), WAIT_SECONDS, futures.FIRST_COMPLETED)
        done = [(seq, future) for seq, future in self.compiling.items() if future.done()]
        found = []
        for seq, future in done:
            del self.compiling[seq]
            error = future.exception()
            if error is None:
                seq.row.constraint = future.result()
            found.append((seq, error))
        return found

    def drop(self, seq: Sequence) -> bool:
        """Forgets a sequence that waits for its grammar; False where it does not."""
        future = self.compiling.pop(seq, None)
        return future is not None and (future.cancel() or True)

    def begin_masks(self, constraints: Items[Constraint | None]) -> None:
        """Starts to compute the masks of `constraints`; None has none."""
        if wanted := [constraint for constraint in constraints if constraint is not None]:
            self._masks = self._masker.submit(_compute, wanted)

    def finish_masks(self) -> None:
        """Waits for the masks that were begun last."""
        masks, self._masks = self._masks, None
        if masks is not None:
            masks.result()

    def close(self) -> None:
        """Ends the threads."""
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._masker.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str, ignore_eos: bool) -> Matcher:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._vocabulary, self._vocab_size, self._ends)
        base = self._compiled.get(grammar)
        if base is None:
            base = compiled(grammar, self._tokenizer)
            self._keep(grammar, base)
        else:
            self._compiled.move_to_end(grammar)
        size = 4 * -(-self._tokenizer.vocab_size // 32)
        return Matcher(base.deep_copy(), self._ends if ignore_eos else (), size)

    def _keep(self, grammar: str, base: LLMatcher) -> None:
        if len(grammar) > CACHED_CHARACTERS:
            return
        self._compiled[grammar] = base
        while len(self._compiled) > CACHED or sum(map(len, self._compiled)) > CACHED_CHARACTERS:
            self._compiled.popitem(last=False)


class _Tokens:
    """What LLTokenizer reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int], eos_token_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_ids, eos_token_id

    def __call__(self, text: str) -> list[int]:
        # Asked for text that a grammar forces, and `compiled` has it force none.
        return []


def tokenizer_of(vocabulary: Vocabulary, vocab_size: int, ends: Items[int]) -> LLTokenizer:
    """The trie of a vocabulary, for logits of `vocab_size` columns. Takes a second for 150,000 tokens."""
    bounds = [0, *itertools.accumulate(vocabulary.sizes)]
    tokens = [vocabulary.tokens[start:end] for start, end in itertools.pairwise(bounds)][:vocab_size]
    # Columns without a token are never chosen. A model without an end of text gets one beyond its columns.
    tokens += [b""] * (vocab_size - len(tokens))
    special = [token for token in vocabulary.special_ids if token < vocab_size]
    if not ends:
        tokens.append(b"<end>")
        special.append(vocab_size)
    ids = list(ends) or [vocab_size]
    return LLTokenizer(cast(TokenizerWrapper, _Tokens(tokens, special, ids[0])), eos_token=ids)


def _compute(constraints: Items[Constraint]) -> None:
    for constraint in constraints:
        constraint.compute()
