"""Texts out of files: plain text, JSON records, tables and Parquet, read as far as they are wanted."""

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from plimsoll.api.errors import SpecError
from plimsoll.checkpoint.json_file import MAX_JSON_VALUES
from plimsoll.quantjob.allowance import Allowance, Counted
from plimsoll.quantjob.columns import columns_of

#: A line of records longer than this is no record.
LONGEST_LINE = 32 << 20
#: Whole-file JSON is held in memory; lines and Parquet are not.
LONGEST_JSON = 64 << 20
#: The first line of a table, and its columns.
LONGEST_HEAD = 1 << 20
MOST_COLUMNS = 1 << 16
READ = 1 << 20
TEXT = (".txt", ".md")
RECORDS = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
KINDS = (*TEXT, *RECORDS, *TABLES, ".parquet")
#: Names of files that hold no prose and that are not taken apart here. A file of any other name is read as text.
NOT_PROSE = (
    ".arrow", ".avro", ".bin", ".bz2", ".db", ".docx", ".feather", ".htm", ".html", ".npy", ".npz", ".ods", ".orc",
    ".pdf", ".pickle", ".pkl", ".psv", ".safetensors", ".sqlite", ".tar", ".tgz", ".xls", ".xlsx", ".xml", ".xz",
    ".yaml", ".yml", ".zip", ".zst",
)  # fmt: skip
FIELDS = "text, messages, conversations, prompt and completion, or instruction and output"
#: The fix of what is no record.
ONE_A_LINE = 'Write one object a line: {"text": "…"}'
#: ShareGPT's speakers as roles of a chat template.
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
            "model": "assistant", "function_call": "assistant", "observation": "tool"}  # fmt: skip

Message = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """One text, or one conversation for the model's chat template.

    Attributes:
        where: the file and the line or row, for messages to people.
        continues: it is a further part of the text before it.
        plain: the same as plain text, for a model without a chat template; None where there is no such form.
    """

    content: str | list[Message]
    where: str
    continues: bool = False
    plain: str | None = None


def is_data(name: str) -> bool:
    """Whether a file of this name is of a kind that is read here."""
    return name.lower().removesuffix(".gz").endswith(KINDS)


def data_files(path: Path, field: str) -> list[Path]:
    """The file itself, or what a folder holds, in the order of the names; hidden entries are left out.

    A ConfigMap's folder holds links into `..data`; each is read once, by its own name.

    Raises:
        SpecError: nothing there, or nothing that can be read here.
    """
    try:
        if path.is_file():
            _refuse_other_kinds(path, field)
            return [path]
        if not path.is_dir():
            what = "is neither a file nor a folder" if path.exists() else "there is no such file or folder"
            raise SpecError(what, field=field, value=str(path), fix="Check the path")
        found, others = [], []
        for folder, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files = [Path(folder, name) for name in names if not name.startswith(".")]
            found += [file for file in files if is_data(file.name) and file.is_file()]
            _refuse_links_out(path, found)
            others += [file.name for file in files if not is_data(file.name)]
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot be read: {_reason(error)}", field=field, value=str(path)) from None
    if not found:
        held = f"; it holds {', '.join(sorted(others)[:5])}" if others else "; it is empty"
        raise SpecError(
            f"holds no file of a kind that is read here{held}", field=field, value=str(path),
            fix=f"Give files that end in {', '.join(KINDS)}, with .gz behind it where they are packed",
        )  # fmt: skip
    return sorted(found)


def _refuse_links_out(folder: Path, files: Sequence[Path]) -> None:
    """Raises OSError for a link that leads out of `folder`. Those of a hub's cache, to its `blobs`, are usual."""
    home = Path(os.path.realpath(folder))
    inside = [home, *(place.parent / "blobs" for place in (home, *home.parents) if place.name == "snapshots")]
    for file in files:
        if file.is_symlink() and not any(Path(os.path.realpath(file)).is_relative_to(place) for place in inside):
            raise OSError(f"{file.name} is a link that leads out of the folder; put a copy of the file in its place")


