"""Which tokens run in the next step: one budget for decodes and prompts together, first come first served.

A request with a lower `priority` counts as older than all with a higher one, as in vLLM. One that waits never takes the
place of one that runs.

Pure bookkeeping: no tensors, no clock. Order of a step:

    1. decodes, oldest first; where one needs a block and there is none, the newest sequence is preempted
    2. prompts already begun, the next chunk of each
    3. prompts from the queue, as long as budget, slots and blocks last

Where prompts are paced, a step with decodes has no more of them than `Pace` allows: in the order of 2. and 3., prompts
whose pending tokens fit into the time join the step; the first that does not begins a pass (`PromptPass`), of which
each step runs some layers. No other prompt runs until the pass has ended. So the rows of a pass and of a step together
are never more than the budget: no sequence comes to the decodes meanwhile.

A sequence takes the blocks of all its tokens when it is admitted, so only decodes can find the cache full. The oldest
sequence is never preempted for another, and alone it fits (`max_model_len` is at most what the cache holds): every
step makes progress.

With a host tier (`HostBlocks`) the blocks of a preempted sequence, and of a prefix that no sequence holds, are copied
there when others need their room, and copied back when the sequence, or a request with that prefix, is admitted.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator

from plimsoll.api.errors import PlimsollError, message_of
from plimsoll.api.guesses import GUESSING_ROWS
from plimsoll.runtime.engine.core.block_manager import BlockManager
from plimsoll.runtime.engine.core.guesser import NO_GUESSES, Guesser, Guessing
from plimsoll.runtime.engine.core.host_blocks import Copy
from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.prompt_pass import LEAST_ROWS, MOST_ROWS, Part, PromptPass
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.sequence import Sequence
from plimsoll.runtime.messages import EngineStats, TokenOutput


def _order(seq: Sequence) -> tuple[float, int]:
    return seq.order


class QueueFullError(PlimsollError):
    """The queue's bound in requests or tokens is reached."""


def rejection(request_id: str, error: BaseException) -> TokenOutput:
    """The only output of a request that is not run because of `error`."""
    busy = isinstance(error, QueueFullError)
    return TokenOutput(request_id=request_id, finish_reason="rejected", error=message_of(error), busy=busy)


