"""A tokenizer from the vocabulary inside a GGUF file.

Built here and not by transformers' converter, which does not know how most vocabularies split text before merging
(`tokenizer.ggml.pre`; SmolLM's digit by digit, for one) and so gives other ids than the model was trained on. An
unknown way of splitting is refused: near-right ids answer badly without a word of warning.
"""

from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_file import GgufFile
from plimsoll.checkpoint.vocabulary import (
    CONTROL,
    NORMAL,
    byte_level_bpe,
    check_sizes,
    finish,
    mark_special,
    sentencepiece_bpe,
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{suffix}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{suffix}}"
    rf"|\p{{N}}{{digits}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_TEKKEN = _CASED.replace("{suffix}", "").replace("{digits}", "")
_GPT4O = _CASED.replace("{suffix}", f"{_CONTRACTION}?").replace("{digits}", "{1,3}")

#: What splits text before merges, applied in turn, by `tokenizer.ggml.pre`. As each family's tokenizer.json has it.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "olmo", "mpt", "phi-2", "jais", "trillion", "exaone4", "mellum", "gigachat"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
#: Vocabularies that hold whole words no sequence of merges reaches, and that begin every text with BOS.
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "lfm2", "tekken"})
#: Families whose tokenizer composes characters first.
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen", "megrez"})


def build_tokenizer(file: GgufFile) -> Any:
    """The transformers fast tokenizer that `file` describes, with special tokens and chat template.

    Raises:
        CheckpointError: no vocabulary, a kind that cannot be rebuilt exactly, or damaged entries.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens = file.array("tokenizer.ggml.tokens")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError("has no vocabulary", field=f"{file.path}: tokenizer.ggml.tokens")
    check_sizes(tokens, f"{file.path}: tokenizer.ggml.tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if kind == "gpt2":
        backend, add_bos = _byte_level(file, vocabulary)
    elif kind == "llama":
        backend, add_bos = _sentencepiece(file, tokens, vocabulary), True
    else:
        raise CheckpointError(
            "is a kind of vocabulary that cannot be rebuilt", field=f"{file.path}: tokenizer.ggml.model",
            value=str(kind)[:40], fix="Readable: gpt2 (byte-level BPE) and llama (sentencepiece BPE)",
        )  # fmt: skip
    special = {name: _special_token(file, key, tokens) for name, key in _SPECIAL.items()}
    named = {file.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id", "eot_token_id")}
    types = _token_types(file, len(tokens))
    mark_special(backend, tokens, [CONTROL if index in named else kind for index, kind in enumerate(types)])
    return finish(
        backend,
        special,
        add_bos=_flag(file, "add_bos_token", add_bos),
        add_eos=_flag(file, "add_eos_token", False),
        chat_template=_chat_templates(file),
    )


def _chat_templates(file: GgufFile) -> dict[str, object]:
    """The template without a name, and those that llama.cpp's converter keeps beside it."""
    named = {
        key.removeprefix(_TEMPLATE + "."): value
        for key, value in file.metadata.items()
        if key.startswith(_TEMPLATE + ".")
    }
    return {"default": file.metadata.get(_TEMPLATE)} | named


_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def _special_token(file: GgufFile, key: str, tokens: list[str]) -> str | None:
    index = file.metadata.get(f"tokenizer.ggml.{key}")
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise CheckpointError(
            f"is outside the vocabulary of {len(tokens)}", field=f"{file.path}: tokenizer.ggml.{key}", value=index
        )
    return tokens[index]


def _flag(file: GgufFile, key: str, default: bool) -> bool:
    value = file.metadata.get(f"tokenizer.ggml.{key}", default)
    return value if isinstance(value, bool) else default


def _token_types(file: GgufFile, count: int) -> list[int]:
    types = file.array("tokenizer.ggml.token_type")
    if types is None:
        return [NORMAL] * count
    if len(types) != count:
        raise CheckpointError(
            f"has {len(types)} entries for {count} tokens", field=f"{file.path}: tokenizer.ggml.token_type"
        )
    return types


def _byte_level(file: GgufFile, vocabulary: dict[str, int]) -> tuple[Any, bool]:
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise CheckpointError(
            "is a way of splitting text that is not known here",
            field=f"{file.path}: tokenizer.ggml.pre",
            value=str(pre)[:40],
            fix=f"Use the Hugging Face folder of this model. Known: {', '.join(sorted(SPLITS))}",
        )
    pairs = []
    for merge in file.array("tokenizer.ggml.merges") or []:
        left, space, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(
                "joins tokens that are not in the vocabulary",
                field=f"{file.path}: tokenizer.ggml.merges",
                value=str(merge)[:80],
            )
        pairs.append((left, right))
    whole = pre in _WHOLE_WORDS
    return byte_level_bpe(vocabulary, pairs, SPLITS[pre], composed=pre in _COMPOSED, whole_words=whole), whole


def _sentencepiece(file: GgufFile, tokens: list[str], vocabulary: dict[str, int]) -> Any:
    scores = file.array("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(
            f"needs one score for each of {len(tokens)} tokens", field=f"{file.path}: tokenizer.ggml.scores"
        )
    types = _token_types(file, len(tokens))
    unknown = _special_token(file, "unknown_token_id", tokens)
    return sentencepiece_bpe(vocabulary, tokens, scores, types, unknown, _flag(file, "add_space_prefix", True))
