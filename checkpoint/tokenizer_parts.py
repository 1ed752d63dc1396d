"""Limits of a tokenizer's normalizer, pre-tokenizer, model and decoder: programs of the checkpoint's author.

They run on every text of a client, and the normalizer runs on the added tokens when the tokenizer is loaded, where
neither time nor memory is limited. So what could multiply a text is refused before it is made.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.vocabulary import LONGEST_TOKEN, MOST_CHARACTERS

#: Steps of one normalizer, pre-tokenizer or decoder; published ones have ten at most.
MOST_STEPS = 64
#: Characters of any text that a step holds. Patterns have 600 at most; a table of characters, half a million.
LONGEST_TEXT, LONGEST_TABLE = 4096, 1 << 23
#: How many times longer all steps together may make a text.
MOST_GROWTH = 1024
#: Characters that all added tokens may have once they are normalized.
MOST_NORMALIZED = 1 << 24

_TABLE = "precompiled_charsmap"
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PARTS = ("normalizer", "pre_tokenizer", "decoder")


def check_parts(folder: Path) -> None:
    """Checks the tokenizer.json of a folder.

    Raises:
        CheckpointError: a part has more steps, longer texts or more growth than any published tokenizer. The field
            is the file's path and the part's name.
        ValueError, RecursionError: the file is no JSON, or too deep.
    """
    path = folder / "tokenizer.json"
    state = json.loads(path.read_bytes())
    if not isinstance(state, dict):
        return
    growth = added = 1
    for part in _PARTS:
        field, steps = f"{path}: {part}", list(_steps(state.get(part)))
        if len(steps) > MOST_STEPS:
            raise CheckpointError(f"has more than {MOST_STEPS} steps", field=field, value=len(steps))
        _check_texts(steps, field)
        grown, prepended = _growth(steps)
        if grown > MOST_GROWTH:
            raise CheckpointError(
                f"may make a text more than {MOST_GROWTH} times longer", field=field, value=min(grown, 1 << 53)
            )
        if part == "normalizer":
            growth, added = grown, prepended
    _check_model(state.get("model"), f"{path}: model")
    tokens = state.get("added_tokens")
    listed = tokens if isinstance(tokens, list) else []
    contents = [str(token.get("content")) for token in listed if isinstance(token, dict)]
    # These files add tokens too.
    beside = sum((folder / name).stat().st_size for name in _FILES if (folder / name).is_file())
    _check_vocabulary(contents, f"{path}: added_tokens")
    normalized = (sum(map(len, contents)) + beside + len(contents) * added) * growth
    if normalized > MOST_NORMALIZED:
        raise CheckpointError(
            f"may make more than {MOST_NORMALIZED} characters of the added tokens", field=f"{path}: normalizer",
            value=normalized,
        )  # fmt: skip


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, those inside of sequences too."""
    if not isinstance(part, dict):
        return
    yield part
    for inner in part.values():
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)


def _check_texts(steps: list[Mapping[str, Any]], field: str) -> None:
    for step in steps:
        if isinstance(table := step.get(_TABLE), str):
            _check_table(table, f"{field}.{_TABLE}")
        for name, value in step.items():
            # A pattern is a text by its kind.
            texts = list(value.values()) if isinstance(value, dict) else [value]
            for text in texts:
                most = LONGEST_TABLE if name == _TABLE else LONGEST_TEXT
                if isinstance(text, str) and len(text) > most:
                    raise CheckpointError(
                        f"holds a text of more than {most} characters", field=f"{field}.{name}", value=len(text)
                    )


def _check_table(table: str, field: str) -> None:
    """Raises CheckpointError for a table of characters that says it is longer than it is: memory is taken for all.

    See sentencepiece: the bytes of a trie in 32 bits, that trie, and texts. All of it is base64 here.
    """
    head = base64.b64decode(table[:8] if len(table) <= LONGEST_TABLE else "")
    size = int.from_bytes(head[:4], "little")
    if len(head) < 4 or size % 4 or size > len(table) * 3 // 4 - 4:
        raise CheckpointError("is no table of characters: its length is not that of its data", field=field, value=size)


def _growth(steps: list[Mapping[str, Any]]) -> tuple[int, int]:
    """How many times longer a text may become, and how many characters are put before it."""
    growth, before = 1.0, 0
    for step in steps:
        content = step.get("content")
        pattern = step.get("pattern")
        if isinstance(step.get("prepend"), str):
            before += len(step["prepend"])
        elif isinstance(content, str) and isinstance(pattern, dict):
            text = pattern.get("String")
            # A regular expression may match between any two characters.
            growth *= max(1, len(content) / len(text)) if isinstance(text, str) and text else len(content) + 1
    return int(growth), before


def _check_model(model: Any, field: str) -> None:
    if not isinstance(model, dict):
        return
    _check_texts([{name: value for name, value in model.items() if isinstance(value, str)}], field)
    vocabulary = model.get("vocab")
    tokens = list(vocabulary) if isinstance(vocabulary, dict | list) else []
    _check_vocabulary([str(one[0]) if isinstance(one, list) and one else str(one) for one in tokens], f"{field}.vocab")


def _check_vocabulary(tokens: list[str], field: str) -> None:
    longest = max(map(len, tokens), default=0)
    if longest > LONGEST_TOKEN:
        raise CheckpointError(f"holds a token of more than {LONGEST_TOKEN} characters", field=field, value=longest)
    if (characters := sum(map(len, tokens))) > MOST_CHARACTERS:
        raise CheckpointError(f"holds more than {MOST_CHARACTERS} characters", field=field, value=characters)
