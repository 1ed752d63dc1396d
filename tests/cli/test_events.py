"""Lines of a stream end where the format says, and nowhere else."""

import pytest

from plimsoll.cli.events import EventLines

TEXT = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1c日本"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_carriage_returns_and_newlines_end_a_line(size: int, end: str) -> None:
    sent = f": a comment{end}data: {TEXT}{end}{end}event: x{end}data:no space{end}{end}data: [DONE]".encode()
    lines = EventLines()
    found = [data for start in range(0, len(sent), size) for data in lines.feed(sent[start : start + size])]
    assert found + lines.close() == [TEXT, "no space", "[DONE]"]
