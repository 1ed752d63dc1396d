"""One GGUF file, or all parts of a split one: its metadata and tensor table, strictly checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Parsed here and not
by `gguf.GGUFReader`, which makes an array object of every vocabulary entry (seconds for a small model) and trusts
counts and offsets; the `gguf` package still tells block sizes and dequantizes.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_split import checked_parts, part_names

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: Far beyond any real file, near enough to keep a hostile one cheap.
MAX_ENTRIES = 1 << 16
MAX_ARRAY = 1 << 22
MAX_TEXT_BYTES = 16 * 1024 * 1024
#: Of all strings outside of arrays together.
MAX_TEXTS_BYTES = 64 * 1024 * 1024
MAX_RANK = 4

_STRING, _ARRAY = 8, 9
#: struct codes of the scalar value types, by number.
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class ArrayField:
    """A metadata array left in the file: `count` elements of value type `kind` from byte `start`."""

    kind: int
    count: int
    start: int

    def __repr__(self) -> str:
        return f"an array of {self.count}"


@dataclass(frozen=True)
class GgufTensor:
    """`shape` rows first, as in numpy; `start` and `nbytes` in bytes of `path`; `kind` is the ggml type number."""

    path: Path
    name: str
    kind: int
    type_name: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def block(self) -> tuple[int, int]:
        """(elements, bytes) of a block."""
        _, elements, nbytes = block_layout(self.kind, self.name)
        return elements, nbytes


TensorRow = tuple[str, int, tuple[int, ...], int]
"""One entry of the tensor table: name, ggml type, shape with rows first, offset into the data."""


class Cursor:
    """Reads little-endian values from a mapped file and never past its end."""

    def __init__(self, data: mmap.mmap | bytes, where: str) -> None:
        self.data = data
        self.size = len(data)
        self.where = where
        self.at = 0
        self.text_bytes = 0

    def fail(self, message: str, value: object = None) -> CheckpointError:
        """The error for a damaged file, with the byte that it was found at."""
        return CheckpointError(
            f"{message} at byte {self.at}", field=self.where, value=value, fix="The file is damaged; download it again"
        )

    def scalar(self, code: str) -> Any:
        """The next value, by its `struct` code. Raises CheckpointError at the end of the file."""
        layout = "<" + code
        end = self.at + struct.calcsize(layout)
        if end > self.size:
            raise self.fail("ends inside its header")
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at = end
        return value

    def count(self, what: str, limit: int) -> int:
        """The next 64-bit count of `what`. Raises CheckpointError for more than `limit`."""
        value = int(self.scalar("Q"))
        if value > limit:
            raise self.fail(f"counts more {what} than the {limit} allowed", value)
        return value

    def text(self) -> str:
        """The next string. Raises CheckpointError where it is too long, cut or not UTF-8."""
        length = self.count("bytes in a string", MAX_TEXT_BYTES)
        end = self.at + length
        if end > self.size:
            raise self.fail("ends inside a string")
        self.text_bytes += length
        if self.text_bytes > MAX_TEXTS_BYTES:
            raise self.fail(f"holds more than {MAX_TEXTS_BYTES} bytes of strings")
        raw = self.data[self.at : end]
        self.at = end
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("holds a string that is not UTF-8", raw[:40]) from None

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings. Raises CheckpointError where they end past the file."""
        data, at, size = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                break
            at += 8 + unpack(data, at)[0]
        else:
            if at <= size:
                self.at = at
                return
        raise self.fail("ends inside an array of strings")

    def value(self) -> Any:
        """The next metadata value; an array as an `ArrayField`. Raises CheckpointError."""
        kind = self.scalar("I")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.fail("has metadata of an unknown type", kind)
        element = self.scalar("I")
        count = self.count("array elements", MAX_ARRAY)
        field = ArrayField(element, count, self.at)
        if element == _STRING:
            self.skip_strings(count)
        elif element in _SCALARS:
            self.at += count * struct.calcsize("<" + _SCALARS[element])
            if self.at > self.size:
                raise self.fail("ends inside an array")
        else:
            raise self.fail("has an array of an unknown type", element)
        return field


