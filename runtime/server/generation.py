"""From prompts to text: the sequences of one request, run side by side in the engine."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.transport.client import EngineBusy, EngineDead
from plimsoll.runtime.messages import EngineRequest, TokenLogprobs
from plimsoll.runtime.output import OutputProcessor, TextDelta
from plimsoll.runtime.server.errors import ApiError, bad_request, engine_dead, queue_full, shutting_down
from plimsoll.runtime.server.responses import PromptDetails, Usage
from plimsoll.runtime.server.serving import Serving


@dataclass
class Answer:
    """One sequence, as far as it has got."""

    index: int
    request: EngineRequest
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    token_ids: list[int] = field(default_factory=list)
    """Of the answer, the token that ended it included."""
    generated: int = 0
    """Tokens the engine generated, the one that ended the answer included."""
    thought: int = 0
    """Of these, tokens of thoughts."""
    cached: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    """As `stop_reason`, and the model's own end of text too."""
    ending: TokenLogprobs | None = None
    """Of the token that ended the answer and is not in its text, where it is to be shown."""
    first: float | None = None
    """Seconds from arrival to the first token."""

    def news(self, delta: TextDelta) -> list[TokenLogprobs]:
        """The log-probabilities to show for `delta`."""
        found = delta.logprobs or []
        return found if delta.finish_reason is None or self.ending is None else [*found, self.ending]

    def shown_logprobs(self) -> list[TokenLogprobs]:
        """The log-probabilities to show for the whole answer."""
        return self.logprobs if self.ending is None else [*self.logprobs, self.ending]

    def mean_logprob(self) -> float:
        """Mean log-probability of a token; what best_of ranks by."""
        return sum(entry.chosen.logprob for entry in self.logprobs) / max(1, len(self.logprobs))


