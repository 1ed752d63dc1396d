"""The text of a manifest from a file or from standard input, and never more of it than a manifest may hold."""

import sys
from pathlib import Path

from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import MAX_BYTES


def read_manifest(file: str) -> tuple[str, str]:
    """(text, what errors call it); `-` is standard input. Raises SpecError where it is no readable text."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"cannot be read: {reason}", field="--file", value=file) from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"is larger than {MAX_BYTES} bytes", field="--file", value=file)
    try:
        return data.decode(), "stdin" if file == "-" else file
    except UnicodeDecodeError:
        raise SpecError("is not UTF-8 text", field="--file", value=file) from None