def _refuse_other_kinds(path: Path, field: str) -> None:
    """Raises SpecError for a file that is named outright and holds no prose: its markup would be what is learned."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in NOT_PROSE:
        raise SpecError(
            f"is a {kind} file, which holds no plain text", field=field, value=str(path),
            fix=f"Give the texts as {', '.join(KINDS)}",
        )  # fmt: skip


def documents(path: Path, field: str, allowance: Allowance | None = None) -> Iterator[Document]:
    """Every text of one file, in order. A text file is one text, in parts of about a megabyte.

    Args:
        allowance: what may be read of all files together; by default of this one.

    Raises:
        SpecError: it cannot be read, is not what its name says, or a record has no text; the line or row is named.
    """
    allowed = allowance or Allowance(field)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if kind == ".parquet":
            yield from _parquet(path, allowed)
            return
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            stream = io.BufferedReader(Counted(cast(BinaryIO, file), allowed, path), READ)
            if kind in RECORDS:
                yield from _records(stream, path, allowed, whole=kind == ".json")
            elif kind in TABLES:
                yield from _table(stream, path, allowed)
            else:
                yield from _plain(stream, path, allowed)
    except (OSError, EOFError, zlib.error) as error:
        raise allowed.wrong(f"cannot be read: {_reason(error)}", path) from None


def _plain(file: BinaryIO, path: Path, allowed: Allowance) -> Iterator[Document]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = given = 0
    while True:
        data = file.read(READ)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_text(path, allowed, f"at byte {done + error.start - len(decoder.getstate()[0])}") from None
        done += len(data)
        if text:
            yield Document(text, str(path), continues=given > 0)
            given += 1
        if not data:
            return


def _records(file: BinaryIO, path: Path, allowed: Allowance, *, whole: bool) -> Iterator[Document]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        allowed.take_rows(1, path)
        if number == 1 and whole and line.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _array(line + file.read(LONGEST_JSON + 1), path, allowed)
            return
        where = f"{path}, line {number}"
        if len(line) > LONGEST_LINE:
            raise allowed.wrong(f"line {number} is longer than {LONGEST_LINE >> 20} MiB", path)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise _not_text(path, allowed, f"in line {number}") from None
        if text:
            yield from _document(_json(text, where, allowed), where, allowed)


def _table(file: BinaryIO, path: Path, allowed: Allowance) -> Iterator[Document]:
    """Rows of a table with a header, apart by commas, semicolons or tabs."""
    csv.field_size_limit(LONGEST_LINE)
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        head = text.readline(LONGEST_HEAD)
        mark = max(",;\t", key=head.count)
        names = next(csv.reader([head], delimiter=mark), [])
        wanted = columns_of([name.strip() for name in names])
        if not wanted:
            held = ", ".join(name[:40] for name in names[:12]) or "nothing"
            message = f"has no column {FIELDS}; it has {held}"
            raise allowed.wrong(message, path, "Name the column of the texts `text`, in the first line")
        places = {name: [found.strip() for found in names].index(name) for name in wanted}
        lines = _Lines(text, mark, path, allowed)
        reader = csv.reader(lines, delimiter=mark)
        for row in reader:
            lines.begin_row()
            record = {name: row[place] for name, place in places.items() if place < len(row)}
            if record:
                yield from _document({**dict.fromkeys(wanted), **record}, f"{path}, row {reader.line_num + 1}", allowed)
    except UnicodeDecodeError:
        raise _not_text(path, allowed, "in a row") from None
    except csv.Error as error:
        raise allowed.wrong(f"is not a table that can be read: {error}", path) from None


class _Lines:
    """Lines of a table, as many as a row of bounded length and columns has: the csv module holds a whole row."""

    def __init__(self, file: io.TextIOWrapper, mark: str, path: Path, allowed: Allowance) -> None:
        self._file, self._mark, self._path, self._allowed = file, mark, path, allowed
        self.begin_row()

    def begin_row(self) -> None:
        self._left, self._columns = LONGEST_LINE, MOST_COLUMNS

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self._allowed.take_rows(1, self._path)
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise csv.Error(f"a row is longer than {LONGEST_LINE >> 20} Mi characters")
        # Within quotes a mark is text.
        self._columns -= 0 if '"' in line else line.count(self._mark)
        if self._columns < 0:
            raise csv.Error(f"a row has more than {MOST_COLUMNS} columns")
        if not line:
            raise StopIteration
        return line


def _array(data: bytes, path: Path, allowed: Allowance) -> Iterator[Document]:
    if len(data) > LONGEST_JSON:
        message = f"is one JSON array of more than {LONGEST_JSON >> 20} MiB"
        raise allowed.wrong(message, path, "Write one record a line, as .jsonl")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, allowed, f"at byte {error.start}") from None
    for index, record in enumerate(_json(text, str(path), allowed)):
        yield from _document(record, f"{path}, record {index + 1}", allowed)


def _json(text: str, where: str, allowed: Allowance) -> Any:
    # Each value but the first follows one of these, and takes some fifty bytes of memory.
    if sum(map(text.count, ",:[{")) > MAX_JSON_VALUES:
        fix = "Write one record a line, as .jsonl, and leave out what is no text"
        raise allowed.wrong(f"is JSON of more than {MAX_JSON_VALUES} values", where, fix)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"is not JSON ({error.msg}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else None
        raise allowed.wrong(what or "is not JSON that can be read", where, ONE_A_LINE) from None


def _parquet(path: Path, allowed: Allowance) -> Iterator[Document]:
    from plimsoll.quantjob.parquet_rows import parquet_rows

    if find_spec("pyarrow") is None:
        fix = "Install plimsoll[quant], or give the texts as .jsonl"
        raise allowed.wrong("is Parquet, and pyarrow is not installed", path, fix)
    for row, record in enumerate(parquet_rows(path, allowed.field, LONGEST_LINE), 1):
        if isinstance(record, list):
            message = f"has no column {FIELDS}; it has {', '.join(record)}"
            raise allowed.wrong(message, path, "Name the column of the texts `text`")
        allowed.take_rows(1, path)
        yield from _document(record, f"{path}, row {row}", allowed)


def _document(record: Any, where: str, allowed: Allowance) -> Iterator[Document]:
    """The record's text, if it is not empty."""
    if not isinstance(record, Mapping):
        raise allowed.wrong(f"is no object but {type(record).__name__}", where, ONE_A_LINE)
    columns = columns_of(list(record))
    if not columns:
        keys = ", ".join(str(key)[:40] for key in list(record)[:12]) or "nothing"
        raise allowed.wrong(f"has no field {FIELDS}; it has {keys}", where, "Rename the one that holds the text")
    values = {name: record[name] for name in columns}
    found = _content(values, where, allowed)
    content = found.content
    if content and (not isinstance(content, str) or content.strip()):
        yield found


