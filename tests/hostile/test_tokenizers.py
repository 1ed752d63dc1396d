"""Hostile tokenizers: refused by the file or the field, before they cost time, memory or a thread."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.checkpoint.tokenizer_limits import MOST_ADDED, MOST_AROUND, MOST_VALUES, check_files
from plimsoll.runtime.server.errors import ApiError
from tests.support.bounded import bounded, refusal
from tests.support.damage import NASTY
from tests.support.fuzz_readers import SEEDS
from tests.support.preparing import preparing


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def steps(part: str, step: dict[str, Any], times: int) -> dict[str, Any]:
    """A part of a tokenizer that does the same again and again; `part` is normalizer, pre_tokenizer or decoder."""
    return {part: {"type": "Sequence", f"{part.replace('_', '')}s": [step] * times}}


DOUBLES = replace({"String": "a"}, "aa")
BACKTRACKS = {"Regex": "(a+)+$"}
TEXT: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
MARK: dict[str, Any] = {"SpecialToken": {"id": "m", "type_id": 0}}
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "added_tokens_decoder", "tokenizer_class", "add_bos_token")


def around(single: list[dict[str, Any]], ids: int = 1) -> dict[str, Any]:
    """A processor that puts a special token of so many ids around a text."""
    marks = {"m": {"id": "m", "ids": [1] * ids, "tokens": ["m"] * ids}}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": marks}


def repeated(processor: dict[str, Any], times: int) -> dict[str, Any]:
    return {"type": "Sequence", "processors": [processor] * times}


def added(number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 320 + number, "content": f"<{number}>", **flags}


#: What is changed in tokenizer.json, and words of the refusal.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "100 million tokens around a text": (
        {"post_processor": around([*[MARK] * 10_000, TEXT], 10_000)}, f"post_processor: puts more than {MOST_AROUND}"),
    "a text twice": ({"post_processor": around([TEXT, TEXT])}, "post_processor: repeats the text"),
    "a text doubled again and again": (
        {"post_processor": repeated(around([TEXT, TEXT]), 7)}, "post_processor: repeats the text"),
    "processors without end": ({"post_processor": repeated(around([TEXT]), 2000)}, "post_processor: has more than"),
    "a normalizer that panics": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is no table of characters"),
    "a normalizer that doubles 33 times": (steps("normalizer", DOUBLES, 33), "normalizer: may make a text more"),
    "a normalizer that doubles by an expression": (
        steps("normalizer", replace({"Regex": "a"}, "aa"), 33), "normalizer: may make a text more"),
    "doubling inside of sequences": (
        {"normalizer": {"type": "Sequence", "normalizers": [steps("normalizer", DOUBLES, 11)["normalizer"]] * 3}},
        "normalizer: may make a text more"),
    "a decoder that doubles 33 times": (steps("decoder", DOUBLES, 33), "decoder: may make a text more"),
    "a normalizer that makes much of the added tokens": (
        {**steps("normalizer", DOUBLES, 9), "added_tokens": [added(number) | {"content": f"{number:04000}"}
         for number in range(30)]}, "normalizer: may make more than"),
    "a Prepend of megabytes": (
        {"normalizer": {"type": "Prepend", "prepend": "x" * 4_000_000}}, "normalizer.prepend: holds a text of more"),
    "a Prepend before each of many tokens": (
        {**steps("normalizer", {"type": "Prepend", "prepend": "x" * 4000}, 50), "added_tokens": [
         added(number) for number in range(1000)]}, "normalizer: may make more than"),
    "normalizers without end": (steps("normalizer", {"type": "NFC"}, 100_000), "normalizer: has more than"),
    "pre-tokenizers without end": (steps("pre_tokenizer", {"type": "Whitespace"}, 1000), "pre_tokenizer: has more"),
    "decoders without end": (steps("decoder", {"type": "Fuse"}, 1000), "decoder: has more than"),
    "an expression of a megabyte": (
        {"normalizer": replace({"Regex": "a|" * 500_000}, "b")}, "normalizer.pattern: holds a text of more"),
    "an expression of a megabyte to split at": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a|" * 500_000}, "behavior": "Isolated",
         "invert": False}}, "pre_tokenizer.pattern: holds a text of more"),
    "an expression that is none": ({"normalizer": replace({"Regex": "("}, "b")}, "the tokenizer cannot be read"),
    "a table that says it has four gigabytes": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/P///w=="}}, "is no table of characters"),
    "a decoder's suffix of megabytes": (
        {"decoder": {"type": "BPEDecoder", "suffix": "x" * 4_000_000}}, "decoder.suffix: holds a text of more"),
    "added tokens without end": (
        {"added_tokens": [added(number) for number in range(MOST_ADDED + 1)]}, "tokenizer.json: holds more than"),
}  # fmt: skip


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a seed; `shards` unless the test names another one."""
    return Path(shutil.copytree(SEEDS / getattr(request, "param", "shards"), tmp_path / "model"))


