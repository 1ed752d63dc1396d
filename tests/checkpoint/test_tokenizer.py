"""Tokenizers of both formats: ids, text, bytes and chat prompts."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.gguf_tokenizer import SPLITS
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints import PAD, TURN_END, TURN_START, VOCAB_SIZE, make_checkpoint, make_gguf, make_model

TEXTS = (
    "The quick brown fox, 12345 apples and 1,234.56 more.",
    "  two spaces,\ttab\n\n\nlines \r\n end  ",
    "日本の首都は東京です。 Naïve café, straße, привет, 😀🎉👩‍👩‍👧 ½ Ⅷ ٣٤",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't WE'LL it's",
    "\x00\x01\x7f\u00a0\u200b\ufeff",
    "",
)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def smol(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(smollm2_gguf))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(folder))


def test_real_model_gives_the_ids_it_was_trained_on(smol: Tokenizer) -> None:
    # As llama.cpp's own tokenizer gives them; digits one by one, unlike what transformers makes of this file.
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert smol.apply_chat_template(question) == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
        198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    assert smol.convert_ids_to_tokens(smol.encode("12345 apples")) == ["1", "2", "3", "4", "5", "Ġapples"]
    assert (smol.bos_token_id, smol.eos_token_ids, smol.vocab_size) == (1, (2,), 49_152)
    assert smol.special_ids == frozenset(range(17))
    assert smol.encode("no BOS is added")[0] != 1


@pytest.mark.parametrize("text", TEXTS)
def test_ids_text_and_bytes_round_trip(smol: Tokenizer, tiny: Tokenizer, text: str) -> None:
    for tokenizer in (smol, tiny):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert b"".join(tokenizer.token_bytes(index) for index in ids) == text.encode()
        assert len(tokenizer.convert_ids_to_tokens(ids)) == len(ids)


def test_gguf_and_folder_of_one_model_agree(tiny: Tokenizer, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", make_model("LlamaForCausalLM"))
    other = load_tokenizer(open_checkpoint(path))
    for text in TEXTS:
        assert other.encode(text) == tiny.encode(text)
    assert other.apply_chat_template(HELLO) == tiny.apply_chat_template(HELLO)
    assert (other.special_ids, other.vocab_size) == (tiny.special_ids, tiny.vocab_size) == ({0, 1, 2, 3}, VOCAB_SIZE)
    assert other.eos_token_ids == tiny.eos_token_ids == (TURN_END,)


def test_special_tokens_are_hidden_on_request(tiny: Tokenizer) -> None:
    ids = tiny.apply_chat_template(HELLO)
    assert ids[0] == TURN_START
    assert "<|im_start|>" in tiny.decode(ids, skip_special_tokens=False)
    assert tiny.decode(ids) == "user\nhello\nassistant\n"
    assert tiny.decode(tiny.apply_chat_template(HELLO, add_generation_prompt=False)) == "user\nhello\n"


def test_half_characters_and_ids_outside_the_vocabulary(tiny: Tokenizer) -> None:
    emoji = tiny.encode("𝄞")
    assert len(emoji) == 4, "not in the corpus: one token a byte"
    assert [tiny.token_bytes(index) for index in emoji] == [bytes([byte]) for byte in "𝄞".encode()]
    assert "\ufffd" in tiny.decode(emoji[:2])
    assert tiny.decode([VOCAB_SIZE + 5]) == ""
    assert tiny.token_bytes(VOCAB_SIZE + 5) == b""
    assert tiny.convert_ids_to_tokens([VOCAB_SIZE + 5]) == [""]
    assert tiny.decode(tiny.encode("a\ud83db")) == "a?b"


def test_every_end_counts(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert load_tokenizer(open_checkpoint(copy)).eos_token_ids == (0, TURN_END)
    assert set(open_checkpoint(copy).facts.eos_token_ids) == {0, TURN_END}
    assert load_tokenizer(open_checkpoint(copy)).pad_token_id == PAD


def test_chat_template_refusals_are_plain(tiny: Tokenizer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="unknown role wizard"):
        tiny.apply_chat_template([{"role": "wizard", "content": "x"}])
    with pytest.raises(ChatTemplateError):
        tiny.apply_chat_template([{"role": "user", "content": None}])
    template = tmp_path / "template.jinja"
    for text, words in (
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0]['role'].nothing.at_all }}", "has no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
    ):
        template.write_text(text)
        with pytest.raises(ChatTemplateError, match=words):
            load_tokenizer(open_checkpoint(folder), template).apply_chat_template(HELLO)


def test_chat_template_file_replaces_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("[{{ messages[0]['content'] }}|{{ mood }}]")
    tokenizer = load_tokenizer(open_checkpoint(folder), template)
    assert tokenizer.decode(tokenizer.apply_chat_template(HELLO, mood="calm")) == "[hello|calm]"
    with pytest.raises(CheckpointError, match="chat template cannot be read"):
        load_tokenizer(open_checkpoint(folder), tmp_path / "absent.jinja")


def test_chat_template_of_its_own_file(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    plain = load_tokenizer(open_checkpoint(copy))
    assert not plain.has_chat_template
    with pytest.raises(ChatTemplateError, match="no chat template"):
        plain.apply_chat_template(HELLO)
    (copy / "chat_template.jinja").write_text(template)
    assert load_tokenizer(open_checkpoint(copy)).has_chat_template


def test_threads_share_one_tokenizer(smol: Tokenizer) -> None:
    texts = [f"{text} {index}" for index in range(40) for text in TEXTS]
    expected = [smol.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(smol.encode, texts)) == expected
        assert list(pool.map(smol.decode, expected)) == [smol.decode(ids) for ids in expected]


def test_missing_or_damaged_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for text in ("{}", "[1, 2", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["x", "y"]]}}', "\0"):
        (copy / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
            load_tokenizer(open_checkpoint(copy))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer"):
        load_tokenizer(open_checkpoint(copy))


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    """Scores instead of merges, spaces as U+2581, bytes for what has no piece, BOS in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    scores = [0.0] * len(pieces)
    for rank, piece in enumerate(["▁", "h", "e", "l", "o", "el", "he", "lo"]):
        pieces.append(piece)
        types.append(1)
        scores.append(-float(rank))
    model = make_model("LlamaForCausalLM", vocab_size=len(pieces))
    path = make_gguf(tmp_path / "spm.gguf", model, sentencepiece=(pieces, scores, types))
    tokenizer = load_tokenizer(open_checkpoint(path))
    ids = tokenizer.encode("hello é")
    # The best score is joined first, wherever it stands: "el" before "he".
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁", "h", "el", "lo", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "hello é"
    assert b"".join(tokenizer.token_bytes(index) for index in ids[1:]) == " hello é".encode()
    assert tokenizer.token_bytes(ids[-1]) == b"\xa9"


def test_splitting_patterns_compile_and_lose_nothing() -> None:
    from tokenizers import Regex, pre_tokenizers

    for name, patterns in SPLITS.items():
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        for text in TEXTS:
            pieces = pre_tokenizers.Sequence(splits).pre_tokenize_str(text)
            assert "".join(piece for piece, _ in pieces) == text, name


def test_unknown_way_of_splitting_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "x.gguf", make_model("LlamaForCausalLM"), pre="of-tomorrow")
    with pytest.raises(CheckpointError, match="of-tomorrow"):
        load_tokenizer(open_checkpoint(path))


def test_opening_and_tokenising_need_no_torch(smollm2_gguf: Path) -> None:
    program = (
        "import sys; from plimsoll.checkpoint import open_checkpoint; c = open_checkpoint(sys.argv[1]);"
        "assert not {'torch', 'transformers'} & set(sys.modules);"
        "from plimsoll.checkpoint.tokenizer import load_tokenizer; load_tokenizer(c).encode('x');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(smollm2_gguf)], check=True)


def test_saved_tokenizer_is_the_same(smol: Tokenizer, tmp_path: Path) -> None:
    smol.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert backend.encode(text).ids == smol.encode(text)