class GgufFile:
    """Metadata and tensor table of one file. The constructor checks all of it and reads no weights.

    Attributes:
        path: the file; of a split one its first part, which has the metadata.
        parts: every file, in order.
        metadata: scalars and strings by key; arrays as `ArrayField`, read by `array`.
        tensors: by GGUF name, in file order.

    Raises:
        CheckpointError: wrong magic, version or byte order; counts, strings, offsets or sizes that leave the file;
            a block type the `gguf` package does not know; parts that are missing or do not belong together.
    """

    def __init__(self, path: Path) -> None:
        """Args: path: the file, or any part of a split one."""
        self.path = path
        self.parts: tuple[Path, ...] = (path,)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._read(path, self.metadata)
        count = _split_count(self.metadata, path)
        if count > 1:
            self._join(count)

    def _join(self, count: int) -> None:
        """Reads all parts of a split file. The first has the metadata, the others only say which part they are."""
        names = part_names(self.path.name)
        if len(names) != count:
            raise CheckpointError(
                f"is one of {count} parts, and its name does not say which", field=str(self.path),
                fix=f"Name the parts NAME-00001-of-{count:05d}.gguf and so on, in one folder",
            )  # fmt: skip
        folder = self.path.parent
        checked_parts(self.path.name, [name for name in names if (folder / name).is_file()], str(self.path))
        self.parts = tuple(folder / name for name in names)
        self.path = self.parts[0]
        tensors: dict[str, GgufTensor] = {}
        for number, part in enumerate(self.parts):
            metadata: dict[str, Any] = {}
            self.tensors = {}
            self._read(part, metadata)
            if number == 0:
                self.metadata = metadata
            if _split_count(metadata, part) != count or repr(metadata.get("split.no")) != str(number):
                raise CheckpointError(
                    f"is not part {number + 1} of {count}", field=f"{part}: split.no", value=metadata.get("split.no"),
                    fix="The parts are of different files, or were renamed; download them again",
                )  # fmt: skip
            for name in tensors.keys() & self.tensors.keys():
                raise CheckpointError(f"has tensor {name[:80]!r} of another part", field=str(part))
            tensors |= self.tensors
        self.tensors = tensors
        total = self.metadata.get("split.tensors.count", len(self.tensors))
        if total != len(self.tensors):
            raise CheckpointError(
                f"is not the number of tensors in the parts, {len(self.tensors)}",
                field=f"{self.path}: split.tensors.count", value=short(total), fix="Download all parts again",
            )  # fmt: skip

    def _read(self, path: Path, metadata: dict[str, Any]) -> None:
        with _mapped(path) as data:
            self._read_header(Cursor(data, str(path)), path, metadata)

    def _read_header(self, cursor: Cursor, path: Path, metadata: dict[str, Any]) -> None:
        rows, data_start, alignment = read_table(cursor, metadata)
        for name, kind, shape, offset in rows:
            if name in self.tensors:
                raise cursor.fail(f"has tensor {name[:80]!r} twice")
            if offset % alignment:
                raise CheckpointError(
                    f"starts at {offset}, not a multiple of {alignment}", field=f"{path}: tensor {name[:80]!r}"
                )
            self.tensors[name] = _place(path, name, kind, shape, data_start + offset, cursor.size)

    def array(self, key: str) -> list[Any] | None:
        """All elements of a metadata array; None where there is no such array.

        Raises:
            CheckpointError: a string in it is not UTF-8 or leaves the file.
        """
        field = self.metadata.get(key)
        if not isinstance(field, ArrayField):
            return None
        with _mapped(self.path) as data:
            if field.kind == _STRING:
                return list(_strings(data, field, f"{self.path}: {key}"))
            layout = f"<{field.count}{_SCALARS[field.kind]}"
            if field.start + struct.calcsize(layout) > len(data):
                raise CheckpointError("became shorter while it was read", field=str(self.path))
            return list(struct.unpack_from(layout, data, field.start))


