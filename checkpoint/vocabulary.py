"""From the parts of a vocabulary, wherever they were stored, to a transformers fast tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.chat_template import named_templates

#: Kinds of entries, numbered alike in sentencepiece models and GGUF files.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
#: Beyond any published vocabulary: tokens, characters of one token, characters of all. Every cut of each is looked at.
MOST_TOKENS, LONGEST_TOKEN, MOST_CHARACTERS = 1 << 20, 1 << 12, 1 << 23
#: Of an id that is the key of an object; Python refuses to read thousands.
MOST_DIGITS = 9
#: Special tokens that a vocabulary names.
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def check_sizes(tokens: Sequence[str], where: str) -> None:
    """Raises CheckpointError for a vocabulary of too many or too long tokens. `where` names its place."""
    if len(tokens) > MOST_TOKENS:
        raise CheckpointError(f"holds more than {MOST_TOKENS} tokens", field=where, value=len(tokens))
    lengths = [len(token) for token in tokens]
    longest = max(lengths, default=0)
    if longest > LONGEST_TOKEN:
        raise CheckpointError(
            f"token {lengths.index(longest)} is longer than {LONGEST_TOKEN} characters", field=where, value=longest
        )
    if sum(lengths) > MOST_CHARACTERS:
        raise CheckpointError(f"holds more than {MOST_CHARACTERS} characters", field=where, value=sum(lengths))


def token_text(token: object) -> str | None:
    """A special token as configurations write it: text, or an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], splits: Sequence[str], *, composed: bool,
    whole_words: bool = False, space_prefix: bool = False,
) -> Any:  # fmt: skip
    """A `tokenizers.Tokenizer` that does what GPT-2's BPE does.

    Args:
        splits: regular expressions that split text before merges, applied in turn.
        composed: whether characters are composed first (NFC).
        whole_words: whether the vocabulary holds words that no sequence of merges reaches.
        space_prefix: whether text is read as if a space stood before it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=whole_words))
    if composed:
        backend.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splits]
    last = pre_tokenizers.ByteLevel(add_prefix_space=space_prefix, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece_bpe(
    vocabulary: Mapping[str, int],
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    unknown: str | None,
    space_prefix: bool,
) -> Any:
    """A `tokenizers.Tokenizer` that does what sentencepiece's BPE does.

    Args:
        vocabulary: token to id.
        tokens, scores, types: one for each id.
        unknown: the token for what has neither a piece nor bytes.
        space_prefix: whether text is read as if a space stood before it.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    backend = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=_merges(tokens, scores, normal, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    escape = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape]) if space_prefix else escape
    unescape = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*unescape, decoders.Strip(" ", 1, 0)] if space_prefix else unescape)
    return backend


def _merges(
    tokens: Sequence[str], scores: Sequence[float], normal: set[str], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Sentencepiece joins whichever neighbours make the best-scored token: the same as merges in order of score."""
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        if token not in normal:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((-score, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def mark_special(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control tokens are found in text and hidden in answers; user-defined ones are found and shown."""
    from tokenizers import AddedToken

    control, shown = [], []
    for token, kind in zip(tokens, types, strict=True):
        if token and kind == CONTROL:
            control.append(AddedToken(token, special=True, normalized=False))
        elif token and kind == USER_DEFINED:
            shown.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(control)
    backend.add_tokens(shown)


def finish(
    backend: Any, special: Mapping[str, str | None], *, add_bos: bool, add_eos: bool, chat_template: object
) -> Any:
    """The transformers fast tokenizer around `backend`.

    Args:
        chat_template: in any form that `named_templates` reads.
        special: token by role (`bos_token`, `eos_token`, `unk_token`, `pad_token`); None for a role without a token.
        add_bos, add_eos: put these tokens around every text.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    begin = special["bos_token"] if add_bos else None
    end = special["eos_token"] if add_eos else None
    around = [(token, backend.token_to_id(token)) for token in (begin, end) if token is not None]
    if around:
        single = [*([begin] if begin else []), "$A", *([end] if end else [])]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    fast: Any = PreTrainedTokenizerFast
    templates = named_templates(chat_template)
    return fast(
        tokenizer_object=backend,
        chat_template=templates["default"] if list(templates) == ["default"] else templates or None,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in special.items() if token is not None},
    )
