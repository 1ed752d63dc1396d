"""Names of the parts that a GGUF file is split into: `model-00001-of-00003.gguf`, as `llama-gguf-split` writes them."""

import re
from collections.abc import Iterable
from pathlib import PurePath

from plimsoll.api.errors import CheckpointError

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
#: Far beyond any real model, near enough to keep a hostile name cheap.
MAX_PARTS = 1024


def part_names(name: str) -> list[str]:
    """All parts of the split file that `name` is one of, in order and with its folders; else `name` alone."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 1
    if match is None or not 1 < count <= MAX_PARTS or not 1 <= int(match["number"]) <= count:
        return [name]
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def whole_files(names: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF files among `names`: the first part's name to the names of the parts that are there."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf"):
            found.setdefault(part_names(name)[0], []).append(name)
    return found


def checked_parts(name: str, given: Iterable[str], where: str) -> list[str]:
    """`part_names`, all of which are among `given`.

    Raises:
        CheckpointError: parts are missing; they are named.
    """
    parts, there = part_names(name), set(given)
    missing = [PurePath(part).name for part in parts if part not in there]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(
            f"{len(missing)} of the {len(parts)} parts of this split GGUF are not there: {shown}", field=where,
            fix="Complete the download; all parts belong into one folder",
        )  # fmt: skip
    return parts
