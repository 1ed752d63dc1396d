"""JSON as a model writes it, checked and passed on while it comes.

Slips that cannot be meant in another way are mended: line breaks inside of strings, Python's `True`, `\\'`.
"""

import json
import re

from plimsoll.runtime.server.parsing.source import Emit, Source, Wait

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_HEX = re.compile(r"u[0-9a-fA-F]{4}")
#: Longest number; a longer one is no argument.
_MOST_DIGITS = 400


def value(src: Source, emit: Emit) -> Wait[bool]:
    """Takes one JSON value; False where it breaks off or is none, at the place where that shows."""
    nested: list[str] = []
    while True:
        emit((yield from src.space()))
        first = yield from src.peek()
        if first in ("{", "["):
            _take(src, emit)
            nested.append("}" if first == "{" else "]")
            emit((yield from src.space()))
            if (yield from src.peek()) == nested[-1]:
                _take(src, emit)
                nested.pop()
            elif first == "{":
                if not (yield from _key(src, emit)):
                    return False
                continue
            else:
                continue
        elif first == '"':
            if not (yield from text(src, emit)):
                return False
        elif not (yield from _scalar(src, emit)):
            return False
        # A value has ended, and with it those that end here.
        while nested:
            emit((yield from src.space()))
            after = yield from src.peek()
            if after == nested[-1]:
                _take(src, emit)
                nested.pop()
            elif after == ",":
                _take(src, emit)
                break
            else:
                return False
        if not nested:
            return True
        if nested[-1] == "}" and not (yield from _key(src, emit)):
            return False


def text(src: Source, emit: Emit) -> Wait[bool]:
    """Takes one string with its quotes; False where it breaks off."""
    if (yield from src.peek()) != '"':
        return False
    _take(src, emit)
    while character := (yield from src.peek()):
        if plain := _PLAIN.match(src.text, src.at):
            src.at = plain.end()
            emit(plain[0])
        elif character == '"':
            _take(src, emit)
            return True
        elif character == "\\":
            if not (yield from _escape(src, emit)):
                return False
        else:
            src.at += 1
            emit(json.dumps(character)[1:-1])
    return False


def collected(src: Source) -> Wait[object]:
    """Takes one value and returns it as Python has it. Raises ValueError where it is none."""
    pieces: list[str] = []
    if not (yield from value(src, pieces.append)):
        raise ValueError
    try:
        return json.loads("".join(pieces))
    except RecursionError:
        raise ValueError from None


def _take(src: Source, emit: Emit) -> None:
    src.at += 1
    emit(src.text[src.at - 1])


def _key(src: Source, emit: Emit) -> Wait[bool]:
    emit((yield from src.space()))
    if not (yield from text(src, emit)):
        return False
    emit((yield from src.space()))
    if (yield from src.peek()) != ":":
        return False
    _take(src, emit)
    return True


def _escape(src: Source, emit: Emit) -> Wait[bool]:
    while len(src.text) - src.at < 2 or (src.text[src.at + 1] == "u" and len(src.text) - src.at < 6):
        if not (yield from src.more()):
            return False
    follows = src.text[src.at + 1]
    if follows == "u" and _HEX.match(src.text, src.at + 1):
        src.at += 6
        emit(src.text[src.at - 6 : src.at])
    elif follows in '"\\/bfnrt':
        src.at += 2
        emit("\\" + follows)
    else:
        # `\'` is a quote in other languages; any other is a backslash that was not doubled.
        src.at += 1 if follows != "'" else 2
        emit("'" if follows == "'" else "\\\\")
    return True


def _scalar(src: Source, emit: Emit) -> Wait[bool]:
    while True:
        found = _WORD.match(src.text, src.at)
        word = found[0] if found else ""
        if len(word) > _MOST_DIGITS:
            return False
        if src.at + len(word) < len(src.text) or not (yield from src.more()):
            break
    if word not in _WORDS and not _NUMBER.fullmatch(word):
        return False
    src.at += len(word)
    emit(_WORDS.get(word, word))
    return True