class Scheduler:
    """Args:
    blocks: the pool; the scheduler is the only one who allocates from it.
    max_batched_tokens: the budget of a step.
    max_running: sequences that hold blocks at once, and rows of a step that get a token, guesses included.
    max_queued_requests, max_queued_tokens: bounds of what waits beyond the free slots.
    pace: how much of prompts runs beside running streams; None: all that fits into the budget.
    guessing: how tokens of requests are guessed.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batched_tokens: int,
        max_running: int,
        max_queued_requests: int,
        max_queued_tokens: int,
        pace: Pace | None = None,
        guessing: Guessing = NO_GUESSES,
    ) -> None:
        self.blocks = blocks
        self.max_batched_tokens = max_batched_tokens
        self.max_running = max_running
        self.max_queued_requests = max_queued_requests
        self.max_queued_tokens = max_queued_tokens
        # Both in the order in which they are served.
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.waiting_tokens = 0
        self.pace = pace
        self._pass: PromptPass | None = None
        self.guesser = Guesser(guessing, blocks.block_size, max_running)
        # Of the last step: its part of a pass, and sequences in decode, tokens and work of prompts that joined them;
        # None where a draft ran much beside them.
        self.part: Part | None = None
        self._last: tuple[int, int, float] | None = (0, 0, 0.0)
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.host_hits = 0
        self._arrivals = 0

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, seq: Sequence) -> None:
        """Queues a sequence; raises QueueFullError where the bounds say so.

        Requests that a free slot awaits do not count against the queue's length, so a burst that fits is never
        refused only because it came between two steps. One request alone is never too many tokens.
        """
        queued = len(self.waiting) - (self.max_running - len(self.running))
        if queued >= self.max_queued_requests:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting", fix="Try again later")
        if self.waiting and self.waiting_tokens + seq.num_tokens > self.max_queued_tokens:
            raise QueueFullError(f"{self.waiting_tokens} prompt tokens are waiting", fix="Try again later")
        seq.order = (seq.params.priority, self._arrivals)
        self._arrivals += 1
        self._queue(seq)

    def schedule(self) -> list[Scheduled]:
        """Chooses the step's tokens and makes sure of their blocks. What it returns must be run, all in one step, and
        `part` before it, where there is one.

        Blocks that the step will fill are published at once: the runner writes every sequence's keys and values of a
        layer before any attention of that layer, so a later sequence of this same step may share them. Those of a pass
        are published when its last part is chosen.
        """
        chosen: list[Scheduled] = []
        self.part = None
        spare = self._schedule_decodes(chosen)
        streams = len(chosen)
        if self.pace is None or not streams:
            joined, work = self._fill(spare, chosen), 0.0
        else:
            joined, work = self._join(self.pace, streams, spare, chosen)
        self._last = streams, joined, work
        if self.pace and self._pass:
            self._advance_pass(self.pace, self._pass, streams, chosen)
        rows = sum(item.num_new_tokens for item in chosen) + (self._pass.rows if self._pass else 0)
        if rows < self.max_batched_tokens:
            self.guesser.add(chosen, self.max_batched_tokens - rows)
            if any(item.drafted > GUESSING_ROWS for item in chosen):
                self._last = None
        return chosen

    def take_copies(self) -> list[Copy]:
        """What must be copied between the tiers before the step that `schedule` chose runs, in this order."""
        return [] if self.blocks.host is None else self.blocks.host.take_copies()

    def took(self, seconds: float, apart: float = 0.0) -> None:
        """Learns what the step took that `schedule` chose last, and in which nothing was copied.

        Args:
            apart: seconds of these that its part of a pass took.
        """
        part, times = self.part, self.blocks.host.times if self.blocks.host else None
        if self.pace and part:
            self.pace.took_apart(part.going, part.first, apart)
            if part.whole and times:
                times.observe(part.going.rows, part.going.seconds)
        if self._last is None:
            return
        streams, joined, work = self._last
        if self.pace:
            self.pace.took_joined(streams, work, seconds - apart)
        if times and not part:
            times.observe(streams + joined, seconds)

    def accept(self, seq: Sequence) -> None:
        """Counts a guess as computed that the engine would have chosen: its keys and values are in the cache."""
        before = seq.num_computed
        seq.num_computed += 1
        self._publish(seq, before)

    def finish(self, seq: Sequence) -> list[int]:
        """Takes a sequence out, wherever it is; returns the blocks that hold nothing any more."""
        if seq.block_table:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
            self.waiting_tokens -= seq.num_tokens
            self._drop_tail(seq)
        return self._release(seq)

    def distrust(self, seq: Sequence, first_token: int) -> None:
        """Removes a sequence's keys and values from `first_token` on from the prefix cache, in both tiers."""
        first = first_token // self.blocks.block_size
        self.blocks.unpublish(seq.block_table[first:])
        if self.blocks.host is not None:
            self.blocks.host.drop(seq.block_hashes[first:])

    def distrust_copies(self, copies: Iterable[Copy]) -> None:
        """Forgets what `copies` of a step that failed were to bring, and all of the host tier."""
        self.blocks.unpublish(copy.block for copy in copies if not copy.out)
        if self.blocks.host is not None:
            self.blocks.host.clear()

    def count(self, stats: EngineStats) -> None:
        """Writes its figures of now."""
        blocks, host = self.blocks, self.blocks.host
        stats.running, stats.waiting = len(self.running), len(self.waiting)
        stats.waiting_tokens, stats.preemptions = self.waiting_tokens, self.preemptions
        stats.blocks_free, stats.blocks_cached = blocks.num_free, blocks.num_cached
        stats.prefix_queries, stats.prefix_hits = self.prefix_queries, self.prefix_hits
        if host is not None:
            stats.host_blocks_used, stats.host_hits = host.num_used, self.host_hits
            stats.host_saved, stats.host_loaded = host.saved, host.loaded

    def check_integrity(self) -> None:
        """Raises AssertionError where the scheduler's books and the block manager's differ."""
        self.blocks.check_integrity(seq.block_table for seq in self)
        assert len(self.running) <= self.max_running, "more run than may"
        assert self.waiting_tokens == sum(seq.num_tokens for seq in self.waiting), "waiting tokens do not add up"
        for seq in self.running:
            assert len(seq.block_table) >= self.blocks.blocks_for(seq.num_computed), "computed tokens without a block"
            assert len(seq.block_table) <= self.blocks.blocks_for(seq.num_tokens), "a block too many"
            assert seq.num_pending > 0, "a running sequence has nothing to run"
            assert seq.num_drafted <= seq.num_computed, "the draft has run tokens that did not come"
        if (going := self._pass) is not None:
            seq, size = going.item.seq, self.blocks.block_size
            assert seq in self.running, "a pass is of a sequence that does not run"
            assert 0 < going.rows <= seq.num_pending, "a pass has rows that its sequence has not"
            assert seq.num_pending > 1, "a pass is of a sequence that a decode may be chosen of"
            written = seq.block_table[seq.num_computed // size : self.blocks.blocks_for(seq.num_computed + going.rows)]
            assert not any(map(self.blocks.is_shared, written)), "others may use a block that a pass writes"
        for queue in (self.running, self.waiting):
            assert list(queue) == sorted(queue, key=_order), "a sequence is out of its place"
        for seq in self.waiting:
            assert not seq.block_table, "a waiting sequence holds blocks"
            assert not seq.num_computed, "a waiting sequence has computed tokens"

    def _schedule_decodes(self, chosen: list[Scheduled]) -> int:
        budget, index = self.max_batched_tokens - (self._pass.rows if self._pass else 0), 0
        while index < len(self.running) and budget:
            seq = self.running[index]
            # Victims come from the end, so no sequence that was chosen in this step can become one.
            if seq.num_pending == 1 and self._grow(seq):
                budget = self._choose(seq, budget, chosen)
            index += 1
        return budget

    def _prompts(self) -> Iterator[Sequence]:
        """Sequences with more than a token to compute, save that of a pass: those that run, then what can be admitted
        of the queue. The caller takes the next one only while it has room for it."""
        for seq in self.running:
            if seq.num_pending > 1 and not (self._pass and seq is self._pass.item.seq):
                yield seq
        while self.waiting and len(self.running) < self.max_running and self._admit(head := self.waiting[0]):
            yield head

    def _num_prompts(self, streams: int) -> int:
        """Sequences that wait for their next token beside so many in decode, and that a slot is for."""
        return min(len(self.running) + len(self.waiting), self.max_running) - streams

    def _fill(self, spare: int, chosen: list[Scheduled]) -> int:
        """Chooses tokens of prompts until the budget is spent; returns how many."""
        budget = spare
        prompts = self._prompts()
        while budget and (seq := next(prompts, None)) is not None:
            budget = self._choose(seq, budget, chosen)
        return spare - budget

    def _join(self, pace: Pace, streams: int, spare: int, chosen: list[Scheduled]) -> tuple[int, float]:
        """Chooses prompts that join the streams in the time that there is, or begins a pass; returns the tokens and the
        work that join."""
        seconds, joined, work = pace.allowed(streams, self._num_prompts(streams)), 0, 0.0
        if self._pass or not seconds:
            return 0, 0.0
        prompts = self._prompts()
        while spare > joined and (seq := next(prompts, None)) is not None:
            count, first = seq.num_pending, seq.num_computed
            takes = pace.joining(count, first)
            # One token that is left, as the rest is cached, is a row like those of the streams.
            if count > 1 and (takes > seconds or count > spare - joined):
                if not joined:
                    most = max(MOST_ROWS - streams, LEAST_ROWS)
                    self._pass = pace.begin(seq, seconds, min(spare, most))
                break
            self._choose(seq, count, chosen)
            joined, seconds = joined + count, seconds - min(takes, seconds)
            work += pace.work.joined(count, first + count / 2)
        return joined, work

    def _advance_pass(self, pace: Pace, going: PromptPass, streams: int, chosen: list[Scheduled]) -> None:
        """Chooses the step's part of a pass, and publishes what the pass has filled where it ends."""
        self.part = part = pace.part(going, streams, self._num_prompts(streams))
        if part.whole:
            self._pass = None
            chosen.append(part.item)
            self._publish(part.item.seq, part.item.seq.num_computed, going.rows)

    def _grow(self, seq: Sequence) -> bool:
        """A block for the sequence's next token, if need be by preempting; False if it was itself the newest."""
        if seq.num_computed < len(seq.block_table) * self.blocks.block_size:
            return True
        while not self.blocks.num_available:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        seq.block_table += self._allocate(1)
        return True

    def _allocate(self, count: int) -> list[int]:
        found = self.blocks.allocate(count)
        self.guesser.forget(found)
        return found

    def _queue(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_order)
        self.waiting_tokens += seq.num_tokens

    def _preempt(self, seq: Sequence) -> None:
        """Back to its place in the queue with all its tokens; what it had computed stays cached while there is room.

        Its full blocks are known by their hashes. The last one, if part-filled, is saved to the host tier at once.
        """
        self.running.remove(seq)
        host, size = self.blocks.host, self.blocks.block_size
        if host is not None:
            seq.num_swapped = seq.num_computed
            if (tail := seq.tail_hash(size)) is not None:
                host.save(seq.block_table[seq.num_swapped // size], tail)
        self._release(seq)
        self._queue(seq)
        self.preemptions += 1

    def _admit(self, seq: Sequence) -> bool:
        """Moves the head of the queue to `running` with blocks for all its tokens, if there are enough."""
        blocks, size = self.blocks, self.blocks.block_size
        hashes = seq.hashes(seq.reusable_tokens // size, size) if blocks.prefix_caching else []
        found = blocks.find_prefix(hashes)
        prefix = [block for block in found if block is not None]
        loads = {index: hashes[index] for index, block in enumerate(found) if block is None}
        missing = blocks.blocks_for(seq.num_tokens) - len(prefix)
        # A spare block for each that runs: who is admitted into the last block is preempted by the next that grows.
        if missing + len(self.running) > blocks.room_after(prefix):
            return False
        computed = len(found) * size
        if (tail := self._tail(seq, len(found))) is not None:
            loads[len(found)], computed = tail, seq.num_swapped
        blocks.hold(prefix)
        if blocks.host is not None:
            blocks.host.pin(loads.values())
        fresh = iter(self._allocate(missing))
        seq.block_table = [next(fresh) if block is None else block for block in found] + list(fresh)
        seq.num_computed = computed
        self.guesser.take_prefix(seq)
        if blocks.host is not None:
            blocks.host.load({digest: seq.block_table[index] for index, digest in loads.items()})
            self._publish(seq, 0, len(found) * size)
            self._drop_tail(seq)
        if seq.num_cached < 0:
            seq.num_cached = min(seq.num_computed, seq.prompt_len)
            self.prefix_queries += seq.prompt_len
            self.prefix_hits += seq.num_cached
            self.host_hits += len(loads) * size
        self.waiting.popleft()
        self.waiting_tokens -= seq.num_tokens
        insort(self.running, seq, key=_order)
        return True

    def _tail(self, seq: Sequence, found: int) -> bytes | None:
        """The hash of the part-filled block that follows `found` full ones, where the host tier has it."""
        host, size = self.blocks.host, self.blocks.block_size
        if host is None or seq.num_swapped // size != found or seq.num_swapped > seq.reusable_tokens:
            return None
        tail = seq.tail_hash(size)
        return tail if tail is not None and tail in host else None

    def _drop_tail(self, seq: Sequence) -> None:
        """Forgets the part-filled block of a sequence that was preempted: no other sequence asks for it."""
        tail = seq.tail_hash(self.blocks.block_size) if seq.num_swapped else None
        if tail is not None and self.blocks.host is not None:
            self.blocks.host.drop([tail])
        seq.num_swapped = 0

    def _choose(self, seq: Sequence, budget: int, chosen: list[Scheduled]) -> int:
        """Adds as many of a sequence's pending tokens as the budget allows; returns what is left of it."""
        count = min(budget, seq.num_pending)
        chosen.append(Scheduled(seq, count))
        self._publish(seq, seq.num_computed, count)
        return budget - count

    def _publish(self, seq: Sequence, first: int, count: int = 1) -> None:
        """Lets others share the blocks that `count` known tokens from `first` on fill."""
        size = self.blocks.block_size
        before, after = first // size, (first + count) // size
        if after > before and self.blocks.prefix_caching:
            hashes = seq.hashes(after, size)
            for index in range(before, after):
                self.blocks.publish(seq.block_table[index], hashes[index])

    def _release(self, seq: Sequence) -> list[int]:
        if self._pass and self._pass.item.seq is seq:
            self._pass = None
        self.guesser.settle(seq)
        freed = self.blocks.release(seq.block_table)
        seq.block_table = []
        seq.num_computed = seq.num_drafted = 0
        return freed
