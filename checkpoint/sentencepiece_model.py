"""A folder's `tokenizer.model`, sentencepiece's own format, where there is no tokenizer.json.

Read here, by the few fields that matter, so that neither sentencepiece nor protobuf is needed and spaces stay exact.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.json_file import read_object
from plimsoll.checkpoint.vocabulary import (
    CONTROL,
    MOST_DIGITS,
    NORMAL,
    ROLES,
    USER_DEFINED,
    check_sizes,
    finish,
    mark_special,
    sentencepiece_bpe,
    token_text,
)

MAX_MODEL_BYTES = 64 * 1024 * 1024
_BPE = 2
#: A line of base64 and a rank, as Llama 3's own release has it under the name tokenizer.model.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def build_tokenizer(folder: Path) -> Any:
    """The transformers fast tokenizer of `folder/tokenizer.model` and `tokenizer_config.json`.

    Raises:
        CheckpointError: damaged, or a kind of model that is not rebuilt exactly.
    """
    path = folder / "tokenizer.model"
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise CheckpointError(f"is larger than {MAX_MODEL_BYTES} bytes", field=str(path))
    data = path.read_bytes()
    if _TIKTOKEN.match(data):
        raise CheckpointError(
            "is a tiktoken vocabulary, which does not say how text is split nor which tokens are special",
            field=str(path), fix="Add tokenizer.json from the model's Hugging Face folder, or written by transformers",
        )  # fmt: skip
    try:
        tokens, scores, types, trainer, normalizer = _parse(data)
    except (IndexError, ValueError, struct.error):
        raise CheckpointError("is damaged", field=str(path), fix="Download it again") from None
    if trainer.get(3, 1) != _BPE or normalizer.get(2) or normalizer.get(4, 1):
        raise CheckpointError(
            "is a kind of sentencepiece model that is not rebuilt here", field=str(path),
            fix="Add tokenizer.json, written by transformers' save_pretrained",
        )  # fmt: skip
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    _place_added(tokens, scores, types, config, str(config_path))
    check_sizes(tokens, str(path))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ids = {"bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2), "unk_token": trainer.get(40, 0)}
    special = {role: token_text(config.get(role)) for role in ROLES}
    for role, index in ids.items():
        if special[role] is None and index < len(tokens):
            special[role] = tokens[index]
    unplaced = [token for token in special.values() if token is not None and token not in vocabulary]
    if unplaced:
        raise CheckpointError("is not in the vocabulary", field=str(config_path), value=unplaced[0])
    backend = sentencepiece_bpe(vocabulary, tokens, scores, types, special["unk_token"], bool(normalizer.get(3, 1)))
    mark_special(
        backend,
        tokens,
        [CONTROL if token in special.values() else kind for token, kind in zip(tokens, types, strict=True)],
    )
    template_path = folder / "chat_template.jinja"
    template = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
    return finish(
        backend,
        special,
        add_bos=config.get("add_bos_token", True) is not False,
        add_eos=config.get("add_eos_token", False) is True,
        chat_template=template,
    )


def _place_added(
    tokens: list[str], scores: list[float], types: list[int], config: Mapping[str, Any], where: str
) -> None:
    """Put added tokens at their ids: chat models rename unused pieces, or go on after the last."""
    added = config.get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        return
    for key, entry in sorted(added.items(), key=lambda item: (len(item[0]), item[0])):
        content = token_text(entry)
        number = key.isascii() and key.isdigit() and len(key) <= MOST_DIGITS
        if not number or content is None or int(key) > len(tokens):
            raise CheckpointError("has an entry with no place", field=f"{where}: added_tokens_decoder", value=key[:40])
        special = isinstance(entry, Mapping) and entry.get("special")
        index, kind = int(key), CONTROL if special else USER_DEFINED
        if index == len(tokens):
            tokens.append(content)
            scores.append(0.0)
            types.append(kind)
        else:
            types[index] = kind
            tokens[index] = content


def _parse(data: bytes) -> tuple[list[str], list[float], list[int], dict[int, Any], dict[int, Any]]:
    """Pieces, scores and types, and the fields of the trainer's and the normaliser's settings."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            tokens.append(piece[1].decode("utf-8") if 1 in piece else "")
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            types.append(int(piece.get(3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not tokens:
        raise ValueError("no pieces")
    return tokens, scores, types, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: an int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("not a protobuf message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