def tokenizes(folder: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(folder))
    assert len(tokenizer.encode("hello" * 20)) < 1000
    tokenizer.decode([0, 5, 10**6])


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_explodes_or_panics_is_refused(folder: Path, name: str) -> None:
    changes, words = HOSTILE[name]
    changed(folder / "tokenizer.json", **changes)
    with bounded(), pytest.raises(CheckpointError, match=words):
        tokenizes(folder)


def test_a_model_that_panics_is_refused(folder: Path) -> None:
    """Cutting a prefix of several bytes off a shorter token ends in Rust with no Exception of Python's."""
    model = json.loads((folder / "tokenizer.json").read_bytes())["model"]
    changed(folder / "tokenizer.json", model={**model, "continuing_subword_prefix": "é🦀"})
    with bounded(), pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        tokenizes(folder)


def test_more_values_than_any_vocabulary_has_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model":{"merges":[' + b"[]," * (MOST_VALUES // 2) + b"[]]}}")
    error = refusal(check_files, tmp_path)
    assert error is not None
    assert (error.field, "values" in str(error)) == (str(tmp_path / "tokenizer.json"), True)


@pytest.mark.parametrize("folder", ["gptq"], indirect=True)
@pytest.mark.parametrize("index", [1 << 20, 2**31 - 1, 2**32, 10**30])
def test_an_id_far_above_the_others_is_refused(folder: Path, index: int) -> None:
    """All ids below would be walked."""
    changed(folder / "vocab.json", **{"never": index})
    error = refusal(tokenizes, folder)
    assert error is not None
    assert error.field == str(folder / "vocab.json")


@pytest.mark.parametrize("folder", ["gptq", "pieces", "shards"], indirect=True)
@pytest.mark.parametrize("role", ROLES)
def test_any_value_in_a_tokenizers_configuration_is_read_or_refused(folder: Path, role: str) -> None:
    for value in NASTY:
        changed(folder / "tokenizer_config.json", **{role: value})
        error = refusal(tokenizes, folder)
        assert error is None or (error.field and len(str(error)) < 1000), value


ENTRIES: tuple[dict[str, Any], ...] = (
    {"9" * 5000: {"content": "<q>"}}, {"-1": {"content": "<q>"}}, {"١": {"content": "<q>"}}, {"": {"content": "<q>"}},
    {"320": None}, {"320": {}}, {"320": {"content": 5}}, {"320": {"content": ""}}, {"320": ["<q>"]},
    {"1000000": {"content": "<q>"}}, {"1e3": {"content": "<q>"}},
)  # fmt: skip


@pytest.mark.parametrize("folder", ["gptq", "pieces"], indirect=True)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: next(iter(entry))[:8])
def test_an_added_token_without_a_place_is_refused_by_name(folder: Path, entry: dict[str, Any]) -> None:
    changed(folder / "tokenizer_config.json", added_tokens_decoder=entry)
    error = refusal(tokenizes, folder)
    assert error is not None
    assert "added_tokens_decoder" in str(error.field) or "tokenizer_config" in str(error.field)


@pytest.mark.parametrize("folder", ["gptq", "pieces"], indirect=True)
def test_an_added_token_written_as_text_is_read(folder: Path) -> None:
    index = "320" if (folder / "vocab.json").exists() else "266"
    changed(folder / "tokenizer_config.json", added_tokens_decoder={index: "<q>"})
    tokenizes(folder)


@pytest.mark.parametrize("name", ["a pattern that backtracks", "one to split at", "a table that leads nowhere"])
def test_a_tokenizer_that_fails_on_a_text_is_named_and_the_next_text_is_read(folder: Path, name: str) -> None:
    split = {"type": "Split", "pattern": BACKTRACKS, "behavior": "Isolated", "invert": False}
    changes: dict[str, dict[str, Any]] = {
        "a pattern that backtracks": {"normalizer": replace(BACKTRACKS, "b")},
        "one to split at": {"pre_tokenizer": split},
        "a table that leads nowhere": {
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAAAAAA"}},
    }  # fmt: skip
    changed(folder / "tokenizer.json", **changes[name])
    with preparing(folder) as prepare:
        error = prepare.text("a" * 40 + "b")
        assert isinstance(error, ApiError)
        assert (error.status, error.param) == (400, "prompt")
        assert "tokenizer" in error.message
        assert not isinstance(prepare.text([5, 6]), ApiError)


def test_published_kinds_of_tokenizers_pass(folder: Path) -> None:
    """What Llama 2, Gemma, XLM-R and CLIP write."""
    space = replace({"String": " "}, "▁")
    for normalizer in (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}, space,
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace({"Regex": "\\s+"}, " "), {"type": "Lowercase"}]},
        {"type": "Sequence", "normalizers": [replace({"Regex": " {2,}"}, "▁"), {"type": "NFKC"}]}, None,
    ):  # fmt: skip
        changed(folder / "tokenizer.json", normalizer=normalizer)
        tokenizes(folder)
