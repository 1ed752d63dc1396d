"""How much of a dataset is read: what is packed, or holds no text, may go on for ever."""

import io
from pathlib import Path
from typing import BinaryIO

from plimsoll.api.errors import SpecError

#: Unpacked bytes, and rows with and without text, of all files of a dataset together.
MOST_BYTES = 1 << 30
MOST_ROWS = 1 << 22


class Allowance:
    """What may still be read of one dataset. `field` is what errors call the dataset."""

    def __init__(self, field: str, most_bytes: int = MOST_BYTES, most_rows: int = MOST_ROWS) -> None:
        self.field = field
        self._bytes, self._rows = [most_bytes, most_bytes], [most_rows, most_rows]

    def take_bytes(self, count: int, path: Path) -> None:
        """Raises SpecError, naming the file, where the dataset has no more than was allowed."""
        self._take(self._bytes, count, "unpacked bytes", path)

    def take_rows(self, count: int, path: Path) -> None:
        """The same for lines of records and rows of tables."""
        self._take(self._rows, count, "rows", path)

    def _take(self, left: list[int], count: int, what: str, path: Path) -> None:
        left[0] -= count
        if left[0] < 0:
            message = f"more than {left[1]} {what} were read, and they hold too little text"
            raise self.wrong(message, path, "Give a file of texts alone, without what is not read of it")

    def wrong(self, message: str, where: object, fix: str | None = None) -> SpecError:
        """What is wrong with a file of the dataset, or with a line or row of it."""
        return SpecError(message, field=self.field, value=str(where), fix=fix)


class Counted(io.RawIOBase):
    """An open file, whose bytes are taken from an allowance as they are read."""

    def __init__(self, file: BinaryIO, allowance: Allowance, path: Path) -> None:
        self._file, self._allowance, self._path = file, allowance, path

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(into))
        self._allowance.take_bytes(len(data), self._path)
        into[: len(data)] = data
        return len(data)