def _content(values: Mapping[str, Any], where: str, allowed: Allowance) -> Document:
    def text(name: str) -> str:
        return _string(values.get(name), name, where, allowed)

    if "text" in values:
        return Document(text("text"), where)
    if "messages" in values:
        return Document(_messages(values["messages"], "messages", where, allowed), where)
    if "conversations" in values:
        return Document(_messages(_roles(values["conversations"]), "conversations", where, allowed), where)
    if "instruction" in values:
        asked = "\n\n".join(filter(str.strip, (text("instruction"), text("input"))))
        if not asked.strip() and not text("output").strip():
            return Document("", where)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": text("output")}]
        return Document(turns, where, plain=f"{asked}\n\n{text('output')}")
    if any(isinstance(value, list) for value in values.values()):
        return Document([m for name, value in values.items() for m in _messages(value, name, where, allowed)], where)
    return Document("".join(text(name) for name in values), where)


def _roles(value: Any) -> Any:
    """ShareGPT's turns (`from` and `value`) as messages; anything else as it is."""
    if not isinstance(value, list):
        return value
    found = []
    for turn in value:
        if isinstance(turn, Mapping) and "role" not in turn and isinstance(speaker := turn.get("from"), str):
            turn = {"role": SPEAKERS.get(speaker.lower(), speaker.lower()), "content": turn.get("value")}
        found.append(turn)
    return found


def _string(value: Any, name: str, where: str, allowed: Allowance) -> str:
    if value is not None and not isinstance(value, str):
        raise allowed.wrong(f"{name} is no text but {type(value).__name__}", where)
    return value or ""


def _messages(value: Any, name: str, where: str, allowed: Allowance) -> list[Message]:
    """Messages with `role` and `content`; of content in parts, the text parts."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise allowed.wrong(f"{name} is no list but {type(value).__name__}", where)
    found = []
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise allowed.wrong(f"{name}[{index}] is no message with role and content", where)
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            content = "".join(part for part in parts if isinstance(part, str))
            if not all(isinstance(part, str) for part in parts):
                raise allowed.wrong(f"{name}[{index}].content has parts that are no text", where)
        found.append({**message, "content": _string(content, f"{name}[{index}].content", where, allowed)})
    return found


def _not_text(path: Path, allowed: Allowance, where: str) -> SpecError:
    return allowed.wrong(f"is not UTF-8 text ({where})", path, "Convert it to UTF-8")


def _refuse(error: OSError) -> None:
    raise error


def _reason(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
