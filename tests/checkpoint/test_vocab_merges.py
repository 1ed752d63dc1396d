"""vocab.json and merges.txt give the ids that transformers' own class gives, or are refused in words that help."""

import base64
import json
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from tests.support.checkpoints import CHAT_TEMPLATE, VOCAB_SIZE, make_checkpoint, tokenizer_json

TEXTS = ("The quick brown fox, 12345 apples", " don't WE'LL\n\n 日本 é e\u0301", "<|im_start|>user\nhi<|im_end|>", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer is in two files; special tokens lie behind the vocabulary, as in Qwen2's."""
    folder = make_checkpoint(tmp_path_factory.mktemp("two-files") / "tiny", "Qwen2ForCausalLM", tokenizer=False)
    model = json.loads(tokenizer_json())["model"]
    # One entry less, so that an added token takes the last place of the model's vocabulary.
    kept = {token: index for token, index in model["vocab"].items() if index < VOCAB_SIZE - 1}
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    pairs = [pair for pair in pairs if pair.replace(" ", "", 1) in kept]
    (folder / "vocab.json").write_text(json.dumps(kept))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    return folder


def write_config(folder: Path, **changes: object) -> None:
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<pad>",
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": True}, "1": {"content": "<|im_start|>", "special": True},
            "2": {"content": "<|im_end|>", "special": True},
            str(VOCAB_SIZE - 1): {"content": "<think>", "special": False},
        },
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2TokenizerFast"])
def test_ids_are_those_of_the_class_that_is_named(folder: Path, name: str) -> None:
    import transformers

    write_config(folder, tokenizer_class=name)
    ours = load_tokenizer(open_checkpoint(folder))
    theirs = getattr(transformers, name.removesuffix("Fast")).from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.encode("<think>a<|im_end|>")[0] == VOCAB_SIZE - 1
    assert 2 in ours.special_ids
    assert VOCAB_SIZE - 1 not in ours.special_ids
    assert ours.decode(ours.apply_chat_template([{"role": "user", "content": "hi"}])) == "user\nhi\nassistant\n"


def test_the_model_says_the_class_where_the_tokenizer_does_not(folder: Path) -> None:
    write_config(folder, tokenizer_class=None)
    assert load_tokenizer(open_checkpoint(folder)).encode("a") == load_tokenizer(open_checkpoint(folder)).encode("a")
    write_config(folder, tokenizer_class="RobertaTokenizer")
    with pytest.raises(CheckpointError, match=r"how this class splits text.*RobertaTokenizer.*Add tokenizer\.json"):
        load_tokenizer(open_checkpoint(folder))


def test_a_tiktoken_vocabulary_is_called_what_it_is(folder: Path) -> None:
    lines = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    path = folder / "tokenizer.model"
    path.write_bytes(b"".join(lines))
    try:
        with pytest.raises(CheckpointError, match=r"is a tiktoken vocabulary.*Add tokenizer\.json"):
            load_tokenizer(open_checkpoint(folder))
    finally:
        path.unlink()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "bare", tokenizer=False)
    with pytest.raises(CheckpointError, match=r"vocab\.json with merges\.txt"):
        load_tokenizer(open_checkpoint(folder))
