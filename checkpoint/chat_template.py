"""A checkpoint's chat templates: which of them renders a conversation, and the form of content that it takes.

Some templates print `message.content`, others loop over a list of parts and print the text of each. Jinja raises no
error for the wrong one: the text is missing from the prompt. So a template is rendered on marks first, in both forms.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, Literal

from plimsoll.api.errors import PlimsollError

Message = dict[str, Any]
Form = Literal["string", "parts"]

#: Templates that serve one purpose; a plain conversation takes another one if the checkpoint has it.
_SPECIAL_PURPOSE = ("tool_use", "tool", "tools", "rag")

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
#: Roles whose form is found at once: each doubles the renderings.
_MOST_ROLES = 5


class ChatTemplateError(PlimsollError):
    """The messages do not go through the model's chat template, or there is none."""


def named_templates(given: object) -> dict[str, str]:
    """Templates by name, in the checkpoint's order; `default` for a single template.

    Args:
        given: `chat_template` as tokenizer_config.json or transformers has it: a Jinja source, an object from name to
            source, or a list of objects with `name` and `template`.
    """
    if isinstance(given, str):
        return {"default": given}
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(given, Mapping):
        pairs = given.items()
    elif isinstance(given, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in given if isinstance(entry, Mapping)]
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}


def default_name(templates: Mapping[str, str]) -> str | None:
    """The template for a plain conversation: `default`, `chat`, or the first without a special purpose."""
    for name in ("default", "chat"):
        if name in templates:
            return name
    return next((name for name in templates if name not in _SPECIAL_PURPOSE), next(iter(templates), None))


def chosen_name(templates: Mapping[str, str], default: str, wanted: str | None, with_tools: bool) -> str:
    """The template of one conversation.

    Args:
        default: the template of conversations that choose none.
        wanted: the name that a request gives; None if it gives none.
        with_tools: whether the conversation has tools, for which `tool_use` is, as in transformers.

    Raises:
        ChatTemplateError: no template has the name `wanted`.
    """
    if wanted is not None and wanted not in templates:
        raise ChatTemplateError(
            f"the model has no chat template of the name {wanted[:80]!r}", field="chat_template",
            fix=f"Use one of {', '.join(templates)}",
        )  # fmt: skip
    return wanted or ("tool_use" if with_tools and "tool_use" in templates else default)


@lru_cache(maxsize=32)
def variables_of(source: str) -> frozenset[str]:
    """Names that a template reads and does not set itself; none of a template that Jinja cannot parse."""
    from jinja2 import TemplateError, meta
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    try:
        # `generation` is a block of transformers' own.
        parsed = environment.parse(_GENERATION.sub("", source))
    except (TemplateError, RecursionError):
        return frozenset()
    return frozenset(meta.find_undeclared_variables(parsed))


class ContentForms:
    """The form in which one template takes the content of each role, found on the first conversation that has it."""

    def __init__(self) -> None:
        self._known: dict[str, Form] = {}

    def shaped(self, messages: Sequence[Mapping[str, Any]], render: Callable[[list[Message]], str]) -> list[Message]:
        """`messages` with every content in the form that the template takes for its role.

        Args:
            messages: `content` is text, or a list of text parts as OpenAI has them.
            render: the template.

        Raises:
            ChatTemplateError: a content has parts that are no text, or the template prints no user's text in any form.
        """
        texts = [_text(message.get("content"), index) for index, message in enumerate(messages)]
        roles = {_role(message) for message, text in zip(messages, texts, strict=True) if text is not None}
        if not roles <= self._known.keys():
            self._find_out(messages, texts, roles, render)
        return _in_forms(messages, texts, self._known)

    def _find_out(
        self,
        messages: Sequence[Mapping[str, Any]],
        texts: Sequence[str | None],
        roles: set[str],
        render: Callable[[list[Message]], str],
    ) -> None:
        """Renders the conversation with marks in place of its texts, and keeps the forms that show most marks."""
        new = sorted(roles - self._known.keys())[:_MOST_ROLES]
        marks = [None if text is None else f"plimsollmark{index}end" for index, text in enumerate(texts)]
        marked = [
            dict(message) if mark is None else {**message, "content": mark}
            for message, mark in zip(messages, marks, strict=True)
        ]
        best: dict[str, Form] | None = None
        shown: list[str] = []
        # Few lists first: where both forms show the text, a string is what most templates are written for.
        choices: Iterable[tuple[Form, ...]] = product(("string", "parts"), repeat=len(new))
        for choice in sorted(choices, key=lambda choice: choice.count("parts")):
            forms = self._known | dict(zip(new, choice, strict=True))
            try:
                rendered = render(_in_forms(marked, marks, forms))
            except Exception:  # The template refuses this form. If it refuses all, the conversation itself shows why.
                continue
            seen = [_role(message) for message, mark in zip(messages, marks, strict=True) if shows(rendered, mark)]
            if best is None or len(seen) > len(shown):
                best, shown = forms, seen
            if len(shown) == len(marks) - marks.count(None):
                break
        if best is None:
            return
        if "user" in roles and "user" not in shown:
            raise ChatTemplateError(
                "the model's chat template prints no text of a user, neither from a string nor from a list of parts",
                field="messages", fix="Use /v1/completions, or give another template: --chat-template FILE",
            )  # fmt: skip
        self._known = self._known | best


def _role(message: Mapping[str, Any]) -> str:
    return str(message.get("role"))


def shows(rendered: str, mark: str | None) -> bool:
    """Whether the text was printed as text: a list that is printed whole shows how Python or JSON writes it."""
    if mark is None:
        return False
    # A template may put a text in capitals.
    rendered = rendered.lower()
    return mark in rendered and not any(f"text{q}: {q}{mark}" in rendered for q in "'\"")


def _in_forms(
    messages: Sequence[Mapping[str, Any]], texts: Sequence[str | None], forms: Mapping[str, Form]
) -> list[Message]:
    """The messages with their contents as strings or as lists of parts; a list that is given stays as it is."""
    found = []
    for message, text in zip(messages, texts, strict=True):
        content: Any = message.get("content")
        if text is not None and forms.get(_role(message)) == "parts":
            content = content if isinstance(content, list) else [{"type": "text", "text": text}]
        elif text is not None:
            content = text
        found.append({**message, "content": content} if text is not None else dict(message))
    return found


def _text(content: object, index: int) -> str | None:
    """A message's content as one string; parts are joined by a newline, as vLLM joins them. None for no content.

    Raises:
        ChatTemplateError: it is neither text nor parts of text.
    """
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ChatTemplateError(
            "must be a string or a list of text parts", field=f"messages[{index}].content", value=str(content)[:80],
            fix='A text part is {"type": "text", "text": "..."}',
        )  # fmt: skip
    return "\n".join(map(str, texts))