def _split_count(metadata: Mapping[str, Any], path: Path) -> int:
    """Parts that the file is split into; 1 for a whole one. Raises CheckpointError."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise CheckpointError("must be a number of parts", field=f"{path}: split.count", value=count)
    return max(count, 1)


def _place(path: Path, name: str, kind: int, shape: tuple[int, ...], start: int, file_size: int) -> GgufTensor:
    field = f"{path}: tensor {name[:80]!r}"
    type_name, block, block_bytes = block_layout(kind, field)
    if min(shape) < 1 or shape[-1] % block:
        raise CheckpointError(f"has a shape that {type_name} blocks of {block} cannot hold", field=field, value=shape)
    nbytes = prod(shape) // block * block_bytes
    if start + nbytes > file_size:
        raise CheckpointError(
            f"needs bytes up to {start + nbytes}, the file holds {file_size}",
            field=field,
            fix="The file is truncated; download it again",
        )
    return GgufTensor(path, name, kind, type_name, shape, start, nbytes)


def read_table(cursor: Cursor, metadata: dict[str, Any]) -> tuple[list[TensorRow], int, int]:
    """(the rows of the tensor table, the byte that their offsets count from, the alignment of offsets).

    Args:
        metadata: gets the file's.

    Raises:
        CheckpointError: magic, version, byte order, a count or a key makes no sense, or the header leaves the file.
    """
    if cursor.size < 24:
        raise cursor.fail(f"holds {cursor.size} bytes, too few for a GGUF header,")
    if cursor.data[:4] != MAGIC:
        raise CheckpointError("is not a GGUF file", field=cursor.where, value=cursor.data[:4], fix="Check the path")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise CheckpointError(
            "is a big-endian GGUF file" if big_endian else "has a GGUF version that cannot be read",
            field=cursor.where,
            value=version,
            fix=f"Write it little-endian, version {VERSIONS[-1]}, with llama.cpp's tools",
        )
    tensor_count = cursor.count("tensors", MAX_ENTRIES)
    entry_count = cursor.count("metadata entries", MAX_ENTRIES)
    for _ in range(entry_count):
        key = cursor.text()
        if key in metadata:
            raise cursor.fail(f"has metadata key {key[:80]!r} twice")
        metadata[key] = cursor.value()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise CheckpointError("must be a power of two", field=f"{cursor.where}: general.alignment", value=alignment)
    rows = [_tensor_row(cursor) for _ in range(tensor_count)]
    return rows, -(-cursor.at // alignment) * alignment, alignment


def _tensor_row(cursor: Cursor) -> TensorRow:
    name = cursor.text()
    rank = cursor.scalar("I")
    if not 1 <= rank <= MAX_RANK:
        raise cursor.fail(f"gives tensor {name[:80]!r} an impossible number of dimensions", rank)
    # ggml writes the fastest dimension first; numpy and Hugging Face want it last.
    shape = tuple(cursor.scalar("Q") for _ in range(rank))[::-1]
    return name, cursor.scalar("I"), shape, cursor.scalar("Q")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError("is empty", field=str(path), fix="Download it again") from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", field=str(path), fix="Check the path") from None


def _strings(data: mmap.mmap, field: ArrayField, where: str) -> Iterator[str]:
    unpack = struct.Struct("<Q").unpack_from
    at, size = field.start, len(data)
    for index in range(field.count):
        end = at + 8 + (unpack(data, at)[0] if at + 8 <= size else size)
        if end > size:
            raise CheckpointError(f"element {index} leaves the file", field=where)
        try:
            yield data[at + 8 : end].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"element {index} is not UTF-8", field=where, value=data[at + 8 : min(end, at + 48)]
            ) from None
        at = end


def block_layout(kind: int, field: str) -> tuple[str, int, int]:
    """(type name, elements per block, bytes per block) of a ggml type that can be dequantized.

    Raises:
        CheckpointError: a type the `gguf` package does not know or cannot dequantize.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        ggml_type = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        raise CheckpointError("has a block type the gguf package does not know", field=field, value=kind) from None
    if ggml_type not in readable_types():
        raise CheckpointError(
            "has a block type that cannot be dequantized",
            field=field,
            value=ggml_type.name,
            fix="Readable: " + " ".join(sorted(known.name for known in readable_types())),
        )
    return ggml_type.name, int(block), int(block_bytes)


@cache
def readable_types() -> frozenset[Any]:
    """The `GGMLQuantizationType`s the installed `gguf` package can turn into float32."""
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    return frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F16, *quants._type_traits})
