"""Turns that a family's template refuses or drops are moved or merged; turns that it takes stay as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tests.support import family_templates as families
from tests.support.checkpoints import make_checkpoint

Message = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("turns") / "tiny")


def with_template(folder: Path, template: str) -> Tokenizer:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return load_tokenizer(open_checkpoint(folder))


def talk(turns: str) -> list[Message]:
    """`s1 u2` is a system's message `one` and a user's `two`."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    words = ["zero", "one", "two", "three", "four", "five"]
    return [{"role": roles[turn[0]], "content": words[int(turn[1])]} for turn in turns.split()]


MISTRAL = "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]"
CASES = [
    # No system role: its text begins the user's next turn.
    (families.GEMMA_2, "s1 u2", "<start_of_turn>user\none\n\ntwo<end_of_turn>\n"),
    (families.GEMMA_2, "s1 s2 u3", "<start_of_turn>user\none\n\ntwo\n\nthree<end_of_turn>\n"),
    (
        families.GEMMA_2, "u1 a2 s3 u4",
        "<start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\ntwo<end_of_turn>\n"
        "<start_of_turn>user\nthree\n\nfour<end_of_turn>\n",
    ),
    (families.GEMMA_2, "s1", "<start_of_turn>user\none<end_of_turn>\n"),
    (families.MISTRAL_7B, "s1 u2 a3 u4", "[INST] one\n\ntwo [/INST]three</s>[INST] four [/INST]"),
    (families.MISTRAL_7B, "u1 s2", "[INST] one\n\ntwo [/INST]"),
    (families.PARTS_WITHOUT_SYSTEM, "s1 u2", "<user>one\n\ntwo"),
    # One at the beginning: the others join it.
    (
        families.MISTRAL_SMALL, "s1 u2 a3 s4 u5",
        MISTRAL.format("one\n\nfour") + "[INST]two[/INST]three</s>[INST]five[/INST]",
    ),
    (families.MISTRAL_SMALL, "u1 s2", MISTRAL.format("two") + "[INST]one[/INST]"),
    (families.MISTRAL_SMALL, "s1 s2 u3", MISTRAL.format("one\n\ntwo") + "[INST]three[/INST]"),
    (families.QWEN_3_5, "u1 s2", "<|im_start|>system\ntwo<|im_end|>\n<|im_start|>user\none<|im_end|>\n"),
    (families.GEMMA_3, "s1 s2 u3", "<start_of_turn>user\none\n\ntwo\n\nthree<end_of_turn>\n"),
    # Dropped without a word, or all but the last.
    (families.LLAMA_2, "s1 u2 s3 u4", "[INST] <<SYS>>\none\n\nthree\n<</SYS>>\n\ntwo\n\nfour [/INST]"),
    (families.DEEPSEEK_R1, "s1 s2 u3", "one\n\ntwo<｜User｜>three"),
    # Taken as they are.
    (families.QWEN_2, "s1 u2 s3", "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in
                                          (("system", "one"), ("user", "two"), ("system", "three")))),
    (families.LLAMA_3, "s1 s2 u3", "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for
                                           role, text in (("system", "one"), ("system", "two"), ("user", "three")))),
    (families.LLAMA_3, "u1 u2", "".join(f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>" for
                                        text in ("one", "two"))),
    (families.DEEPSEEK_R1, "s1 u2 u3", "one<｜User｜>two<｜User｜>three"),
    (families.GEMMA_3, "s1 u2", "<start_of_turn>user\none\n\ntwo<end_of_turn>\n"),
    # Neighbours of one role, where user and assistant must take turns.
    (families.MISTRAL_7B, "u1 u2 a3 a4 u5", "[INST] one\n\ntwo [/INST]three\n\nfour</s>[INST] five [/INST]"),
    (families.MISTRAL_SMALL, "s1 u2 u3", MISTRAL.format("one") + "[INST]two\n\nthree[/INST]"),
    (families.GEMMA_3, "u1 u2", "<start_of_turn>user\none\n\ntwo<end_of_turn>\n"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "turns", "written"), CASES)
def test_every_turn_reaches_the_prompt_of_its_family(folder: Path, template: str, turns: str, written: str) -> None:
    tokenizer = with_template(folder, template)
    assert tokenizer.render_chat_template(talk(turns), add_generation_prompt=False) == written
    # What was found out holds for other conversations.
    again = tokenizer.render_chat_template(talk("u1"), add_generation_prompt=False)
    assert again == with_template(folder, template).render_chat_template(talk("u1"), add_generation_prompt=False)
    assert tokenizer.render_chat_template(talk(turns), add_generation_prompt=False) == written


def test_parts_are_merged_as_parts(folder: Path) -> None:
    turns = talk("s1 u2")
    turns[1]["content"] = [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]
    assert with_template(folder, families.PARTS_WITHOUT_SYSTEM).render_chat_template(turns) == "<user>onetwothree"
    assert "one\ntwo\nthree" in with_template(folder, families.GEMMA_2).render_chat_template(turns)


def test_what_cannot_be_merged_is_refused_in_the_templates_words(folder: Path) -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        with_template(folder, families.MISTRAL_7B).render_chat_template(talk("a1 u2 u3"))


def test_calls_of_tools_and_their_results_stay_turns_of_their_own(folder: Path) -> None:
    refuses = "{% for m in messages %}{{ raise_exception('never') }}{% endfor %}"
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    with pytest.raises(ChatTemplateError, match="never"):
        with_template(folder, refuses).render_chat_template([*talk("u1"), call, call, *talk("u2")])


def test_a_template_that_needs_a_variable_keeps_its_system_messages(folder: Path) -> None:
    needs = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + families.LLAMA_3
    written = with_template(folder, needs).render_chat_template(talk("s1 u2"), tools=[{"type": "function"}])
    assert written.startswith("<|start_header_id|>system<|end_header_id|>\n\none<|eot_id|>")
