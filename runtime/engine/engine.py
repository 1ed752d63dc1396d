"""One model, many requests: the loop body that turns waiting prompts into tokens, one step at a time."""

import contextlib
import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import msgspec
import torch

from plimsoll.api.errors import PlimsollError, message_of
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.scheduler import rejection
from plimsoll.runtime.engine.core.sequence import Sequence
from plimsoll.runtime.engine.core.thought import Spelling
from plimsoll.runtime.engine.group.leader import NodeRanks, OnWaiting
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.worker.books import new_pace, new_reader, new_scheduler
from plimsoll.runtime.engine.worker.loading import Loaded, OnProgress, Prepared, load, prepare
from plimsoll.runtime.engine.worker.logprobs import NotANumberError, extend_prompt_logprobs
from plimsoll.runtime.engine.worker.rank_progress import RankProgress
from plimsoll.runtime.engine.worker.ranks import Ranks
from plimsoll.runtime.engine.worker.runner import StepResult
from plimsoll.runtime.engine.worker.sampler import SampledToken, Sampler, all_plain
from plimsoll.runtime.engine.worker.warm_up import measure_layers
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.messages import EngineReady, EngineRequest, EngineStats, FinishReason, RequestTimes, TokenOutput

if TYPE_CHECKING:
    from plimsoll.runtime.engine.worker.grammars import Grammars
    from plimsoll.runtime.messages import Vocabulary

logger = logging.getLogger(__name__)


