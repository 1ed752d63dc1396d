"""`/tokenize` and `/detokenize`, in the shapes of vLLM and of llama-server."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from plimsoll.runtime.server.parse import checked
from plimsoll.runtime.server.protocol import Body, ChatCompletionRequest, Token
from plimsoll.runtime.server.values import Flag

Objects = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}})]
#: What a conversation needs to become text.
OF_CHATS = frozenset({"tools", "add_generation_prompt", "continue_final_message", "chat_template",
                      "chat_template_kwargs", "add_special_tokens"})  # fmt: skip


class TokenizeRequest(Body):
    """Body of `POST /tokenize`: a `prompt`, `messages`, or a `content`, which is llama-server's prompt."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Objects = None
    tools: Objects = None
    add_special_tokens: Flag = True
    """By default special tokens are added to a prompt, and none to what a template writes."""
    add_generation_prompt: Flag = True
    continue_final_message: Flag = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    return_token_strs: Flag = False
    add_special: Flag = False
    """llama-server's `add_special_tokens`, which counts for `content`: there the default is to add none."""
    parse_special: Literal[True] = True
    """Special tokens in a text are always read as such."""
    with_pieces: Flag = False
    """llama-server's: each token as an object with its `id` and its text."""

    @model_validator(mode="after")
    def _either(self) -> "TokenizeRequest":
        if sum(value is not None for value in (self.prompt, self.messages, self.content)) != 1:
            raise PydanticCustomError("prompt", "prompt: send one of prompt, messages and content")
        return self

    def text(self) -> tuple[str, bool]:
        """The text to tokenize, and whether special tokens are added to it."""
        if self.content is not None:
            return self.content, self.add_special
        return self.prompt or "", self.add_special_tokens

    def chat(self, served_name: str) -> ChatCompletionRequest:
        """The conversation as a chat. Raises ApiError 400 that names the field."""
        asked = {name: getattr(self, name) for name in OF_CHATS & self.model_fields_set}
        return checked({"model": self.model or served_name, "messages": self.messages, **asked}, ChatCompletionRequest)

    def spend(self) -> None:
        """Lets go of all that is large, once it is tokenized."""
        self.prompt, self.content = None, None
        self.messages, self.tools, self.chat_template_kwargs = None, None, {}


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[Token]


class Piece(msgspec.Struct):
    """A token as llama-server has it with `with_pieces`."""

    id: int
    piece: str | list[int]
    """Its text, or its bytes where they are no whole characters."""


class Tokenized(msgspec.Struct):
    """Answer of `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: Sequence[int | Piece]
    token_strs: list[str] | None = None
    """Each token as the vocabulary spells it, with `return_token_strs`."""


class Detokenized(msgspec.Struct):
    """Answer of `POST /detokenize`."""

    prompt: str
    content: str | msgspec.UnsetType = msgspec.UNSET
    """The same text, by llama-server's name, whose clients name no model; vLLM's do."""
