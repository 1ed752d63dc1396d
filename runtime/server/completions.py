"""POST /v1/completions: prompts as text or token ids, many at once, with echo and best_of."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from plimsoll.runtime.messages import TokenLogprobs
from plimsoll.runtime.output import TextDelta
from plimsoll.runtime.server.generation import Answer, Generation
from plimsoll.runtime.server.offsets import Offsets, prompt_offsets
from plimsoll.runtime.server.params import answer_length, check_queue, sampling_params
from plimsoll.runtime.server.protocol import CompletionRequest
from plimsoll.runtime.server.responses import Completion, CompletionChoice, CompletionLogprobs
from plimsoll.runtime.server.serving import Serving
from plimsoll.runtime.server.streaming import DONE, MARKER, Frame, event
from plimsoll.runtime.server.token_ids import TokenIds


class Completions:
    """One completion request: either `complete` or `events`.

    Args:
        prompts: text, where it is echoed, and token ids of each.

    Raises:
        ApiError: something that can be refused before the engine is asked.
    """

    def __init__(
        self, serving: Serving, request: CompletionRequest, prompts: list[tuple[str, list[int]]], request_id: str
    ) -> None:
        self.serving, self.request, self.request_id = serving, request, request_id
        self.prompts = prompts
        self.texts = serving.texts.by_id if request.return_tokens_as_token_ids else serving.texts
        info = serving.known_engine()
        self.samples = request.best_of or request.n
        logprobs = request.logprobs
        if self.samples > request.n and logprobs is None:
            # Ranking needs each token's log-probability, asked for or not.
            logprobs = 0
        work = []
        for _, ids in self.prompts:
            max_tokens = answer_length(request, len(ids), info.model_len, strict=serving.config.strict)
            work += [
                (ids, sampling_params(request, max_tokens, index, logprobs=logprobs, defaults=serving.defaults))
                for index in range(self.samples)
            ]
        check_queue(work, self.samples, "best_of" if request.best_of else "n", serving.engine.config)
        self.generation = Generation(
            serving, self.request_id, work, samples=self.samples, n=request.n, ends=request.return_token_ids
        )
        self.head = serving.head(f"cmpl-{self.request_id}", info)

    async def complete(self) -> Completion:
        """The whole answer, once every choice of every prompt is complete."""
        request, choices = self.request, list[CompletionChoice]()
        answers = await self.generation.finish()
        for number, (text, _) in enumerate(self.prompts):
            group = answers[number * self.samples : (number + 1) * self.samples]
            if self.samples > request.n:
                group = sorted(group, key=Answer.mean_logprob, reverse=True)[: request.n]
            for answer in group:
                before = text if request.echo else ""
                written = "" if request.max_tokens == 0 else "".join(answer.text)
                choices.append(
                    CompletionChoice(
                        index=len(choices),
                        text=before + written,
                        logprobs=self._logprobs(answer),
                        finish_reason="length" if request.max_tokens == 0 else answer.finish_reason,  # type: ignore[arg-type]
                        stop_reason=answer.stop_reason,
                        matched_stop=answer.matched_stop,
                        prompt_logprobs=self.serving.texts.prompt(answer.prompt_logprobs)
                        if request.prompt_logprobs is not None
                        else None,
                        **TokenIds(request.return_token_ids).whole(answer),
                    )
                )
        return Completion(**self.head, choices=choices, usage=self._usage())

    def _usage(self) -> Any:
        usage = self.generation.usage()
        if self.request.max_tokens == 0:
            usage.total_tokens, usage.completion_tokens = usage.prompt_tokens, 0
        return usage

    def _prompt_logprobs(self, answer: Answer) -> CompletionLogprobs:
        text, ids = self._prompt_of(answer)
        entries = answer.prompt_logprobs or [None] * len(ids)
        return self.texts.completion(entries, ids, prompt_offsets(text, ids, self.serving.tokenizer))

    def _prompt_of(self, answer: Answer) -> tuple[str, list[int]]:
        return self.prompts[answer.index // self.samples]

    def _written(self, answer: Answer) -> Offsets:
        """Counts through what is written: after the prompt where that is part of the text."""
        return Offsets(len(self._prompt_of(answer)[0]) if self.request.echo else 0)

    def _logprobs(self, answer: Answer) -> CompletionLogprobs | None:
        if self.request.logprobs is None:
            return None
        found = CompletionLogprobs([], [], [], [])
        if self.request.echo:
            found = self._prompt_logprobs(answer)
        if self.request.max_tokens:
            found.extend(self._written_logprobs(answer.shown_logprobs(), self._written(answer)))
        return found

    def _written_logprobs(self, entries: list[TokenLogprobs], counted: Offsets) -> CompletionLogprobs:
        tokenizer = self.serving.tokenizer
        hidden = tokenizer.special_ids if self.request.skip_special_tokens else frozenset[int]()
        ids = [entry.chosen.token_id for entry in entries]
        offsets = [counted.add(b"" if token in hidden else tokenizer.token_bytes(token)) for token in ids]
        return self.texts.completion(entries, ids, offsets)

    async def events(self) -> AsyncGenerator[bytes]:
        """Server-sent events: the prompt where it is echoed, the text as it comes, the reason it ended, the usage."""
        request = self.request
        options = request.stream_options
        usage = options is not None and options.include_usage
        counted = options is not None and usage and options.continuous_usage_stats
        token_ids = TokenIds(request.return_token_ids)
        running = counted or token_ids.wanted
        head = {**self.head, "object": "text_completion"} | ({"usage": None} if usage else {})
        frames: dict[int, Frame] = {}
        written: dict[int, Offsets] = {}

        def chunk(answer: Answer, text: str, logprobs: CompletionLogprobs | None = None) -> dict[str, Any]:
            choice = {"index": answer.index, "text": text, "logprobs": logprobs, "finish_reason": None}
            if token_ids.wanted and text is not MARKER:
                choice |= token_ids.prompt(answer) | token_ids.more(answer)
            used = {"usage": self._usage()} if counted else {}
            return {**head, **used, "choices": [choice]}

        def encoded(answer: Answer, delta: TextDelta) -> bytes:
            data = b""
            frame = frames.get(answer.index)
            if frame is None:
                frame = frames[answer.index] = Frame(chunk(answer, MARKER))
                written[answer.index] = self._written(answer)
                if request.echo:
                    found = self._prompt_logprobs(answer) if request.logprobs is not None else None
                    data = event(chunk(answer, self._prompt_of(answer)[0], found))
            if request.max_tokens:
                if news := answer.news(delta):
                    found = self._written_logprobs(news, written[answer.index])
                    data += event(chunk(answer, delta.text, found))
                elif delta.text:
                    data += event(chunk(answer, delta.text)) if running else frame.event(delta.text)
            if delta.finish_reason is not None:
                last = chunk(answer, "")
                reason = answer.finish_reason if request.max_tokens else "length"
                last["choices"][0] |= {"finish_reason": reason, "stop_reason": answer.stop_reason}
                last["choices"][0]["matched_stop"] = answer.matched_stop
                data += event(last)
            return data

        async with contextlib.aclosing(self.generation.deltas()) as deltas:
            async for answer, delta in deltas:
                if data := encoded(answer, delta):
                    self.generation.sent = True
                    yield data
        tail = event({**head, "choices": [], "usage": self._usage()}) if usage else b""
        yield tail + DONE
