"""The lines of a stream of server-sent events.

Only CR, LF and both together end a line there. Python's text methods, and httpx with them, also split at U+2028, U+2029
and U+0085, which are ordinary characters of an answer.
"""

import re

_ENDS = re.compile(rb"\r\n|\n|\r(?!\Z)")
#: Bytes of one line that has not ended yet: no chunk of an answer is so long.
MAX_LINE = 64 << 20


class EventLines:
    """Cuts bytes that come in any pieces into the `data` of each line. Raises ValueError for a line without an end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[str]:
        """The data of every line that `received` completes."""
        *lines, self._rest = _ENDS.split(self._rest + received)
        if len(self._rest) > MAX_LINE:
            raise ValueError("a line of the stream never ends")
        return _data(lines)

    def close(self) -> list[str]:
        """The data of a last line that the server did not end."""
        rest, self._rest = self._rest, b""
        return _data([rest])


def _data(lines: list[bytes]) -> list[str]:
    # The space after the colon is optional in the format.
    return [line[5:].decode("utf-8", "replace").strip() for line in lines if line.startswith(b"data:")]
