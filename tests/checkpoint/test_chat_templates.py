"""Templates of every form get the text of every message, and the right template is chosen among several."""

import json
import logging
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints import CHAT_TEMPLATE, make_checkpoint, make_gguf, make_model

STRINGS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
FIRST_PART = "{% for m in messages %}<{{ m.role }}>{{ m['content'][0]['text'] }}{% endfor %}"
FILTERED = "{% for m in messages %}<{{ m.role }}>{{ m.content | map(attribute='text') | join }}{% endfor %}"
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
#: As SmolVLM's and others': only the user's turns are lists, and the system's text must be a string.
MIXED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}"
    "{% for part in m.content %}{{ part['text'] }}{% endfor %}{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"
)
#: And the other way: a system's list beside a user's string; a list where a string is due raises here.
MIXED_OTHER_WAY = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'system' %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% else %}{{ '' + m.content }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
WRITTEN = "<system>be brief<user>one<assistant>two<user>three"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("templates") / "tiny")


def with_template(folder: Path, template: object) -> Tokenizer:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return load_tokenizer(open_checkpoint(folder))


def in_parts(messages: list[dict[str, str]]) -> list[dict[str, object]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


@pytest.mark.parametrize("template", [STRINGS, PARTS, FIRST_PART, FILTERED, EITHER, MIXED, MIXED_OTHER_WAY])
def test_a_template_gets_the_form_of_content_that_it_prints(folder: Path, template: str) -> None:
    for messages in (TALK, in_parts(TALK)):
        tokenizer = with_template(folder, template)
        assert tokenizer.render_chat_template(messages) == WRITTEN
        assert tokenizer.decode(tokenizer.apply_chat_template(messages)) == WRITTEN
        # What was found out on a short conversation holds for later ones with more roles.
        other = with_template(folder, template)
        assert other.render_chat_template(TALK[1:2]) == "<user>one"
        assert other.render_chat_template(messages) == WRITTEN


def test_roles_of_tools_are_found_out_as_well(folder: Path) -> None:
    template = MIXED.replace("m.role == 'user'", "m.role == 'tool'")
    talk = [*TALK, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "21 degrees"}]
    assert with_template(folder, template).render_chat_template(talk).endswith("<tool>21 degrees")


def test_parts_stay_apart_for_a_template_that_loops_and_are_lines_for_another(folder: Path) -> None:
    two = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert with_template(folder, PARTS).render_chat_template(two) == "<user>ab"
    assert with_template(folder, STRINGS).render_chat_template(two) == "<user>a\nb"


def test_an_answer_is_continued_in_a_template_of_parts(folder: Path) -> None:
    tokenizer = with_template(folder, PARTS + "</s>")
    rendered = tokenizer.render_chat_template(TALK[:3], add_generation_prompt=False, continue_final_message=True)
    assert rendered == "<system>be brief<user>one<assistant>two"


@pytest.mark.parametrize("template", [STRINGS, PARTS])
def test_a_template_may_change_the_letters_of_a_text(folder: Path, template: str) -> None:
    changed = template.replace("m.content }}", "m.content | upper }}").replace("text }}", "text | upper }}")
    assert changed != template
    for messages in (TALK[1:2], in_parts(TALK[1:2])):
        assert with_template(folder, changed).render_chat_template(messages) == "<user>ONE"


def test_a_template_that_prints_no_user_is_refused(folder: Path) -> None:
    tokenizer = with_template(folder, "{% for m in messages %}<{{ m.role }}>{{ m.text }}{% endfor %}")
    with pytest.raises(ChatTemplateError, match="prints no text of a user"):
        tokenizer.apply_chat_template(TALK)


def test_what_is_no_text_is_refused_by_its_place(folder: Path) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(ChatTemplateError, match=r"must be a string or a list of text parts") as caught:
        with_template(folder, PARTS).apply_chat_template(image)
    assert caught.value.field == "messages[0].content"


NAMED = {"tool_use": "[tools]" + STRINGS, "chat": "[chat]" + STRINGS, "rag": "[rag]" + STRINGS}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("tool_use", "chat", "rag"), "chat"), (("tool_use", "rag", "other"), "other"), (("tool_use",), "tool_use"),
        (("default", "chat"), "default"),
    ],
)  # fmt: skip
def test_templates_without_a_default_are_read_and_one_is_taken(
    folder: Path, names: tuple[str, ...], taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = [{"name": name, "template": f"[{name}]" + STRINGS} for name in names]
    with caplog.at_level(logging.WARNING):
        tokenizer = with_template(folder, given)
    assert tokenizer.render_chat_template(TALK[1:2]) == f"[{taken}]<user>one"
    assert tokenizer.render_chat_template(TALK[1:2], chat_template=names[0]) == f"[{names[0]}]<user>one"
    said = [record.getMessage() for record in caplog.records]
    ambiguous = "default" not in names and len(names) > 1
    assert any(all(name in words for name in names) for words in said) == ambiguous


def test_a_name_chooses_and_an_unknown_one_lists_them(folder: Path) -> None:
    tokenizer = with_template(folder, [{"name": name, "template": text} for name, text in NAMED.items()])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert tokenizer.render_chat_template(TALK[1:2], tools=tools).startswith("[tools]")
    with pytest.raises(ChatTemplateError, match="tool_use, chat, rag"):
        tokenizer.render_chat_template(TALK, chat_template="none")
    checkpoint = open_checkpoint(folder)
    assert load_tokenizer(checkpoint, "rag").render_chat_template(TALK[1:2]).startswith("[rag]")
    with pytest.raises(CheckpointError, match="tool_use, chat, rag"):
        load_tokenizer(checkpoint, "none")


def test_named_templates_of_a_gguf(tmp_path: Path) -> None:
    named = {f"tokenizer.chat_template.{name}": text for name, text in NAMED.items()}
    for own, taken in ((None, "[chat]"), ("[default]" + STRINGS, "[default]")):
        metadata = {"tokenizer.chat_template": own, **named}
        path = make_gguf(tmp_path / f"{taken}.gguf", make_model("LlamaForCausalLM"), metadata=metadata)
        tokenizer = load_tokenizer(open_checkpoint(path))
        assert tokenizer.render_chat_template(TALK[1:2]) == f"{taken}<user>one"
        assert tokenizer.render_chat_template(TALK[1:2], chat_template="rag") == "[rag]<user>one"


def test_one_template_of_a_folder_is_still_one_when_it_is_saved(folder: Path, tmp_path: Path) -> None:
    with_template(folder, CHAT_TEMPLATE).save(tmp_path)
    assert load_tokenizer_of(tmp_path) == CHAT_TEMPLATE


def load_tokenizer_of(folder: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder).chat_template)
