"""What a source holds, wherever it lies: a list of files with sizes, and bytes of them from any offset."""

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


class Hasher(Protocol):
    """The part of hashlib's objects that is used here."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


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

    @abstractmethod
    def stream(self, file: RemoteFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes [start, stop) of `file`, in pieces, without seeking.

        Raises:
            TransferError: the connection broke, or the service is busy.
            CheckpointError: no access, no such file any more, or it has changed.
        """

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
    return [there[part] for part in checked_parts(name, there, label)]


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
        return needed, ""
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
        message = f"holds only pickled weights ({pickles[0]}), and loading a pickle runs whatever code is in it"
    elif not files:
        message = "holds nothing"
    else:
        message = "holds no safetensors or GGUF weights"
        message += f", but folders: {', '.join(below[:5])}" if below else ""
    raise CheckpointError(message, field=label, fix="Name a folder with safetensors weights, or a GGUF file")
