"""Grammars of answers that may call functions: text is free, and a call, once it is begun, matches its schema."""

import json
from collections.abc import Sequence

from plimsoll.runtime.server.parsing.formats import FAMILIES
from plimsoll.runtime.server.parsing.gemma_calls import GemmaCalls
from plimsoll.runtime.server.parsing.json_calls import JsonCalls
from plimsoll.runtime.server.parsing.thoughts import Thoughts
from plimsoll.runtime.server.tool_grammar import (
    Offer,
    Sign,
    Spelling,
    call_rules,
    json_rule,
    parameters_of,
    regex,
    spelling_of,
    written,
)

#: Families whose calls begin as any list does, so that nothing says where one begins.
UNMARKED = frozenset({"pythonic"})
_ANY = r"(.|\n)*"
#: How a JSON object begins that may call a function.
_BARE = r'\{[ \n]*("type"[ \n]*:[ \n]*"function"[ \n]*,[ \n]*)?"name"[ \n]*:[ \n]*"'


def may_call(
    parser: str, offers: Sequence[Offer], sign: Sign, *, several: bool, thoughts: Thoughts | None = None
) -> str:
    """Rules of Lark: `auto` is text, with calls in it or without any.

    Args:
        parser: none of `UNMARKED`.
        several: whether there may be more than one call.
        thoughts: signs of the thought that may stand before: text does not begin with them.
    """
    calls, rest = FAMILIES[parser].calls, "auto" if several else "FREE"
    # Signs that text may not hold. One that is a token of its own is no text.
    never = [regex(begin) for begin in FAMILIES[parser].begins if begin != "{" and not sign(begin).startswith("<")]
    if "{" in calls.begins:
        never.append(_BARE)
    first = ""
    if thoughts is not None and not sign(thoughts.begin).startswith("<"):
        first = "|".join(regex(text) for text in (thoughts.begin, *thoughts.begins))
    lines, heads = [r"GAP: /[ \n]/", f"FREE: {_text(never, first)}"], []
    marked = isinstance(calls, JsonCalls | GemmaCalls) or parser == "qwen3_coder"
    for at, begin in enumerate(calls.begins if marked else calls.begins[:1]):
        if begin == "{":
            lines += _bare_calls(offers, [one for one in never if one != _BARE], first, several=several)
            heads.append("bare")
            continue
        own, head = regex(begin), f"head_{at}: FREE {sign(begin)}"
        if own in never:
            head = f"head_{at}[lazy]: {_text([one for one in never if one != own], first, own)}"
        lines += [head, f"body_{at}: {_body(spelling_of(parser, FAMILIES[parser], at), begin, sign, several=several)}"]
        heads.append(f"{at}")
    if parser == "mistral":
        # Newer models of the family write the name before the arguments, and no list.
        lines[-1] += " | named"
        lines.append(f"named: {' | '.join(f'named_{index}' for index in range(len(offers)))}")
        identified = f"({sign('[CALL_ID]')} /[a-zA-Z0-9]{{1,32}}/)? {sign('[ARGS]')}?"
        for index, offer in enumerate(offers):
            lines.append(f"named_{index}: {json.dumps(offer.name)} {identified} {json_rule(parameters_of(offer))}")
    ways = [f"head_{rule} {'after_bare' if rule == 'bare' else f'body_{rule} {rest}'}" for rule in heads]
    auto = f"auto: FREE | {' | '.join(ways)}"
    return "\n".join([auto, *lines, call_rules(parser, offers, sign, several=several)])


def _bare_calls(offers: Sequence[Offer], never: Sequence[str], first: str, *, several: bool) -> list[str]:
    """Rules of calls that are JSON objects without a sign: the name of a function makes an object a call."""
    names = "|".join(regex(offer.name) for offer in offers)
    ways = " | ".join(f"bare_{index} {'auto' if several else 'FREE'}" for index in range(len(offers)))
    # Objects with another name are text. In regular expressions over the whole text the names would cost too much.
    other = f' & ~/({names})"{_ANY}/'
    return [
        f"head_bare[lazy]: {_text(never, first, _BARE)}",
        f"after_bare: {ways} | OTHER | other after_bare",
        f"other[lazy]: {_text(never, '', _BARE)}{other}",
        f"OTHER: {_text([*never, _BARE], '')}{other}",
        'CLOSE: "}"',
        r'KEY: /[ \n]*,[ \n]*"(parameters|arguments)"[ \n]*:[ \n]*/',
        *(
            f"bare_{index}: {json.dumps(f'{offer.name}{chr(34)}')} KEY {json_rule(parameters_of(offer))} GAP? CLOSE"
            for index, offer in enumerate(offers)
        ),
    ]


def _text(never: Sequence[str], first: str, end: str = "") -> str:
    """Lark of a text that holds none of the expressions `never`, does not begin with `first`, and ends with `end`."""
    text = f"/{_ANY}{end}/"
    if never:
        text += f" & ~/{_ANY}({'|'.join(never)}){_ANY}/"
    return rf"{text} & ~/[ \n]*({first}){_ANY}/" if first else text


def _body(spelling: Spelling, begin: str, sign: Sign, *, several: bool) -> str:
    """What follows the sign `begin`: a call, or a list of them where the family writes one."""
    lead = (spelling.before + spelling.each[0]).removeprefix(begin).lstrip("\n")
    before, after = spelling.each
    gap = "GAP? " if after.startswith("\n") else ""
    one = f"call {gap}{written(after.removeprefix(chr(10)), sign)}"
    # Where each call has a sign of its own, the next one is found as the first was.
    more = f"({written(spelling.between, sign)} {written(before, sign)} {one})*" if several and spelling.before else ""
    close = "GAP? " if spelling.after.startswith("]") else ""
    return f"GAP? {written(lead, sign)} {one} {more} {close}{written(spelling.after, sign)}"
