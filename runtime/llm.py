"""The engine as a library: many prompts at once, in this process, without a server."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.draft_tokens import refuse_other_tokens
from plimsoll.checkpoint.sources import named, resolve
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.config import engine_config, field_of, spelled
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.messages import EngineRequest, FinishReason, TokenLogprobs, TokenOutput, Vocabulary
from plimsoll.runtime.output import OutputProcessor
from plimsoll.runtime.sampling_defaults import sampling_defaults
from plimsoll.runtime.vocabulary import vocabulary_of

log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
Message = dict[str, Any]


@dataclass
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    """Which of the n samples."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    """One per token, when asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or the token that ended it, when one did."""
    error: str | None = None
    """Why, when `finish_reason` is `error`."""

    @property
    def cumulative_logprob(self) -> float | None:
        """Log-probability of the whole answer, when log-probabilities were asked for."""
        return None if self.logprobs is None else sum(entry.chosen.logprob for entry in self.logprobs)


@dataclass
class RequestOutput:
    """A prompt and its n answers."""

    prompt: str | None
    """None when token ids were given."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """One per prompt token, the first None, when asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens of the first sample that came from the prefix cache."""


class LLM:
    """A model to call from Python. For one thread at a time.

        with LLM("hf://HuggingFaceTB/SmolLM2-135M-Instruct") as llm:
            print(llm.chat([{"role": "user", "content": "Hello"}])[0].outputs[0].text)

    Args:
        model: a path, `file://…` or `hf://org/name@revision`.
        options: fields of `EngineConfig`, such as `precision="bfloat16"` or `memory=8 * 2**30`.
            `tensor_parallel_size` is another name of `tensor`. `draft_model` may be an address as `model` is.

    Raises PlimsollError where an option is wrong, the checkpoint cannot be read or the budget does not close.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        with named("model"):
            path = resolve(str(model))
        config = engine_config(path, **options)
        checkpoint = open_checkpoint(path)
        self.tokenizer = load_tokenizer(checkpoint)
        self.generation_config = checkpoint.generation_config
        if config.draft_model is not None:
            with named("draft_model"):
                config = msgspec.structs.replace(config, draft_model=str(resolve(config.draft_model)))
        self._defaults, notices = sampling_defaults(checkpoint.generation_config)
        for notice in notices:
            log.warning(notice)
        ends = {*config.end_token_ids, *self.tokenizer.eos_token_ids}
        config = msgspec.structs.replace(config, end_token_ids=tuple(sorted(ends)))
        try:
            if config.draft_model is not None:
                refuse_other_tokens(self.tokenizer, open_checkpoint(Path(config.draft_model)))
            self._engine: Engine | None = Engine(config)
        except PlimsollError as error:
            error.field = spelled(field_of(config, error.field), options)
            raise
        self._requests = 0
        self._known: Vocabulary | None = None

    @property
    def engine(self) -> Engine:
        """Raises SpecError after `close`."""
        if self._engine is None:
            raise SpecError("is closed", field="LLM", fix="Make a new one")
        return self._engine

    def close(self) -> None:
        """Lets go of weights and cache, and ends the ranks."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continues each prompt, all side by side; answers come in the order of the prompts.

        Args:
            prompts: one text, one list of token ids, or a list of either.
            params: for all, or one for each; by default the checkpoint's own with 16 tokens.
            progress: draw a bar.

        Raises RequestError, before anything runs, for a prompt or parameters that cannot be run. What fails while
        running has `finish_reason` "error"; the others are not touched by it.
        """
        wanted = _as_list(prompts)
        chosen = self._each(params, len(wanted), max_tokens=16)
        tokenised = [self.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in wanted]
        results = [
            RequestOutput(
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=ids,
                outputs=[CompletionOutput(index, logprobs=None if p.logprobs is None else []) for index in range(p.n)],
            )
            for prompt, ids, p in zip(wanted, tokenised, chosen, strict=True)
        ]
        if any(params.grammar is not None or params.thought is not None for params in chosen):
            self.engine.learn(self._vocabulary())
        _Run(self, results, chosen, self._new_ids(len(results))).finish(progress)
        return results

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or several.

        Args:
            messages: dictionaries with `role` and `content`; or a list of such lists.
            params: for all, or one for each; by default the checkpoint's own, until the model ends its answer.
            template: more variables for the chat template, such as `enable_thinking`.

        Raises RequestError as `generate` does, ChatTemplateError where the template refuses the messages.
        """
        one = bool(messages) and isinstance(messages[0], dict)
        conversations = cast("list[Sequence[Message]]", [messages] if one else list(messages))
        chosen = self._each(params, len(conversations), max_tokens=None)
        prompts = [self.tokenizer.apply_chat_template(conversation, **template) for conversation in conversations]
        return self.generate(prompts, chosen, progress=progress)

    def logprobs(
        self, prompts: Prompt | Sequence[Prompt], *, top: int = 0, progress: bool = False
    ) -> list[list[TokenLogprobs | None]]:
        """What the model gives each token of each text, knowing the tokens before it.

        Args:
            top: how many of the likeliest alternatives to return at each position.

        Returns one entry a token, the first None.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=top)
        results = self.generate(prompts, params, progress=progress)
        for result in results:
            if result.outputs[0].error is not None:
                raise SpecError(result.outputs[0].error, field="prompts")
        return [result.prompt_logprobs or [] for result in results]

    def default_params(self, max_tokens: int | None = 16) -> SamplingParams:
        """The sampling the checkpoint's generation config recommends."""
        return SamplingParams(max_tokens=max_tokens, **self._defaults)  # type: ignore[arg-type]

    def _vocabulary(self) -> Vocabulary:
        if self._known is None:
            self._known = vocabulary_of(self.tokenizer)
        return self._known

    def _each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int, max_tokens: int | None
    ) -> list[SamplingParams]:
        if params is None:
            params = self.default_params(max_tokens)
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise SpecError(f"{count} prompts need as many", field="params", value=len(params))
        return list(params)

    def _new_ids(self, count: int) -> range:
        first = self._requests
        self._requests += count
        return range(first, first + count)


