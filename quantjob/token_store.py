"""Tokens of a job that was interrupted: text that the model wrote is not sampled twice."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.checkpoint.complete import write_durably
from plimsoll.checkpoint.json_file import read_object
from plimsoll.quantjob.data import Tokens, tokens_of

NAME = "tokens.json"
Pair = tuple[Tokens | None, Tokens | None]


def stored_tokens(folder: Path, key: str, make: Callable[[], Pair]) -> Pair:
    """What `make` gave for `key` before, or gives now. Raises what `make` raises, and OSError."""
    found = _load(folder, key)
    if found is not None:
        return found
    made = make()
    described: dict[str, Any] = {"key": key, "sets": []}
    for index, tokens in enumerate(made):
        described["sets"].append(None if tokens is None else {"digest": tokens.digest, "source": tokens.source})
        if tokens is not None:
            with open(folder / f"tokens-{index}.npy", "wb") as file:
                np.save(file, tokens.windows)
                file.flush()
                os.fsync(file.fileno())
    write_durably(folder / NAME, described)
    return made


def _load(folder: Path, key: str) -> Pair | None:
    if not (folder / NAME).is_file():
        return None
    described = read_object(folder / NAME)
    if described.get("key") != key:
        return None
    sets: list[Tokens | None] = []
    for index, entry in enumerate(described["sets"]):
        if entry is None:
            sets.append(None)
            continue
        try:
            tokens = tokens_of(np.load(folder / f"tokens-{index}.npy", allow_pickle=False), entry["source"])
        except (OSError, ValueError):
            return None
        if tokens.digest != entry["digest"]:
            return None
        sets.append(tokens)
    return sets[0], sets[1]
