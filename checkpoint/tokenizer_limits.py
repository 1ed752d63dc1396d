"""Limits of a tokenizer's files, and of what the Rust library that reads them may do to the process."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.vocabulary import MOST_TOKENS

#: Tokens, merges and settings: twice as many as the largest published vocabulary of a served family has.
MOST_VALUES = 1 << 22
#: Each costs transformers 50 µs and more when it loads. Published tokenizers have a few thousand at most.
MOST_ADDED = 1 << 15
#: Tokens that are put around every text, and processors that do so one after the other.
MOST_AROUND, MOST_PROCESSORS = 64, 8
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_files(folder: Path) -> None:
    """Checks the files that transformers reads, by their bytes: no objects are made of them.

    Raises:
        CheckpointError: more values or more added tokens than any published tokenizer has.
        OSError: a file cannot be read.
    """
    for path in (folder / name for name in _FILES):
        if not path.is_file():
            continue
        text = path.read_bytes()
        # Each value follows one of these. Those inside of strings are counted too: real files have few.
        values = sum(map(text.count, (b",", b":", b"[", b"{")))
        if values > MOST_VALUES:
            raise CheckpointError(f"holds more than {MOST_VALUES} values", field=str(path), value=values)
        # An added token is an object with this key; in added_tokens.json, which older models have, a key alone.
        added = text.count(b":") if path.name == "added_tokens.json" else text.count(b'"content"')
        if added > MOST_ADDED:
            raise CheckpointError(f"holds more than {MOST_ADDED} added tokens", field=str(path), value=added)


def check_ids(vocabulary: Mapping[str, int], where: str) -> None:
    """Raises CheckpointError for an id so high that the gaps below it cost hours to walk."""
    highest = max(vocabulary.values(), default=0)
    if highest >= MOST_TOKENS:
        raise CheckpointError(f"gives a token an id above {MOST_TOKENS - 1}", field=where, value=highest)


def check_processor(backend: Any, where: str) -> None:
    """Checks that a text stays itself once special tokens are put around it.

    Args:
        backend: a `tokenizers.Tokenizer`.

    Raises:
        CheckpointError: more tokens around a text than any model has, or a text that is repeated.
    """
    field = f"{where}: post_processor"
    if backend.post_processor is None:
        return
    around = backend.num_special_tokens_to_add(False)
    if around > MOST_AROUND:
        raise CheckpointError(f"puts more than {MOST_AROUND} tokens around a text", field=field, value=around)
    found = list(_processors(json.loads(backend.post_processor.__getstate__())))
    if len(found) > MOST_PROCESSORS:
        raise CheckpointError(f"has more than {MOST_PROCESSORS} parts", field=field, value=len(found))
    for processor in found:
        repeated = sum("Sequence" in piece for piece in processor.get("single", ()))
        if repeated > 1:
            raise CheckpointError("repeats the text", field=field, value=repeated)


def _processors(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield state
    for part in state.get("processors", ()):
        yield from _processors(part)


@contextmanager
def failures_named(where: str, failing: str, fix: str | None = None) -> Iterator[None]:
    """Turns failures of the Rust tokenizers inside into CheckpointError with the field `where`.

    They raise bare Exception, and where their code panics, an exception that is no Exception and would end a thread.

    Args:
        failing: what the error says before the library's reason.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{failing}: {(reason or [type(error).__name__])[0][:300]}", field=where, fix=fix
        ) from error
