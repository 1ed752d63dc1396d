"""The lines of a stream of server-sent events.

Only CR, LF and both together end a line there. Python's text methods, and httpx with them, also split at U+2028, U+2029
and U+0085, which are ordinary characters of an answer.
"""

import re

_ENDS = re.compile(rb"\r\n|\n|\r(?!\Z)")
#: Bytes of one line: no chunk of an answer is so long.
MAX_LINE = 4 << 20
#: Bytes of a whole stream: a million tokens take a third of it.
MAX_STREAM = 1 << 30


class EventLines:
    """Cuts bytes that come in any pieces into the `data` of each line.

    Raises ValueError for a line longer than `MAX_LINE` and a stream longer than `MAX_STREAM`.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        """A line that has not ended. It is searched and cut once, when it ends."""
        self._seen = 0

    def feed(self, received: bytes) -> list[str]:
        """The data of every line that `received` completes."""
        self._seen += len(received)
        if self._seen > MAX_STREAM:
            raise ValueError("the stream never ends")
        ends = self._rest.endswith(b"\r") or b"\n" in received or b"\r" in received
        self._rest += received
        lines: list[bytes] = []
        if ends:
            *lines, last = _ENDS.split(bytes(self._rest))
            self._rest = bytearray(last)
        if max(len(self._rest), *map(len, lines), 0) > MAX_LINE:
            raise ValueError("a line of the stream never ends")
        return _data(lines)

    def close(self) -> list[str]:
        """The data of a last line that the server did not end."""
        rest, self._rest = bytes(self._rest), bytearray()
        return _data([rest])


def _data(lines: list[bytes]) -> list[str]:
    # The space after the colon is optional in the format.
    return [line[5:].decode("utf-8", "replace").strip() for line in lines if line.startswith(b"data:")]