class Generation:
    """Runs one sequence for each (prompt, params) pair; leaving it for any reason ends them all in the engine.

    While the engine is started again, sequences wait for it. Those that an engine took along when it died are given to
    the next one, once: a request that kills engines must not kill them for ever.

    Args:
        work: the samples of each prompt side by side.
        samples: how many each prompt has.
        n: how many of them were asked for.
        shown: special tokens that stay in the text.
        ends: show the log-probabilities of an end-of-text token too.
    """

    def __init__(
        self,
        serving: Serving,
        request_id: str,
        work: Sequence[tuple[list[int], SamplingParams]],
        *,
        samples: int,
        n: int,
        shown: frozenset[int] = frozenset(),
        ends: bool = False,
    ) -> None:
        now = time.monotonic()
        self.serving, self.samples, self.n = serving, samples, n
        self._shown, self._ends = shown, ends
        self._spare = True
        """Whether the sequences may be given to an engine once more."""
        self.sent = False
        """Set by the caller once the client has got something of an answer, which cannot be taken back."""
        self._repeating = False
        self.answers = [
            Answer(
                index,
                EngineRequest(request_id=f"{request_id}-{index}", prompt_token_ids=ids, params=params, arrival=now),
            )
            for index, (ids, params) in enumerate(work)
        ]

    async def deltas(self) -> AsyncGenerator[tuple[Answer, TextDelta]]:
        """What each sequence gained, as it comes; the answers are kept up to date.

        Should the engine die before `sent` is set, `answers` become new ones, and everything comes again from its
        beginning.

        Raises:
            ApiError: 429 when the queue is full, 503 when the engine died or does not come back, 400 or 500 with the
                engine's own words.
        """
        while True:
            await self.serving.await_engine(len(self.answers))
            try:
                async with contextlib.aclosing(self._deltas()) as pairs:
                    async for pair in pairs:
                        yield pair
                return
            except EngineDead:
                # What was on its way to the client when the engine died may have been sent since.
                if not self._repeating or self.sent:
                    raise (shutting_down() if self.serving.gate.closed else engine_dead()) from None
            self._spare = self._repeating = False
            self.answers = [Answer(answer.index, answer.request) for answer in self.answers]

    async def _deltas(self) -> AsyncGenerator[tuple[Answer, TextDelta]]:
        if len(self.answers) == 1:
            async with contextlib.aclosing(self._one(self.answers[0])) as deltas:
                async for delta in deltas:
                    yield self.answers[0], delta
            return
        async with contextlib.aclosing(self._many()) as pairs:
            async for pair in pairs:
                yield pair

    async def finish(self) -> list[Answer]:
        """Runs to the end and keeps the text and the log-probabilities of every answer."""
        async with contextlib.aclosing(self.deltas()) as deltas:
            async for answer, delta in deltas:
                answer.text.append(delta.text)
                if delta.logprobs:
                    answer.logprobs.extend(delta.logprobs)
        return self.answers

    async def _many(self) -> AsyncGenerator[tuple[Answer, TextDelta]]:
        queue: asyncio.Queue[tuple[Answer, TextDelta] | Exception | None] = asyncio.Queue()

        async def pump(answer: Answer) -> None:
            try:
                async with contextlib.aclosing(self._one(answer)) as deltas:
                    async for delta in deltas:
                        queue.put_nowait((answer, delta))
            except Exception as error:
                queue.put_nowait(error)
            else:
                queue.put_nowait(None)

        tasks = [asyncio.create_task(pump(answer)) for answer in self.answers]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, answer: Answer) -> AsyncGenerator[TextDelta]:
        request, metrics, engine = answer.request, self.serving.metrics, self.serving.engine
        processor = OutputProcessor(self.serving.tokenizer, request.params, self._shown)
        last, reason = request.arrival, "abort"
        try:
            async with contextlib.aclosing(engine.generate(request)) as outputs:
                async for output in outputs:
                    now = time.monotonic()
                    if output.finish_reason in ("error", "rejected", "abort"):
                        reason = "error"
                        raise _failure(output.finish_reason, output.error)
                    if answer.first is None:
                        answer.first = now - request.arrival
                        answer.cached = output.num_cached_tokens
                        answer.prompt_logprobs = output.prompt_logprobs
                        metrics.time_to_first_token.observe(answer.first)
                    else:
                        metrics.inter_token_latency.observe(now - last)
                    last = now
                    delta = processor.add(output)
                    answer.generated += delta.num_tokens
                    answer.token_ids += delta.token_ids
                    if delta.finish_reason is not None:
                        if isinstance(delta.stop_reason, int) and delta.num_tokens > len(delta.token_ids):
                            answer.token_ids.append(delta.stop_reason)
                        reason = answer.finish_reason = delta.finish_reason
                        answer.matched_stop = delta.stop_reason
                        if self._ends:
                            answer.ending = output.stop_logprobs
                        # The model's own end is no stop of the request's.
                        if isinstance(delta.stop_reason, str) or delta.stop_reason in request.params.stop_token_ids:
                            answer.stop_reason = delta.stop_reason
                    yield delta
                    if delta.finish_reason is not None:
                        return
        except EngineBusy as error:
            reason = "error"
            metrics.rejected("queue_full")
            raise queue_full(str(error)) from None
        except EngineDead:
            reason = "error"
            self._repeating = self._spare and not self.sent and not self.serving.gate.closed
            raise
        finally:
            # What is given to another engine has not ended, nor have its siblings.
            if not self._repeating:
                total = time.monotonic() - request.arrival
                prompt, limit = len(request.prompt_token_ids), request.params.max_tokens
                metrics.finished(reason, prompt, answer.generated, limit, answer.first, total)
                if answer.index % self.samples == 0:
                    metrics.prompted(self.n)

    def usage(self) -> Usage:
        """Tokens so far; each prompt counts once, however many samples it has."""
        asked = self.answers[:: self.samples]
        prompt = sum(len(answer.request.prompt_token_ids) for answer in asked)
        generated = sum(answer.generated for answer in self.answers)
        cached = PromptDetails(sum(answer.cached for answer in asked))
        return Usage(prompt, generated, prompt + generated, cached)


def _failure(reason: str, words: str | None) -> ApiError:
    if reason == "rejected":
        return bad_request(words or "The engine cannot run this request.", code="rejected")
    if reason == "abort":
        return engine_dead()
    return ApiError(500, words or "The engine failed on this request.", code="engine_error")
