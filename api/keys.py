"""API keys as a file holds them: one a line; blank lines and lines that start with `#` are none."""

from collections.abc import Iterable

from plimsoll.api.errors import SpecError

BOM = b"\xef\xbb\xbf"


def read_keys(data: bytes, *, field: str, where: str) -> list[str]:
    """The keys of a file, in its order; a byte-order mark in front is no part of the first.

    Args:
        data: what the file holds.
        field: the option or manifest field that names the file.
        where: the file's path, for messages. A key itself is never repeated.

    Raises:
        SpecError: a key holds what no HTTP header can carry as it is, or the file is not UTF-8 text.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SpecError("is UTF-16 text", field=field, value=where, fix="Save the file as UTF-8")
    found = []
    for number, raw in enumerate(data.removeprefix(BOM).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        if not is_sendable(line):
            raise SpecError(
                f"the key in line {number} holds a character that a header cannot carry", field=field, value=where,
                fix="Use letters, digits and punctuation of ASCII alone",
            )  # fmt: skip
        found.append(line.decode("ascii"))
    return found


def is_sendable(key: Iterable[int]) -> bool:
    """Whether a key arrives as it was sent: printable ASCII, as clients differ in how they write anything else."""
    return all(0x20 <= byte < 0x7F for byte in key)