class Engine:
    """Loads a model and generates for the requests that are added. Not for several threads.

    Its owner calls `step` while `has_work`, and passes the outputs on. A request that cannot be run, or
    whose sampling fails, ends alone; when a whole step fails, the requests of that step end and the rest go on.

    Args:
        config: what to load, and how much of the machine it may take.
        on_progress: called with how far loading is.
        membership: this machine's place in a group over several; it leads. None runs all ranks here.
        on_waiting: called with the names of machines that have not joined, again every second while there are any.

    Raises PlimsollError where the checkpoint, the budget or the options forbid a start.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: OnProgress | None = None,
        membership: Membership | None = None,
        on_waiting: OnWaiting | None = None,
    ) -> None:
        self.config = config = config if membership is not None else msgspec.structs.replace(config, nodes=1)
        self._ranks: Ranks | NodeRanks | None = None
        self._grammars: Grammars | None = None
        prepared = prepare(config)
        size = prepared.plan.tensor
        if membership is not None:
            digest = prepared.checkpoint.digest()
            self._ranks = NodeRanks(prepared.of_followers(), prepared.plan.rank_bytes, membership, digest, on_waiting)
        elif size > 1:
            self._ranks = Ranks(prepared.of_followers(), size, prepared.threads, prepared.kernels.device)
        try:
            self._load(prepared, on_progress)
        except BaseException:
            self.close()
            raise

    def _load(self, prepared: Prepared, on_progress: OnProgress | None) -> None:
        ranks, progress = self._ranks, None
        if ranks is not None and on_progress is not None:
            on_progress = progress = RankProgress(on_progress, ranks.loads)
        with progress or contextlib.nullcontext():
            try:
                loaded = load(prepared, on_progress, None if ranks is None else ranks.form())
            except GroupError:
                if ranks is not None:
                    ranks.wait_ready()
                raise
            others = [] if ranks is None else ranks.wait_ready()
        loaded.check_others(others)
        self.facts = loaded.facts
        self.runner = loaded.runner
        self.draft = loaded.draft
        self.sampler = Sampler(loaded.facts.vocab_size, loaded.runner.decoder.kernels.draw)
        self._copy_times, self._pace = loaded.copy_times(), new_pace(self.config, loaded)
        self._build(loaded)
        with loaded.clock.phase("warmup"):
            self._warm_up()
            if self._pace is not None:
                measure_layers(self.runner, self._pace, min(loaded.plan.max_batched_tokens, loaded.plan.model_len))
        self.ready: EngineReady = loaded.ready(others)
        if isinstance(ranks, NodeRanks):
            ranks.serves()
        self._build(loaded)

    def _build(self, loaded: Loaded) -> None:
        """Fresh books: nothing queued, nothing cached, counters at zero."""
        self.scheduler = new_scheduler(self.config, loaded, self._copy_times, self._pace)
        self._reader = new_reader(self.config, loaded)
        self._sequences: dict[str, Sequence] = {}
        self._ready_outputs: list[TokenOutput] = []
        self._times: list[RequestTimes] = []
        self._stats = EngineStats(blocks_total=loaded.runner.cache.num_blocks)

    def _warm_up(self) -> None:
        """Generates tokens, of which a draft guesses some, so that being ready means that it works, and that the pace
        knows what a step of a stream takes."""
        params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
        self.add(EngineRequest(request_id="", prompt_token_ids=[0], params=params, arrival=time.monotonic()))
        while self.has_work:
            for output in self.step():
                if output.error is not None:
                    raise PlimsollError(
                        f"the model cannot generate: {output.error}", field="model", value=self.config.model
                    )

    def check(self) -> None:
        """Raises GroupError where a rank of this engine is gone: it cannot go on."""
        if self._ranks is not None:
            self._ranks.check()

    @property
    def leaving(self) -> list[str]:
        """Names of other machines of the group that are about to stop, and wait for the group's end."""
        return self._ranks.leaving if isinstance(self._ranks, NodeRanks) else []

    def learn(self, vocabulary: "Vocabulary") -> None:
        """Takes the tokenizer's vocabulary, which grammars and budgets of thoughts need. A second one is ignored."""
        if self._grammars is None:
            from plimsoll.runtime.engine.worker.grammars import Grammars

            self._grammars = Grammars(vocabulary, self.facts.vocab_size, self._reader.eos_token_ids)
            self._reader.spelling = Spelling(vocabulary)

    def close(self) -> None:
        """Ends the other ranks, where there are any."""
        if self._grammars is not None:
            self._grammars.close()
        if self._ranks is not None:
            self._ranks.close()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or return anything."""
        return bool(self._sequences or self._ready_outputs)

    @property
    def progress(self) -> int:
        """Layers, heads and turns of the loop done so far. Any thread may ask."""
        drafted = 0 if self.draft is None else self.draft.runner.decoder.done
        return self.runner.decoder.done + drafted + self._stats.tick

    @property
    def stats(self) -> EngineStats:
        """Counters and gauges of now; the same object until the engine starts again."""
        stats = self._stats
        self.scheduler.count(stats)
        stats.waiting += len(self._grammars.compiling) if self._grammars else 0
        if isinstance(self._ranks, NodeRanks):
            stats.peaks = self._ranks.peaks()
        # Asking takes a while: not between two steps.
        if not self.has_work and self.runner.device.type == "cuda":
            stats.device_peak = torch.cuda.max_memory_reserved(self.runner.device)
        return stats

    def add(self, request: EngineRequest) -> None:
        """Queues a request. One that cannot be run comes back from the next `step` as `rejected`, with the reason."""
        try:
            if request.request_id in self._sequences:
                raise PlimsollError("a request of this id is running", field="request_id", value=request.request_id)
            seq = self._reader.read(request)
            if seq.params.grammar is None:
                self.scheduler.add(seq)
            elif self._grammars is None:
                raise PlimsollError("this engine was given no vocabulary", field="grammar")
            else:
                self._grammars.compile(seq, self.config.max_queued_requests)
        except Exception as error:
            self._ready_outputs.append(rejection(request.request_id, error))
            return
        self._sequences[seq.request_id] = seq

    def validate(self, request: EngineRequest) -> None:
        """Raises RequestError for what `add` would reject under any load."""
        self._reader.check(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests at once and frees their blocks; ids that are not known (any more) are ignored."""
        for request_id in request_ids:
            seq = self._sequences.get(request_id)
            if seq is not None:
                self._end(seq, TokenOutput(request_id=request_id), "abort", self._ready_outputs)

    def step(self) -> list[TokenOutput]:
        """Runs one step, if there is anything to run; returns what is new for each request."""
        outputs, self._ready_outputs = self._ready_outputs, []
        self._stats.tick += 1
        if self._grammars is not None and self._grammars.compiling:
            self._queue_compiled(self._grammars, outputs)
        chosen = self.scheduler.schedule()
        self._stats.last_step_tokens = self._stats.last_step_counted = 0
        if not chosen:
            return outputs
        self._stats.steps += 1
        started = time.monotonic()
        part = self.scheduler.part
        for item in chosen if part is None else (*chosen, part.item):
            item.seq.first_scheduled = item.seq.first_scheduled or started
        rows = [item.seq.row for item in chosen if item.due]
        if self._grammars is not None:
            self._grammars.begin_masks([row.constraint for row in rows])
        copies = self.scheduler.take_copies()
        try:
            if self.draft is not None:
                chosen = self.draft.guess(chosen)
            self._stats.last_step_tokens = sum(item.num_rows for item in chosen)
            due_alone = all(item.seq.prompt_logprobs is None for item in chosen)
            result = self.runner.step(chosen, self.runner.spread and all_plain(rows), copies, part, due_alone)
        except Exception as error:
            if self._ranks is not None:
                # The others may have done more of this step, or less: the group starts again.
                self.check()
                raise GroupError(f"a step failed: {message_of(error)}") from error
            self.scheduler.distrust_copies(copies)
            self._fail_step(chosen if part is None or part.whole else [*chosen, part.item], error, outputs)
        else:
            self._advance(chosen, result, outputs)
            if not copies:
                self.scheduler.took(time.monotonic() - started, result.apart)
        return outputs

    def take_times(self) -> list[RequestTimes]:
        """Clocks of the requests that ended since the last call."""
        times, self._times = self._times, []
        return times

    def check_integrity(self) -> None:
        """Raises AssertionError where the books of engine, scheduler and block manager differ."""
        self.scheduler.check_integrity()
        compiling = self._grammars.compiling if self._grammars else ()
        known = {seq.request_id: seq for seq in (*self.scheduler, *compiling)}
        assert known == self._sequences, "a request is lost or left behind"
        if not self._sequences:
            blocks = self.scheduler.blocks
            assert blocks.num_available == blocks.num_blocks, "idle, and a block is neither free nor cached"

    def _queue_compiled(self, grammars: "Grammars", outputs: list[TokenOutput]) -> None:
        """Queues the requests whose grammars are compiled. With nothing else to do it waits for them a little."""
        idle = not self.scheduler.running and not self.scheduler.waiting and not outputs
        for seq, error in grammars.ready(wait=idle):
            try:
                if error is not None:
                    raise error
                self.scheduler.add(seq)
            except Exception as refused:
                del self._sequences[seq.request_id]
                outputs.append(rejection(seq.request_id, refused))

    def _advance(self, chosen: list[Scheduled], result: StepResult, outputs: list[TokenOutput]) -> None:
        """Books what the step computed: prompt log-probabilities, then one token for each row that is due one."""
        failed: dict[Sequence, str] = {}
        wiped: set[Sequence] = set()
        for index, item in enumerate(chosen):
            seq = item.seq
            logprobs = seq.prompt_logprobs
            if logprobs is not None and len(logprobs) < seq.prompt_len:
                try:
                    extend_prompt_logprobs(seq, result.prompt_logits(index))
                except NotANumberError as error:
                    failed[seq] = error.message
                    self.scheduler.distrust(seq, 0)
                    wiped.add(seq)
                except Exception as error:
                    logger.exception("prompt log-probabilities of request %s failed", seq.request_id)
                    failed[seq] = message_of(error)
            seq.num_computed += item.num_new_tokens
        for seq, reason in failed.items():
            self._fail(seq, reason, outputs, wipe=seq in wiped)
        due: list[tuple[Scheduled, int]] = []
        rows = []
        for row, (index, guess) in enumerate(result.sampled):
            seq = chosen[index].seq
            if seq in failed:
                continue
            if not seq.max_tokens:
                # The last token's logits are not used, but its keys and values may be no numbers.
                sound = result.has_number(row)
                if not sound:
                    self.scheduler.distrust(seq, 0)
                freed = self._end(seq, self._output(seq), "length", outputs)
                if freed and not sound:
                    self.runner.clear_blocks(freed)
                continue
            due.append((chosen[index], guess))
            rows.append(row)
        if not due:
            return
        if self._grammars is not None:
            self._grammars.finish_masks()
        if result.best is not None:
            tokens = self.sampler.take(result.best, rows)
        else:
            logits = result.logits if len(rows) == len(result.sampled) else result.logits[rows]
            tokens = self.sampler.sample_apart(logits, [item.seq.row.after(guess) for item, guess in due])
        now = time.monotonic()
        # Once a token is not what was guessed, or ends the answer, what comes after it is of another text.
        over: set[Sequence] = set()
        for row, (item, guess), sampled in zip(rows, due, tokens, strict=True):
            seq = item.seq
            if seq in over:
                continue
            over.add(seq)
            if sampled.error is None:
                goes_on = self._append(seq, sampled, now, outputs)
                if item.guesses and self._was_right(item, guess, goes_on):
                    over.remove(seq)
            elif result.is_finite(row):
                self._fail(seq, sampled.error, outputs, rejected=sampled.rejected)
            else:
                # Not a number, and its blocks may hold such values too: no other sequence may reuse them.
                self.scheduler.distrust(seq, 0)
                self._fail(seq, sampled.error, outputs, wipe=True)

    def _was_right(self, item: Scheduled, guess: int, goes_on: bool) -> bool:
        """Whether guess number `guess` is the token that was just appended: then the row after it counts too."""
        seq, guesses = item.seq, item.guesses
        right = goes_on and guess < len(guesses) and guesses[guess] == seq.token_ids[-1]
        if right:
            self.scheduler.accept(seq)
            self._stats.guesses_kept += 1
        elif seq.payoff is not None:
            self._stats.guesses += len(guesses)
            seq.payoff.judge(len(guesses), guess)
            self.scheduler.guesser.settle(seq)
        return right

    def _append(self, seq: Sequence, sampled: SampledToken, now: float, outputs: list[TokenOutput]) -> bool:
        """Adds a token to the answer, or ends it; returns whether it goes on."""
        output = self._output(seq)
        if seq.first_token is None:
            seq.first_token = now
            self._stats.prompt_tokens += seq.prompt_len
            self._stats.last_step_counted += seq.prompt_len - max(0, seq.num_cached)
        reason: FinishReason | None = "stop"
        if not sampled.ended:
            self._stats.generation_tokens += 1
            self._stats.last_step_counted += 1
            reason = seq.take(sampled.token_id, sampled.logprobs, output)
        if reason is None:
            outputs.append(output)
            return True
        self._end(seq, output, reason, outputs)
        return False

    def _output(self, seq: Sequence) -> TokenOutput:
        """An empty output; the first of a request carries what is known about its prompt."""
        output = TokenOutput(request_id=seq.request_id)
        if seq.first_token is None:
            output.num_cached_tokens = seq.num_cached
            output.prompt_logprobs = seq.prompt_logprobs
        return output

    def _fail_step(self, chosen: Items[Scheduled], error: Exception, outputs: list[TokenOutput]) -> None:
        """The forward pass failed: what it was to write cannot be trusted, so its requests end and nothing is kept."""
        logger.error("a step of %d requests failed", len(chosen), exc_info=error)
        for item in chosen:
            self.scheduler.distrust(item.seq, item.seq.num_computed)
            self._fail(item.seq, f"the step failed: {message_of(error)}", outputs, wipe=True)

    def _fail(
        self, seq: Sequence, why: str, outputs: list[TokenOutput], *, rejected: bool = False, wipe: bool = False
    ) -> None:
        reason: FinishReason = "rejected" if rejected else "error"
        freed = self._end(seq, TokenOutput(request_id=seq.request_id, error=why), reason, outputs)
        if wipe and freed:
            self.runner.clear_blocks(freed)

    def _end(self, seq: Sequence, output: TokenOutput, reason: FinishReason, outputs: list[TokenOutput]) -> list[int]:
        """The request's last output; its blocks go back. Returns those that hold nothing any more."""
        del self._sequences[seq.request_id]
        compiling = self._grammars is not None and self._grammars.drop(seq)
        freed = [] if compiling else self.scheduler.finish(seq)
        self._times.append(seq.times(time.monotonic()))
        output.finish_reason = reason
        outputs.append(output)
        return freed
