"""Forms in which public datasets keep their texts."""

from pathlib import Path

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.quantjob.data import Corpus
from tests.support.checkpoints import make_checkpoint, write_tokenizer
from tests.support.corpora import lines, stream


def test_sharegpt_and_alpaca_are_conversations_like_messages(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked, answered = "How deep is she?", "Seven feet."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    forms = {
        "messages": {"messages": turns},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
        "roles": {"conversations": turns},
        "alpaca": {"instruction": asked, "input": "", "output": answered},
        "no input": {"instruction": asked, "output": answered},
    }
    found = []
    for name, record in forms.items():
        (tmp_path / f"{name}.jsonl").write_bytes(lines(record))
        found.append(stream(Corpus(str(tmp_path / f"{name}.jsonl"), tokenizer)))
    assert all(ids == found[0] for ids in found)
    (tmp_path / "more.csv").write_text(f"instruction,input,output\n{asked},the boat,{answered}\n")
    text = tokenizer.decode(stream(Corpus(str(tmp_path / "more.csv"), tokenizer)))
    assert "How deep is she?\n\nthe boat" in text


def test_alpaca_is_plain_text_for_a_model_without_a_template(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "plain", tokenizer=False)
    write_tokenizer(folder, chat_template=None)
    (tmp_path / "a.jsonl").write_bytes(lines({"instruction": "Say one", "output": "one"}))
    plain = load_tokenizer(open_checkpoint(folder))
    assert plain.decode(stream(Corpus(str(tmp_path / "a.jsonl"), plain))[:-1]).strip() == "Say one\n\none"


@pytest.mark.parametrize("name", ["page.html", "rows.xlsx", "data.xml", "list.yaml.gz"])
def test_a_file_that_is_no_prose_is_refused_also_when_it_is_named(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"<p>markup</p>")
    with pytest.raises(SpecError, match="holds no plain text"):
        Corpus(str(tmp_path / name), tokenizer)
