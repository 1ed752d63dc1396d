"""Windows of tokens from texts: the head of a dataset calibrates, its tail is held out to measure on.

The texts are put into an order that follows from their own bytes and the seed, and packed end to end with the end token
between them: nothing is dropped for being short, nothing cut for being long. Only what is wanted is tokenised.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plimsoll.api.dataset import Dataset, parse_dataset
from plimsoll.api.errors import SpecError
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.quantjob.allowance import Allowance
from plimsoll.quantjob.documents import Document, data_files, documents

#: Characters of a dataset that are looked at, counted from its start. 128 windows of 2048 tokens take about a million.
POOL = 32 << 20
#: Characters tokenised at once: the tokenizer keeps some hundred bytes for each token while it works.
PIECE = 1 << 16
#: Texts that are looked at: each takes some hundred bytes of memory, however short it is.
MOST_TEXTS = 1 << 19


@dataclass(frozen=True)
class Tokens:
    """Windows to calibrate or to measure on.

    Attributes:
        windows: int64 [S, L].
        digest: `sha256:…` of the ids as little-endian int64, window after window.
        source: what they were taken from, for people; a dataset of the hub with its commit.
    """

    windows: npt.NDArray[np.int64]
    digest: str
    source: str


def tokens_of(windows: npt.NDArray[np.int64], source: str) -> Tokens:
    """`windows` int64 [S, L] with their digest."""
    data = np.ascontiguousarray(windows, dtype="<i8").tobytes()
    return Tokens(windows, "sha256:" + hashlib.sha256(data).hexdigest(), source)


class Corpus:
    """The texts of a dataset as one stream of tokens.

    Equal texts lie beside each other in the order, so the same text does not come back in the tail.
    """

    def __init__(
        self, dataset: str, tokenizer: Tokenizer, seed: int = 0, *, field: str = "--calib-dataset",
        option: str = "--samples",
    ) -> None:  # fmt: skip
        """Reads up to `POOL` characters, and downloads what of the hub's that takes.

        Args:
            dataset: a path, `file://…` or `hf://datasets/…`; see `plimsoll.api.dataset`.
            seed: of the order of the texts.
            field: what to call the dataset in errors.
            option: the option that says how many windows are wanted, for errors; it may be set later.

        Raises:
            SpecError: it cannot be had or read, holds no text, or a record of it does not go through the chat template.
        """
        self.field, self.option = field, option
        self._tokenizer = tokenizer
        found = parse_dataset(dataset, field)
        self.source, files = _files(found, field)
        texts = _pool(files, tokenizer, field)
        if not texts:
            raise SpecError("holds no text", field=field, value=dataset, fix="Give a file that holds some")
        order = sorted(range(len(texts)), key=lambda index: (texts[index].order(seed), index))
        self._pieces = [piece for index in order for piece in texts[index].pieces()]
        self._encoded: dict[int, list[int]] = {}
        self.value = dataset

    def head(self, samples: int, length: int) -> Tokens:
        """The first windows [samples, length] of the stream. Raises SpecError where it holds fewer tokens."""
        wanted = samples * length
        return self._windows(itertools.islice(self._forwards(), wanted), samples, length, wanted)

    def tail(self, samples: int, length: int, *, after: int = 0) -> Tokens:
        """The last windows [samples, length], in the order of the stream.

        Args:
            after: tokens of the head that are spoken for.

        Raises:
            SpecError: the stream holds fewer tokens than `after` and these windows together.
        """
        wanted = samples * length
        stream = itertools.islice(self._backwards(after), wanted)
        found = self._windows(stream, samples, length, after + wanted)
        return tokens_of(found.windows.ravel()[::-1].reshape(samples, length).copy(), self.source)

    def _windows(self, stream: Iterator[int], samples: int, length: int, needed: int) -> Tokens:
        ids = np.fromiter(stream, dtype=np.int64)
        if len(ids) < samples * length:
            there = sum(len(self._ids(index)) for index in range(len(self._pieces)))
            before = needed - samples * length
            fit = max(0, there - before) // length
            fewer = f"use {self.option} {fit}" if fit else "use fewer or shorter windows"
            raise SpecError(
                f"holds {there} tokens, and {needed} are needed: {samples} windows of {length} tokens"
                + (f" besides the {before} that calibrate" if before else ""),
                field=self.field, value=self.value, fix=f"Give more text, or {fewer}",
            )  # fmt: skip
        return tokens_of(ids.reshape(samples, length), self.source)

    def _forwards(self) -> Iterator[int]:
        for index in range(len(self._pieces)):
            yield from self._ids(index)

    def _backwards(self, after: int) -> Iterator[int]:
        """The stream from its end, up to the token that `after` tokens come before."""
        taken, first = 0, 0
        while first < len(self._pieces) and taken < after:
            taken += len(self._ids(first))
            first += 1
        for index in range(len(self._pieces) - 1, first - 1, -1):
            yield from reversed(self._ids(index))
        # Of the piece in which the head ends, what it leaves.
        if taken > after:
            yield from reversed(self._ids(first - 1)[after - taken :])

    def _ids(self, index: int) -> list[int]:
        if index not in self._encoded:
            self._encoded[index] = self._encode(self._pieces[index])
        return self._encoded[index]

    def _encode(self, piece: "_Piece") -> list[int]:
        special = piece.starts and not piece.templated
        ids = self._tokenizer.encode(piece.text, add_special_tokens=special)
        end = self._tokenizer.eos_token_ids[:1]
        if special and end and ids and ids[-1] == end[0]:
            ids = ids[:-1]
        return [*ids, *end] if piece.ends else ids


@dataclass(frozen=True)
class _Piece:
    text: str
    starts: bool
    """A text starts here: the tokenizer may put its start token before it."""
    ends: bool
    templated: bool
    """It has been through the chat template, which writes the special tokens itself."""


@dataclass
class _Text:
    parts: list[str]
    templated: bool

    def order(self, seed: int) -> bytes:
        digest = hashlib.sha256(str(seed).encode())
        for part in self.parts:
            digest.update(part.encode("utf-8", "replace"))
        return digest.digest()

    def pieces(self) -> Iterator[_Piece]:
        cut = [piece for part in self.parts for piece in _cut(part)]
        for index, text in enumerate(cut):
            yield _Piece(text, index == 0, index == len(cut) - 1, self.templated)


def _cut(text: str) -> Iterator[str]:
    """`text` in pieces of at most `PIECE` characters, each ending before a line or a word where it can."""
    start = 0
    while len(text) - start > PIECE:
        stop = start + PIECE
        near = max(text.rfind("\n", start + PIECE // 2, stop), 0) or max(text.rfind(" ", start + PIECE // 2, stop), 0)
        yield text[start : near or stop]
        start = near or stop
    yield text[start:]


def _pool(files: Iterator[Path], tokenizer: Tokenizer, field: str) -> list[_Text]:
    texts: list[_Text] = []
    held, open_text, allowance = 0, False, Allowance(field)
    for document in itertools.chain.from_iterable(documents(file, field, allowance) for file in files):
        text = _rendered(document, tokenizer, field)[: POOL - held]
        held += len(text)
        if document.continues and open_text:
            texts[-1].parts.append(text)
        elif open_text := bool(text.strip()):
            templated = not isinstance(document.content, str) and tokenizer.has_chat_template
            texts.append(_Text([text], templated=templated))
        if held >= POOL or len(texts) >= MOST_TEXTS:
            break
    return texts


def _rendered(document: Document, tokenizer: Tokenizer, field: str) -> str:
    if isinstance(document.content, str):
        return document.content
    if not tokenizer.has_chat_template and document.plain is not None:
        return document.plain
    if not tokenizer.has_chat_template:
        raise SpecError(
            "holds messages, and this model has no chat template", field=field, value=document.where,
            fix="Give plain text: records with a field `text`",
        )  # fmt: skip
    try:
        return tokenizer.render_chat_template(document.content, add_generation_prompt=False)
    except ChatTemplateError as error:
        raise SpecError(error.message, field=field, value=document.where) from None


def check_dataset(dataset: str, field: str) -> None:
    """Raises SpecError for a dataset that is no address of one, or is not there; the hub is not asked."""
    found = parse_dataset(dataset, field)
    if found.kind == "path":
        data_files(Path(found.path).expanduser(), field)


def _files(dataset: Dataset, field: str) -> tuple[str, Iterator[Path]]:
    """(what to call it, its files; of the hub each is downloaded when it is its turn)."""
    if dataset.kind == "hf":
        from plimsoll.quantjob.hub_dataset import dataset_files

        return dataset_files(dataset, field)
    if dataset.kind == "pvc":
        raise SpecError(
            "lies on a claim, which only a cluster mounts", field=field, value=str(dataset),
            fix="Give the path where it is mounted",
        )  # fmt: skip
    if dataset.kind == "self":
        raise SpecError("is sampled from the model, not read", field=field, value="self", fix="Name a dataset")
    files: Sequence[Path] = data_files(Path(dataset.path).expanduser(), field)
    return dataset.path, iter(files)
