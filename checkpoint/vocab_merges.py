"""A folder's `vocab.json` and `merges.txt`, byte-level BPE in two files, where there is no tokenizer.json.

They say which pieces join and not how text is split before; the tokenizer's class says that: known classes are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_tokenizer import SPLITS
from plimsoll.checkpoint.json_file import MAX_JSON_BYTES, read_object
from plimsoll.checkpoint.tokenizer_limits import check_ids
from plimsoll.checkpoint.vocabulary import MOST_DIGITS, ROLES, byte_level_bpe, check_sizes, finish, token_text

#: Classes of transformers to the way they split text (`SPLITS`) and whether they compose characters first.
CLASSES = {"GPT2Tokenizer": ("gpt-2", False), "Qwen2Tokenizer": ("qwen2", True)}
#: The class of a model whose tokenizer_config.json names none.
_OF_MODELS = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "gpt2": "GPT2Tokenizer"}
_FIX = "Add tokenizer.json, written by transformers' save_pretrained"


def build_tokenizer(folder: Path) -> Any:
    """The transformers fast tokenizer of the two files, with the special tokens of tokenizer_config.json.

    Raises:
        CheckpointError: damaged, or of a class whose way of splitting text is not known here.
    """
    from tokenizers import AddedToken

    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    split, composed = _split(folder, config)
    vocabulary = read_object(folder / "vocab.json")
    if not vocabulary or not all(type(index) is int and index >= 0 for index in vocabulary.values()):
        raise CheckpointError("must be an object from token to id", field=str(folder / "vocab.json"), fix=_FIX)
    check_sizes(list(vocabulary), str(folder / "vocab.json"))
    check_ids(vocabulary, str(folder / "vocab.json"))
    merges, space = _merges(folder / "merges.txt", vocabulary), config.get("add_prefix_space") is True
    backend = byte_level_bpe(vocabulary, merges, SPLITS[split], composed=composed, space_prefix=space)
    special = {role: token_text(config.get(role)) for role in ROLES}
    for index, token, shown in _added(folder, config):
        backend.add_tokens([AddedToken(token, special=not shown, normalized=False)])
        if backend.token_to_id(token) != index:
            raise CheckpointError(
                f"gives {token[:40]!r} the id {index}, after a gap in the vocabulary", field=str(config_path), fix=_FIX
            )
    roles = [content for content in special.values() if content is not None]
    for content in roles:
        if backend.token_to_id(content) is None:
            raise CheckpointError("is not in the vocabulary", field=str(config_path), value=content[:40])
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in roles])
    template_path = folder / "chat_template.jinja"
    template = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
    return finish(
        backend, special, add_bos=config.get("add_bos_token") is True, add_eos=config.get("add_eos_token") is True,
        chat_template=template,
    )  # fmt: skip


def _split(folder: Path, config: Mapping[str, Any]) -> tuple[str, bool]:
    """How text is split, and whether characters are composed first."""
    named = config.get("tokenizer_class")
    if not isinstance(named, str):
        model = folder / "config.json"
        named = _OF_MODELS.get(str(read_object(model).get("model_type") if model.is_file() else None), "")
    known = CLASSES.get(named.removesuffix("Fast"))
    if known is None:
        raise CheckpointError(
            "vocab.json and merges.txt do not say how this class splits text", field=f"{folder}: tokenizer_class",
            value=named[:80] or None, fix=f"{_FIX}. Known without it: {', '.join(CLASSES)}",
        )  # fmt: skip
    return known


def _merges(path: Path, vocabulary: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"is larger than {MAX_JSON_BYTES} bytes", field=str(path))
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix="Download it again") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(
                f"line {number} joins tokens that are not in vocab.json", field=str(path), value=line[:80],
                fix="Both files must come from one model",
            )  # fmt: skip
        pairs.append((left, right))
    return pairs


def _added(folder: Path, config: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, token, whether it is shown in answers) by id, of tokenizer_config.json and of older models' own file."""
    found: dict[int, tuple[str, bool]] = {}
    path = folder / "added_tokens.json"
    for token, index in (read_object(path) if path.is_file() else {}).items():
        if type(index) is int:
            found[index] = (token, False)
    listed = config.get("added_tokens_decoder")
    for key, entry in (listed if isinstance(listed, Mapping) else {}).items():
        content = token_text(entry)
        if content is None or not key.isascii() or not key.isdigit() or len(key) > MOST_DIGITS:
            raise CheckpointError(
                "has an entry with no place", field=f"{folder}: added_tokens_decoder", value=key[:40], fix=_FIX
            )
        found[int(key)] = (content, not (isinstance(entry, Mapping) and entry.get("special")))
    return [(index, *found[index]) for index in sorted(found)]
