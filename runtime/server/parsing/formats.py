"""How families of models write the functions that they call, and which of these a checkpoint's template asks for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from plimsoll.api.parsers import REASONING_PARSERS, TOOL_PARSERS
from plimsoll.runtime.server.parsing.gemma_calls import GemmaCalls
from plimsoll.runtime.server.parsing.json_calls import JsonCalls, NamedCalls
from plimsoll.runtime.server.parsing.python_calls import PythonCalls
from plimsoll.runtime.server.parsing.source import Source, Wait
from plimsoll.runtime.server.parsing.tagged_calls import TaggedCalls
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS, Thoughts


class Calls(Protocol):
    """How calls are written after a sign that begins them."""

    @property
    def begins(self) -> tuple[str, ...]:
        """Signs that begin calls."""

    def read(self, src: Source, begin: str, known: Mapping[str, Any]) -> Wait[None]:
        """Takes the calls after the sign `begin`, as far as they are well formed.

        Args:
            known: the functions of the request, and the schema of each one's parameters.
        """


@dataclass(frozen=True)
class Family:
    """One family's way to call functions."""

    calls: Calls
    signs: tuple[tuple[str, ...], ...] = ()
    """What a template of the family holds: all texts of one of these."""
    others: tuple[str, ...] = ()
    """More signs that the family writes around calls and that stand for no text."""
    short_ids: bool = False
    """Ids of calls have nine letters and digits."""

    @property
    def begins(self) -> tuple[str, ...]:
        more = self.calls.name_begins if isinstance(self.calls, TaggedCalls) else ()
        return self.calls.begins + more

    @property
    def texts(self) -> frozenset[str]:
        """Every sign that a tokenizer may hold as a special token."""
        found = {*self.begins, *self.others}
        for name in ("ends", "seps", "leads", "quotes", "key_begins", "value_ends", "call_ends"):
            found.update(getattr(self.calls, name, ()))
        for name in ("id_sep", "key_end", "value_begin"):
            found.add(getattr(self.calls, name, ""))
        return frozenset(found - {""})


