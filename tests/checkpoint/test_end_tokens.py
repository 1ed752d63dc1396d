"""Where checkpoints name the end of an answer: any of these places counts, and plain text never does."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.convert import convert_gguf
from plimsoll.checkpoint.tokenizer import load_tokenizer
from tests.support.checkpoints import END_OF_TEXT, TURN_END, TURN_START, make_checkpoint, make_gguf, make_model


def ends(path: Path) -> tuple[int, ...]:
    return load_tokenizer(open_checkpoint(path)).eos_token_ids


def named(folder: Path, config: Any, generation: Any, tokenizer: dict[str, Any]) -> Path:
    """A tiny checkpoint that names its ends so."""
    make_checkpoint(folder, eos_token_id=config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text())
    del described["eos_token"]
    file.write_text(json.dumps(described | tokenizer))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer"),
    [
        (END_OF_TEXT, END_OF_TEXT, {"eos_token": "<|im_end|>"}),
        (END_OF_TEXT, [END_OF_TEXT], {"eos_token": "<|endoftext|>"}),
        (TURN_END, END_OF_TEXT, {"eos_token": "<|endoftext|>"}),
        (None, [END_OF_TEXT, TURN_END], {}),
        (END_OF_TEXT, None, {"eot_token": "<|im_end|>"}),
        (END_OF_TEXT, None, {}),
    ],
)
def test_the_end_of_a_turn_is_found_wherever_it_is_named(
    tmp_path: Path, config: Any, generation: Any, tokenizer: dict[str, Any]
) -> None:
    assert ends(named(tmp_path / "model", config, generation, tokenizer)) == (END_OF_TEXT, TURN_END)


@pytest.mark.parametrize("role", ["eos_token", "eot_token", "eom_token"])
@pytest.mark.parametrize("written", [str, lambda token: AddedToken(token).__getstate__() | {"__type": "AddedToken"}])
def test_a_role_of_the_tokenizer_ends_an_answer_however_it_is_written(tmp_path: Path, role: str, written: Any) -> None:
    """By a token that is no well-known end."""
    folder = named(tmp_path / "model", TURN_END, None, {role: written("<|im_start|>")})
    assert ends(folder) == (TURN_START, TURN_END)


def retokenized(folder: Path, *tokens: AddedToken, words: tuple[str, ...] = ()) -> list[int]:
    """Make a checkpoint with more tokens, `words` as plain entries of the vocabulary; return the ids of all of them."""
    make_checkpoint(folder, eos_token_id=END_OF_TEXT)
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    vocabulary = described["model"]["vocab"]
    for old, word in zip(list(vocabulary)[-len(words) :] if words else (), words, strict=True):
        vocabulary[word] = vocabulary.pop(old)
        described["model"]["merges"] = [pair for pair in described["model"]["merges"] if "".join(pair) != old]
    backend = Backend.from_str(json.dumps(described))
    backend.add_special_tokens([token for token in tokens if token.special])
    backend.add_tokens([token for token in tokens if not token.special])
    backend.save(str(file))
    return [backend.token_to_id(token) for token in (*(token.content for token in tokens), *words)]


@pytest.mark.parametrize("token", ["<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|EOT|>"])
@pytest.mark.parametrize("special", [True, False])
def test_well_known_ends_count_where_they_are_added_tokens(tmp_path: Path, token: str, special: bool) -> None:
    (index,) = retokenized(tmp_path / "model", AddedToken(token, special=special))
    assert ends(tmp_path / "model") == (END_OF_TEXT, TURN_END, index)


def test_a_word_of_the_vocabulary_that_looks_like_an_end_is_none(tmp_path: Path) -> None:
    (index,) = retokenized(tmp_path / "model", words=("<EOT>",))
    assert index not in ends(tmp_path / "model")


def test_the_end_of_a_part_is_none_where_answers_have_parts(tmp_path: Path) -> None:
    ids = retokenized(tmp_path / "model", AddedToken("<|end|>", special=True), AddedToken("<|return|>", special=True))
    assert not set(ids) & set(ends(tmp_path / "model"))


def test_a_gguf_whose_end_is_not_its_end_of_turn(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.eos_token_id": END_OF_TEXT, "tokenizer.ggml.eot_token_id": None}
    path = make_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"), metadata=metadata)
    assert ends(path) == (END_OF_TEXT, TURN_END)
    assert TURN_START not in ends(path)
    folder = convert_gguf(path, tmp_path / "converted")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [END_OF_TEXT, TURN_END]


def test_a_value_that_is_no_id_is_named_and_the_others_count(tmp_path: Path) -> None:
    folder = named(tmp_path / "model", END_OF_TEXT, ["</s>", TURN_END], {})
    assert open_checkpoint(folder).facts.eos_token_ids == (END_OF_TEXT, TURN_END)
    (notice,) = open_checkpoint(folder).notices
    assert "eos_token_id ['</s>'] is not used" in notice
