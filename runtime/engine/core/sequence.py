"""One request inside the engine: its tokens, its blocks, its clock."""

from collections.abc import Sequence as Tokens

from plimsoll.runtime.engine.core.block_manager import chain_hash, salted_root
from plimsoll.runtime.engine.core.lookup import Lookup
from plimsoll.runtime.engine.core.payoff import Payoff
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.sampling_row import SamplingRow
from plimsoll.runtime.engine.core.thought import ThoughtLimit
from plimsoll.runtime.messages import FinishReason, RequestTimes, TokenLogprobs, TokenOutput


class Sequence:
    """A prompt and what was generated after it.

        token_ids   [ prompt ............ | generated ..... ]
                    0        num_computed ^ keys and values of everything before are in block_table

    Args:
        seed: of its random draws; draw i depends on (seed, i) alone.
        eos_token_ids: end it and are not part of the answer; empty where the request ignores them.
        max_tokens: as resolved against the model's length.
        arrival: time.monotonic() of the request.
        thought: closes the answer's thought; None lets it go on.
        payoff: whether guesses at what comes next pay; None where each token is awaited.
        lookup: makes these guesses; None where a draft does.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_table",
        "cache_root",
        "eos_token_ids",
        "first_scheduled",
        "first_token",
        "lookup",
        "max_tokens",
        "num_cached",
        "num_computed",
        "num_drafted",
        "num_swapped",
        "order",
        "output_token_ids",
        "params",
        "payoff",
        "prompt_len",
        "prompt_logprobs",
        "request_id",
        "row",
        "stop_token_ids",
        "thought",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Tokens[int],
        params: SamplingParams,
        *,
        seed: int = 0,
        eos_token_ids: Tokens[int] = (),
        max_tokens: int,
        arrival: float,
        thought: ThoughtLimit | None = None,
        payoff: Payoff | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.prompt_len = len(prompt_token_ids)
        self.token_ids = list(prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.max_tokens = max_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.num_computed = 0
        # Tokens whose keys and values the draft has.
        self.num_drafted = 0
        # -1 until it is first admitted.
        self.num_cached = -1
        # Tokens that were computed when it was preempted; the host tier may hold its last, part-filled block.
        self.num_swapped = 0
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        self.cache_root = salted_root(params.cache_salt)
        self.arrival = arrival
        # Its place among all requests, once it is queued: (priority, number).
        self.order = (params.priority, 0)
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self.row = SamplingRow(
            params=params,
            seed=seed,
            prompt_token_ids=prompt_token_ids,
            output_token_ids=self.output_token_ids,
            forced=None if thought is None else thought.forced,
        )
        self.thought = thought
        self.payoff = payoff
        self.lookup = lookup
        self._forbid()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens known and not yet computed. 1 is a decode."""
        return len(self.token_ids) - self.num_computed

    @property
    def reusable_tokens(self) -> int:
        """How many leading tokens may come from the prefix cache.

        The last one is always computed, for its logits. Prompt log-probabilities need the logits of every position
        that has not been reported yet.
        """
        logprobs = self.prompt_logprobs
        if logprobs is not None and len(logprobs) < self.prompt_len:
            return len(logprobs) - 1
        return len(self.token_ids) - 1

    def hashes(self, count: int, block_size: int) -> list[bytes]:
        """Chained hashes of the first `count` blocks, which must be full. Computed once, also across preemptions."""
        known = self.block_hashes
        for index in range(len(known), count):
            parent = known[-1] if known else self.cache_root
            known.append(chain_hash(parent, self.token_ids[index * block_size : (index + 1) * block_size]))
        return known[:count]

    def tail_hash(self, block_size: int) -> bytes | None:
        """Of the part-filled block that it had when it was preempted; None where there is none. A full block's hash
        is over more tokens, so the two never meet."""
        full, rest = divmod(self.num_swapped, block_size)
        if not rest:
            return None
        parent = self.hashes(full, block_size)[-1] if full else self.cache_root
        return chain_hash(parent, self.token_ids[full * block_size : self.num_swapped])

    def take(self, token: int, logprobs: TokenLogprobs | None, output: TokenOutput) -> FinishReason | None:
        """Goes on by the token that was chosen, and writes what the client gets of it into `output`.

        Returns why the answer ends with it, None where it does not.
        """
        if token in self.eos_token_ids:
            output.stop_token_id, output.stop_logprobs = token, logprobs
            return "stop"
        self.append(token)
        constraint = self.row.constraint
        if constraint is not None and not constraint.take(token):
            output.error = f"the grammar cannot go on: {constraint.error}"
            return "rejected"
        output.token_ids = [token]
        if logprobs is not None:
            output.logprobs = [logprobs]
        if token in self.stop_token_ids:
            output.stop_token_id = token
            return "stop"
        if constraint is not None and constraint.stopped:
            return "stop"
        return "length" if len(self.output_token_ids) >= self.max_tokens else None

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
        if self.payoff is not None:
            self.payoff.append()
        if self.lookup is not None:
            self.lookup.append(token_id)
        if self.row.forbidden or self.params.bad_words:
            self._forbid()
        if self.thought is not None:
            self.thought.take(token_id)
            self.row.forced = self.thought.forced

    def _forbid(self) -> None:
        """Ban end tokens until there are `min_tokens`, and what would complete a bad word."""
        output, params = self.output_token_ids, self.params
        forbidden: set[int] = set()
        if len(output) < params.min_tokens:
            forbidden |= self.eos_token_ids | self.stop_token_ids
        for *begun, last in params.bad_words:
            if not begun or output[-len(begun) :] == begun:
                forbidden.add(last)
        self.row.forbidden = tuple(sorted(forbidden))

    def times(self, now: float) -> RequestTimes:
        """The clock of a sequence that ends `now`."""
        scheduled = now if self.first_scheduled is None else self.first_scheduled
        token = now if self.first_token is None else self.first_token
        queue = max(0.0, scheduled - self.arrival)
        return RequestTimes(request_id=self.request_id, queue=queue, prefill=token - scheduled, decode=now - token)
