"""What a source holds, wherever it lies: a list of files with sizes, and bytes of them from any offset."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_split import checked_parts, whole_files

#: What serving needs of a folder: never pickles, never code.
NEEDED = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja")
#: Second copies of the weights in their authors' own layout, and everything in subfolders.
EXTRAS = ("consolidated*", "*/*")
#: Bytes of one read of a stream.
PIECE = 1 << 20
#: More files than any checkpoint has: a whole bucket was named, or the list has no end.
MOST_FILES = 20_000
#: Bytes of one file: 1 PiB.
MOST_BYTES = 1 << 50
#: What filesystems take as a name.
_LONGEST_NAME = 255
#: Seconds of waiting after which a connection must have brought `LEAST_BYTES`; a slower one is given up.
WINDOW = 30.0
LEAST_BYTES = 32 << 10


class Hasher(Protocol):
    """The part of hashlib's objects that is used here."""

    def update(self, data: Any, /) -> None:
        """Add bytes to the hash."""

    def hexdigest(self) -> str:
        """The hash so far, as hexadecimal digits."""


@dataclass(frozen=True)
class RemoteFile:
    """One file: `name` relative to the source, with slashes; `tag` changes whenever its content does.

    `checksum` is `sha256:…` or `gitblob:…` of the content where the store tells one, or `md5?:…` where it may be one.
    """

    name: str
    size: int
    tag: str
    checksum: str | None = None


class TransferError(CheckpointError):
    """A transfer broke off in a way that trying again may mend."""


class Remote(ABC):
    """One source, resolved: what it holds does not change between calls, or a read says so.

    Attributes:
        label: the source as the user knows it, with the revision that was found.
        revision: what it resolves to for good; None where only the digest of its headers tells.
        path: the GGUF file that the source names, or the first part of a split one, or ``.
        files: those that serving needs, by name.
    """

    label: str
    revision: str | None
    path: str
    files: Sequence[RemoteFile]

    def stream(self, file: RemoteFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes [start, stop) of `file`, in pieces, without seeking; never more, however much is sent.

        Raises:
            TransferError: the connection broke or hardly brings anything, or the service is busy.
            CheckpointError: no access, no such file any more, or it has changed.
        """
        stop = file.size if stop is None else min(stop, file.size)
        if start >= stop:
            return
        missing, waited, came = stop - start, 0.0, 0
        asked = time.monotonic()
        for piece in self._pieces(file, start, stop):
            waited += time.monotonic() - asked
            came += len(piece)
            missing -= len(piece)
            yield piece if missing >= 0 else piece[:missing]
            if missing <= 0:
                return
            if waited >= WINDOW:
                if came < LEAST_BYTES:
                    raise TransferError(
                        f"{file.name} comes too slowly: {came} bytes in {waited:.0f} seconds", field=self.label
                    )
                waited, came = 0.0, 0
            asked = time.monotonic()

    @abstractmethod
    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        """What the source sends for the bytes [start, stop) of `file`. Raises as `stream` does."""

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """The same at once, tried again a few times.

        Raises:
            CheckpointError: also when the connection keeps breaking.
        """
        stop = min(stop, file.size)
        found = b""
        reason = "the answer was cut short"
        for _ in range(4):
            try:
                for piece in self.stream(file, start + len(found), stop):
                    found += piece
            except TransferError as error:
                reason = error.message
            if len(found) >= stop - start:
                return found[: stop - start]
        raise TransferError(
            f"{file.name} cannot be read: {reason}", field=self.label, fix="Check the network, and try again"
        )

    def trusts(self, file: RemoteFile) -> bool:
        """Whether the content of `file`, once streamed, must have its checksum."""
        return file.checksum is not None

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def parts_of(name: str, files: Sequence[RemoteFile], label: str) -> list[RemoteFile]:
    """The file `name`, or all parts of the split GGUF that it is one of. Raises CheckpointError for a missing part."""
    there = {file.name: file for file in files}
    return checked([there[part] for part in checked_parts(name, there, label)], label)


def checked(files: Sequence[RemoteFile], label: str) -> list[RemoteFile]:
    """`files`, as listed by a server that may be hostile: each can be kept under its name, and none comes twice.

    Raises:
        CheckpointError: the name or size that no file can have is named.
    """
    if len(files) > MOST_FILES:
        raise too_many(label)
    seen: set[str] = set()
    for file in files:
        parts = file.name.split("/")
        if (
            any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in parts)
            or not file.name.isprintable()
            or len(file.name) > 4 * _LONGEST_NAME
        ):
            raise CheckpointError("lists a file whose name cannot be kept", field=label, value=file.name[:200])
        if file.name in seen:
            raise CheckpointError("lists a file twice", field=label, value=file.name)
        seen.add(file.name)
        if not 0 <= file.size <= MOST_BYTES:
            raise CheckpointError(
                f"lists {file.name[:200]} with a size that no file has", field=label, value=str(file.size)[:40]
            )
    return list(files)


def too_many(label: str) -> CheckpointError:
    """The error for a folder with more than `MOST_FILES` files."""
    return CheckpointError(f"holds more than {MOST_FILES} files", field=label, fix="Name the folder of one model")


def choose(files: Sequence[RemoteFile], label: str) -> tuple[list[RemoteFile], str]:
    """What serving needs of a folder's `files`, and the path of the checkpoint in it (a GGUF file's name, or ``).

    Raises:
        CheckpointError: no weights that can be served; the message says what is there instead.
    """
    here = [file for file in files if "/" not in file.name]
    needed = [
        file
        for file in here
        if any(fnmatchcase(file.name, kind) for kind in NEEDED)
        and not any(fnmatchcase(file.name, kind) for kind in EXTRAS)
    ]
    if any(file.name.endswith(".safetensors") for file in needed):
        return checked(needed, label), ""
    ggufs = whole_files(file.name for file in here)
    if len(ggufs) == 1:
        (first,) = ggufs
        return parts_of(first, here, label), first
    if ggufs:
        names = ", ".join(list(ggufs)[:4]) + (" …" if len(ggufs) > 4 else "")
        raise CheckpointError(
            f"has no safetensors weights, but {len(ggufs)} GGUF files ({names})", field=label,
            fix="Name one of them at the end of the source",
        )  # fmt: skip
    pickles = [file.name for file in here if file.name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    below = sorted({file.name.partition("/")[0] for file in files if "/" in file.name})
    if pickles:
        message = f"holds only pickled weights ({pickles[0]}), and loading a pickle runs the code that is in it"
    elif not files:
        message = "holds nothing"
    else:
        message = "holds no safetensors or GGUF weights"
        message += f", but folders: {', '.join(below[:5])}" if below else ""
    raise CheckpointError(message, field=label, fix="Name a folder with safetensors weights, or a GGUF file")