class _Run:
    """One call of `generate`: feeds the engine no more than it can queue, and gathers what comes back."""

    def __init__(
        self, llm: LLM, results: Sequence[RequestOutput], params: Sequence[SamplingParams], ids: Iterable[int]
    ) -> None:
        self.engine = llm.engine
        self.todo: deque[EngineRequest] = deque()
        self.places: dict[str, tuple[RequestOutput, CompletionOutput, OutputProcessor, EngineRequest]] = {}
        now = time.monotonic()
        for result, wish, number in zip(results, params, ids, strict=True):
            for answer in result.outputs:
                seed = None if wish.seed is None else wish.seed + answer.index
                scored = wish.prompt_logprobs if answer.index == 0 else None
                request = EngineRequest(
                    request_id=f"{number}-{answer.index}",
                    prompt_token_ids=result.prompt_token_ids,
                    params=msgspec.structs.replace(wish, n=1, seed=seed, prompt_logprobs=scored),
                    arrival=now,
                )
                self.engine.validate(request)
                self.todo.append(request)
                self.places[request.request_id] = (result, answer, OutputProcessor(llm.tokenizer, wish), request)

    def finish(self, progress: bool) -> None:
        """Runs until every answer is complete; an interruption leaves nothing behind in the engine."""
        total = len(self.places)
        bar = _bar(total) if progress else None
        try:
            with bar or contextlib.nullcontext():
                while self.places:
                    self._feed()
                    for output in self.engine.step():
                        self._take(output)
                    if bar is not None:
                        bar.update(bar.task_ids[0], completed=total - len(self.places))
        finally:
            self.engine.abort(self.places)
            while self.engine.has_work:
                self.engine.step()
            self.engine.take_times()

    def _feed(self) -> None:
        scheduler = self.engine.scheduler
        while self.todo and len(scheduler.running) + len(scheduler.waiting) < 2 * scheduler.max_running:
            self.engine.add(self.todo.popleft())

    def _take(self, output: TokenOutput) -> None:
        request_id = output.request_id
        if request_id not in self.places:
            return
        result, answer, processor, request = self.places[request_id]
        if output.busy:
            self.todo.append(request)
            return
        if answer.index == 0 and output.prompt_logprobs is not None:
            result.prompt_logprobs = output.prompt_logprobs
        result.num_cached_tokens += output.num_cached_tokens if answer.index == 0 else 0
        delta = processor.add(output)
        answer.text += delta.text
        answer.token_ids += delta.token_ids
        if answer.logprobs is not None:
            answer.logprobs += delta.logprobs or []
        if delta.finish_reason is None:
            return
        answer.finish_reason = delta.finish_reason
        # The model's own end is no stop of the request's.
        if isinstance(delta.stop_reason, str) or delta.stop_reason in request.params.stop_token_ids:
            answer.stop_reason = delta.stop_reason
        answer.error = output.error
        del self.places[request_id]
        if output.finish_reason is None:
            self.engine.abort([request_id])


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as many. An empty list is no prompts."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and isinstance(items[0], int):
        return [cast("list[int]", items)]
    return cast("list[Prompt]", items)


def _bar(total: int) -> Progress:
    columns = (TextColumn("answers", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns)
    bar.add_task("answers", total=total)
    return bar