_HERMES = Family(JsonCalls(("<tool_call>",), ("</tool_call>",)), (("<tool_call>",),))
_DEEPSEEK = NamedCalls(
    ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ("<｜tool▁sep｜>", "\n"),
    leads=("function<｜tool▁sep｜>",),
    fences=("```json", "```"),
    ends=("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)

#: By the name of the parser, in the order in which a model's template is asked: the more special sign first.
FAMILIES: dict[str, Family] = {
    "deepseek_v3": Family(_DEEPSEEK, (("tool▁call▁begin", "```json"),)),
    "deepseek_v31": Family(_DEEPSEEK, (("tool▁call▁begin",),)),
    "deepseek_v32": Family(
        TaggedCalls(
            ("<｜DSML｜function_calls>",),
            ('<｜DSML｜invoke name="',),
            ('">',),
            ('<｜DSML｜parameter name="',),
            ">",
            "",
            ("</｜DSML｜parameter>",),
            ("</｜DSML｜invoke>",),
            ("</｜DSML｜function_calls>",),
        ),
        (("｜DSML｜",),),
    ),
    "kimi_k2": Family(
        NamedCalls(
            ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
            ("<|tool_call_argument_begin|>",),
            leads=("functions.",),
            ends=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
            id_sep=":",
        ),
        (("<|tool_call_begin|>",),),
    ),
    "glm45": Family(
        TaggedCalls(
            ("<tool_call>",),
            (),
            ("\n", "<arg_key>", "</tool_call>"),
            ("<arg_key>",),
            "</arg_key>",
            "<arg_value>",
            ("</arg_value>",),
            ("</tool_call>",),
        ),
        (("<arg_key>",),),
    ),
    "minimax_m2": Family(
        TaggedCalls(
            ("<minimax:tool_call>",),
            ("<invoke name=",),
            (">",),
            ("<parameter name=",),
            ">",
            "",
            ("</parameter>", "</invoke>"),
            ("</invoke>",),
            ("</minimax:tool_call>",),
        ),
        (("<minimax:tool_call>",), ("]<]minimax[>[",)),
    ),
    "qwen3_coder": Family(
        TaggedCalls(
            ("<tool_call>", "<seed:tool_call>"),
            ("<function=",),
            (">",),
            ("<parameter=",),
            ">",
            "",
            ("</parameter>", "<parameter=", "</function>"),
            ("</function>",),
            ("</tool_call>", "</seed:tool_call>"),
        ),
        (("<function=", "<parameter="),),
    ),
    "internlm": Family(
        JsonCalls(("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",)),
        (("<|plugin|>",), ("<|action_start|>",)),
        others=("<|action_start|>", "<|plugin|>"),
    ),
    "gemma": Family(
        GemmaCalls(("<|tool_call>", "<start_function_call>"), ("<tool_call|>", "<end_function_call>")),
        (("<|tool_call>",), ("<start_function_call>",)),
        others=("<escape>",),
    ),
    "granite": Family(
        JsonCalls(("<|tool_call|>", "<tool_call>"), ("</tool_call>",)), (("<|start_of_role|>", "tools"),)
    ),
    "phi4_mini": Family(
        JsonCalls(("<|tool_call|>", "functools"), ("<|/tool_call|>",)),
        (("<|tool|>",), ("<|tool_call|>",), ("functools",)),
    ),
    "cohere": Family(JsonCalls(("<|START_ACTION|>",), ("<|END_ACTION|>",), ("tool_name",)), (("<|START_ACTION|>",),)),
    "hunyuan": Family(JsonCalls(("<tool_calls>",), ("</tool_calls>",)), (("<tool_calls>",),)),
    "mistral": Family(
        NamedCalls(
            ("[TOOL_CALLS]",), ("[ARGS]", "{"), fences=(), id_sep="[CALL_ID]", lists=JsonCalls(("[TOOL_CALLS]",))
        ),
        (("[TOOL_CALLS]",), ("[AVAILABLE_TOOLS]",)),
        short_ids=True,
    ),
    "olmo3": Family(PythonCalls(("<function_calls>",), ("</function_calls>",)), (("<function_calls>",),)),
    "lfm2": Family(
        PythonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",)),
        (("<|tool_call_start|>",), ("<|tool_list_start|>",)),
    ),
    "hermes": _HERMES,
    "pythonic": Family(
        PythonCalls(
            ("<|python_start|>", "<|python_tag|>", "```tool_code", "```tool_call", "["), ("<|python_end|>", "```")
        ),
        (("[func_name1(",), ("<|python_start|>",), ("tool_code",)),
    ),
    "llama3_json": Family(
        JsonCalls(("<|python_tag|>", "{")), (("<|python_tag|>",), ('"parameters": dictionary of argument name',))
    ),
}
assert tuple(sorted(FAMILIES)) == TOOL_PARSERS
assert tuple(sorted(THOUGHTS)) == REASONING_PARSERS


def tool_parser(template: str | None, tokens: Collection[str], fallback: str = "hermes") -> str:
    """The parser for what a template asks a model to write.

    Args:
        template: Jinja source.
        tokens: added tokens of the tokenizer.
        fallback: for a template that has no sign: there the tools are described in Hermes's words.
    """
    source = template or ""
    for name, family in FAMILIES.items():
        if any(all(text in source for text in texts) for texts in family.signs):
            return name
    if "tools" in source:
        for name, family in FAMILIES.items():
            if any(text in tokens for text in family.begins):
                return name
    return fallback


def reasoning_parser(template: str | None, tokens: Collection[str]) -> str | None:
    """The parser for the thoughts that a template, or a token of its own, says the model has; None for no thoughts."""
    source = template or ""
    for name, thoughts in THOUGHTS.items():
        inside = [text for text in (thoughts.begin, thoughts.end, *thoughts.said[:1]) if text]
        if name == "hunyuan" and "<answer>" not in source:
            continue
        if thoughts.begin in source or all(text in tokens for text in inside):
            return name
        if name == "granite" and "Here is my thought process" in source:
            return name
        if name == "think" and "</think>" in source:
            return name
    return None


def shown_ids(tokens: Mapping[int, str], family: Family | None, thoughts: Thoughts | None) -> frozenset[int]:
    """Ids of special tokens that the parsers must see.

    Args:
        tokens: the tokenizer's special tokens, by id.
    """
    texts = set() if family is None else set(family.texts)
    if thoughts is not None:
        texts.update(thoughts.signs)
    # A sign may be written as several tokens, of which some are special: `<|channel>` and `thought`.
    return frozenset(index for index, text in tokens.items() if any(text and text in sign for sign in texts))
