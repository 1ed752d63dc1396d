"""From the bytes of a request to token ids. Runs in a forked process, where time and memory are bounded.

Templates and normalizers are programs of the checkpoint's author, and what they are applied to is a stranger's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.server.answer_grammar import answer_grammar
from plimsoll.runtime.server.constraints import constraint_of
from plimsoll.runtime.server.counts import MESSAGES, TOOLS, Most, check_counts
from plimsoll.runtime.server.errors import ApiError, invalid_value
from plimsoll.runtime.server.messages_api import request as messages_api
from plimsoll.runtime.server.messages_api.request import CountRequest, MessagesRequest
from plimsoll.runtime.server.params import check_limits, check_model
from plimsoll.runtime.server.parse import parse
from plimsoll.runtime.server.prompts import Reader, echoed
from plimsoll.runtime.server.protocol import CONSTRAINTS, ChatCompletionRequest, CompletionRequest, Sampling
from plimsoll.runtime.server.responses_api import request as responses_api
from plimsoll.runtime.server.responses_api.request import ResponsesRequest
from plimsoll.runtime.server.thought_budget import thought_budget
from plimsoll.runtime.server.tokenizing import DetokenizeRequest, TokenizeRequest

Route = Literal["chat", "text", "responses", "messages", "count", "tokenize", "detokenize"]
#: Bodies that mean a chat completion.
CHATS: Mapping[Route, type[ResponsesRequest] | type[CountRequest]] = {
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "count": CountRequest,
}
#: What their fields are called, where a chat completion has other names.
NAMES: Mapping[Route, Mapping[str, str]] = {
    "responses": responses_api.NAMES,
    "messages": messages_api.NAMES,
    "count": messages_api.NAMES,
}
Request = (
    ChatCompletionRequest | CompletionRequest | ResponsesRequest | CountRequest | TokenizeRequest | DetokenizeRequest
)
#: What a job does, so that it can be blamed if it does not finish: the field, or None for the whole body.
STEPS: tuple[str | None, ...] = (None, "chat_template", "messages", "prompt", "tools", "tokens", *CONSTRAINTS)


class Prepared(NamedTuple):
    """A request without its prompts, and its prompts: text, where it will be echoed, and token ids."""

    request: Request
    """As the client's route has it."""
    prompts: list[tuple[str, list[int]]]
    """One for a chat, with the text that its answer begins with; none before the engine has said what it takes."""
    chat: ChatCompletionRequest | None = None
    """The chat to run, for routes that speak of a conversation; without its messages."""
    ignored: Sequence[str] = ()
    """Names of the request's fields that were accepted and have no effect here, in order."""


