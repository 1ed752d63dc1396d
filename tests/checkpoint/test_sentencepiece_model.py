"""Folders with tokenizer.model alone, as Llama 2 and InternLM2 come: held against sentencepiece itself."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints import make_checkpoint

PIECES = 400
CORPUS = (
    "The quick brown fox jumps over the lazy dog and says hello to the world again",
    "Paris is the capital of France; a ship's line shows how far she may be loaded",
    "日本の首都は東京です",
) * 20
TEXTS = ("hello world", "  two spaces", " lead", "The fox 123 日本 😀 é", "a\nb\tc\r\n", "trail ", "", "x" * 50)


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": PIECES, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.99,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
        "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **(settings | options))
    return model.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spm") / "internlm2"
    return make_checkpoint(path, "InternLM2ForCausalLM", tokenizer=False, vocab_size=PIECES + 2)


def load(folder: Path, model: bytes, config: dict[str, Any] | None = None) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return load_tokenizer(open_checkpoint(folder))


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_and_text_are_sentencepieces_own(folder: Path, prefix: bool) -> None:
    model = train(add_dummy_prefix=prefix)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load(folder, model)
    letters = "abc deTh12é日😀\n▁  fox"
    rng = random.Random(0)
    texts = [*TEXTS, *("".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(200))]
    for text in texts:
        assert ours.encode(text) == [1, *theirs.encode(text)]
        if "▁" not in text:
            assert ours.decode(ours.encode(text)) == text


def test_internlm2_chat_names_unused_pieces_and_brings_code_that_is_not_run(folder: Path) -> None:
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            str(PIECES - 1): {"content": "<|im_end|>", "special": True},
            str(PIECES): {"content": "<think>", "special": False},
        },
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "add_bos_token": False,
        "chat_template": "{{ messages[0]['content'] }}<|im_end|>",
    }
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('code of the checkpoint was run')")
    ours = load(folder, train(), config)
    assert ours.encode("hello<|im_end|><think>")[-2:] == [PIECES - 1, PIECES]
    assert ours.encode("hello")[0] != 1
    assert ours.apply_chat_template([{"role": "user", "content": "hi"}])[-1] == PIECES - 1
    assert {1, 2, PIECES - 1} <= ours.special_ids
    assert PIECES not in ours.special_ids
    named = [{"name": name, "template": f"{name} {{{{ messages[0]['content'] }}}}"} for name in ("tool_use", "chat")]
    ours = load(folder, train(), {"chat_template": named})
    assert ours.render_chat_template([{"role": "user", "content": "hi"}]) == "chat hi"


def test_what_cannot_be_rebuilt_exactly_is_refused(folder: Path) -> None:
    for options in ({"model_type": "unigram", "vocab_size": 310}, {"normalization_rule_name": "nmt_nfkc"}):
        with pytest.raises(CheckpointError, match="not rebuilt here"):
            load(folder, train(**options))
    for added in ({"x": {"content": "a"}}, {"9999": {"content": "a"}}, {"5": None}, {"5": {"content": 1}}):
        with pytest.raises(CheckpointError, match="no place"):
            load(folder, train(), {"added_tokens_decoder": added})
    with pytest.raises(CheckpointError, match="not in the vocabulary"):
        load(folder, train(), {"eos_token": "<|nowhere|>"})


def test_damaged_models(folder: Path) -> None:
    model = train()
    for seed in range(150):
        rng = random.Random(seed)
        damaged = bytearray(model)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        with contextlib.suppress(CheckpointError):
            load(folder, bytes(damaged)).encode("hello 12")