class Preparer:
    """Reads requests for one served model.

    Args:
        vocab_size: rows of the model's embedding.
        longest_token: bytes of the longest token in the vocabulary.
    """

    def __init__(
        self, tokenizer: Tokenizer, engine: EngineConfig, server: ServerConfig, vocab_size: int, longest_token: int
    ) -> None:
        self.config, self.vocab_size = server, vocab_size
        self.reader = Reader(tokenizer, vocab_size, longest_token, server)
        self.queued_tokens = engine.max_queued_tokens

    def __call__(
        self, body: bytearray, arguments: tuple[Route, int | None], note: Callable[[int], None]
    ) -> Prepared | ApiError:
        """What to run, or why not.

        Args:
            body: JSON, UTF-8.
            arguments: whose request it is, and the model's length in tokens; None before the engine has said it: then
                there are no prompts either.
            note: called with the place in `STEPS` of what is done next.
        """
        route, model_len = arguments
        reached = 0

        def begin(step: str | None) -> None:
            nonlocal reached
            reached = STEPS.index(step)
            note(reached)

        try:
            return self._prepare(body, route, model_len, begin)
        except ApiError as error:
            return error
        except CheckpointError as error:
            step = STEPS[reached]
            return invalid_value(
                f"The model's tokenizer fails on this text: {error.message}. Change {step or 'the request'}, or report "
                "it to the checkpoint's author.",
                step,
            )

    def _prepare(
        self, body: bytearray, route: Route, model_len: int | None, note: Callable[[str | None], None]
    ) -> Prepared:
        note(None)
        most = self._most_tokens(model_len)
        limits = {"prompt": most, "tokens": most, "messages": MESSAGES, "input": MESSAGES, "tools": TOOLS}
        check_counts(body, limits)
        ignored: set[str] = set()
        if route == "text":
            prepared = self._text(parse(body, CompletionRequest, ignored), model_len, note)
        elif route == "chat":
            request = parse(body, ChatCompletionRequest, ignored)
            prepared = self._chat(request, request, model_len, note)
        elif route == "tokenize":
            prepared = self._tokenized(parse(body, TokenizeRequest, ignored), model_len, note)
        elif route == "detokenize":
            prepared = self._detokenized(parse(body, DetokenizeRequest, ignored), note)
        else:
            meant = parse(body, CHATS[route], ignored)
            prepared = self._chat(meant, meant.chat(ignored), model_len, note)
            meant.spend()
        run = prepared.request if prepared.chat is None else prepared.chat
        if isinstance(run, Sampling) and run.priority is not None and self.config.scheduling_policy != "priority":
            run.priority = None
            ignored.add("priority")
        if prepared.chat is not None:
            ignored |= {NAMES.get(route, {}).get(name, name) for name in prepared.chat.unheard}
        return prepared._replace(ignored=sorted(ignored))

    def _text(self, request: CompletionRequest, model_len: int | None, note: Callable[[str | None], None]) -> Prepared:
        check_model(request.model, self.config.served_name)
        prompts: list[tuple[str, list[int]]] = []
        if model_len is not None:
            check_limits(request, self.config, self.vocab_size)
            prompts = self.reader.completions(request, model_len, note, self.queued_tokens)
            request.constrain(constraint_of(request, note))
        # The rest of a request is small.
        request.prompt = []
        return Prepared(request, prompts)

    def _chat(
        self,
        request: Request,
        chat: ChatCompletionRequest,
        model_len: int | None,
        note: Callable[[str | None], None],
    ) -> Prepared:
        """Args: request: as the client sent it. chat: what it means as a chat completion."""
        check_model(chat.model, self.config.served_name)
        prompts: list[tuple[str, list[int]]] = []
        if model_len is not None:
            check_limits(chat, self.config, self.vocab_size)
            ids = self.reader.chat(chat, model_len, note)
            # Agents that speak Anthropic's language send a budget to every model.
            optional = isinstance(request, CountRequest)
            chat.limit_thought(thought_budget(chat, self.reader.tokenizer, optional=optional))
            prompts = [(echoed(chat), ids)]
            chat.constrain(answer_grammar(chat, constraint_of(chat, note), self.reader.tokenizer, note))
        # The rest of a request is small.
        chat.spend()
        return Prepared(request, prompts, chat)

    def _tokenized(
        self, request: TokenizeRequest, model_len: int | None, note: Callable[[str | None], None]
    ) -> Prepared:
        check_model(request.model or self.config.served_name, self.config.served_name)
        ids: list[int] = []
        if request.messages is not None:
            chat = request.chat(self.config.served_name)
            ids = [] if model_len is None else self.reader.chat(chat, model_len, note)
        elif model_len is not None:
            ids = self.reader.text(*request.text(), model_len, note)
        request.spend()
        return Prepared(request, [("", ids)])

    def _detokenized(self, request: DetokenizeRequest, note: Callable[[str | None], None]) -> Prepared:
        check_model(request.model or self.config.served_name, self.config.served_name)
        note("tokens")
        text = self.reader.decoded(request.tokens)
        request.tokens = []
        return Prepared(request, [(text, [])])

    def _most_tokens(self, model_len: int | None) -> Most:
        """Values of a prompt: what the queue takes, and some more, so that a prompt that is too long is called that."""
        full = max(self.queued_tokens, model_len or 0)
        if model_len is not None:
            full = min(full, self.config.max_prompts * model_len)
        return Most(values=64 * 1024 + full, parts=4096)
