"""Calibration text: every form it may come in, how it is packed, and what is said of one that is no text."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.dataset import parse_dataset
from plimsoll.api.errors import SpecError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.quantjob import data
from plimsoll.quantjob import documents as files
from plimsoll.quantjob.data import Corpus
from plimsoll.quantjob.documents import data_files, documents
from plimsoll.quantjob.hub_dataset import choose
from tests.support.checkpoints import TURN_END, make_checkpoint, write_tokenizer
from tests.support.corpora import lines, stream
from tests.support.hub import Hub, running_hub

TEXTS = [f"Text {index}: " + "ships and lines " * (index + 1) for index in range(12)]


def texts_of(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The texts between the end tokens."""
    found: list[list[int]] = [[]]
    for token in ids:
        if token == TURN_END:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == [], "the last text ends too"
    return [tokenizer.decode(part, skip_special_tokens=False) for part in found]


FORMS = {
    "texts.jsonl": lines(*({"text": text, "other": 1} for text in TEXTS)),
    "texts.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "lines.json": lines(*({"text": text} for text in TEXTS)),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(*({"text": text} for text in TEXTS)),
    "blank.ndjson": b"\n".join(lines({"text": text}) for text in [*TEXTS, "", "  "]),
    "packed.jsonl.gz": gzip.compress(lines(*({"text": text} for text in TEXTS))),
    "table.csv": ("id,text\r\n" + "".join(f'{n},"{text}"\r\n' for n, text in enumerate(TEXTS))).encode("utf-8-sig"),
    "table.tsv": ("text\tid\n" + "".join(f'"{text}"\t1\n' for text in TEXTS)).encode(),
    "pairs.jsonl": lines(*({"prompt": text[:9], "completion": text[9:]} for text in TEXTS)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_every_text_once_with_the_end_token_behind(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(FORMS[name])
    ids = stream(Corpus(str(tmp_path / name), tokenizer))
    assert sorted(texts_of(ids, tokenizer)) == sorted(TEXTS)


@pytest.mark.parametrize("columns", [["text"], ["prompt", "completion"], ["messages"]])
def test_parquet_is_read_a_column_at_a_time(columns: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "texts.parquet"
    values: dict[str, list[Any]] = {
        "text": TEXTS,
        "prompt": ["a"] * len(TEXTS),
        "completion": TEXTS,
        "messages": [[{"role": "user", "content": text}] for text in TEXTS],
    }
    table = {name: values[name] for name in columns} | {"id": list(range(len(TEXTS)))}
    pyarrow.parquet.write_table(pyarrow.table(table), file, row_group_size=5)
    found = [document.content for document in documents(file, "--dataset")]
    wanted: dict[str, list[Any]] = {"text": TEXTS, "prompt": ["a" + text for text in TEXTS]}
    assert found == wanted.get(columns[0], values[columns[0]])


def test_parquet_without_pyarrow_says_what_to_install(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "texts.parquet").write_bytes(b"PAR1")
    with pytest.raises(SpecError, match=r"pyarrow is not installed.*plimsoll\[quant\]"):
        Corpus(str(tmp_path / "texts.parquet"), tokenizer)


def test_messages_go_through_the_models_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Hi"},
    ]
    (tmp_path / "chat.jsonl").write_bytes(lines({"messages": talk}, {"prompt": talk[:1], "completion": talk[1:]}))
    ids = stream(Corpus(str(tmp_path / "chat.jsonl"), tokenizer))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    once = "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_end|>"
    assert text == once * 2


def test_a_configmaps_folder_is_read_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As the kubelet lays it out: links into a folder that is swapped as a whole."""
    inner = tmp_path / "..2026_11_21"
    inner.mkdir()
    (inner / "one.txt").write_text("first text")
    (inner / "two.jsonl").write_bytes(lines({"text": "second text"}))
    (inner / "README").write_text("no text to calibrate on")
    (tmp_path / "..data").symlink_to(inner.name)
    for file in inner.iterdir():
        (tmp_path / file.name).symlink_to(f"..data/{file.name}")
    assert [file.name for file in data_files(tmp_path, "--dataset")] == ["one.txt", "two.jsonl"]
    ids = stream(Corpus(str(tmp_path), tokenizer))
    assert sorted(texts_of(ids, tokenizer)) == ["first text", "second text"]


@settings(max_examples=40)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=60), max_size=12
    ),
    samples=st.integers(1, 4),
    held_out=st.integers(1, 4),
    length=st.integers(2, 40),
    seed=st.integers(0, 5),
)
def test_head_and_tail_are_the_ends_of_one_stream_and_never_overlap(
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    samples: int,
    held_out: int,
    length: int,
    seed: int,
) -> None:
    file = tmp_path_factory.mktemp("pack") / "texts.jsonl"
    file.write_bytes(lines(*({"text": text} for text in [*texts, "never empty"])))
    whole = stream(Corpus(str(file), tokenizer, seed))
    corpus = Corpus(str(file), tokenizer, seed)
    head, tail = samples * length, held_out * length
    if head + tail <= len(whole):
        first, last = corpus.head(samples, length), corpus.tail(held_out, length, after=head)
        assert first.windows.ravel().tolist() == whole[:head]
        assert last.windows.ravel().tolist() == whole[len(whole) - tail :]
        assert first.digest == "sha256:" + hashlib.sha256(first.windows.astype("<i8").tobytes()).hexdigest()
    else:
        with pytest.raises(SpecError, match=f"holds {len(whole)} tokens, and {head + tail} are needed"):
            corpus.tail(held_out, length, after=head)


def test_long_texts_are_cut_between_words_and_lose_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PIECE", 64)
    text = "".join(f"word{index} and\nmore " for index in range(60)) + "x" * 300
    (tmp_path / "long.txt").write_text(text)
    ids = stream(Corpus(str(tmp_path / "long.txt"), tokenizer))
    assert texts_of(ids, tokenizer) == [text]


def test_the_order_follows_from_texts_and_seed_not_from_where_they_lie(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, order in ((one, TEXTS), (two, TEXTS[::-1])):
        folder.mkdir()
        for index, text in enumerate(order):
            (folder / f"{index}.jsonl").write_bytes(lines({"text": text}))
    found = [Corpus(str(folder), tokenizer, seed=3).head(4, 16).digest for folder in (one, two)]
    assert found[0] == found[1] != Corpus(str(one), tokenizer, seed=4).head(4, 16).digest


def test_more_than_the_pool_is_not_read(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL", 100)
    (tmp_path / "a.jsonl").write_bytes(lines(*({"text": text} for text in TEXTS)))
    (tmp_path / "b.jsonl").write_bytes(b"never looked at")
    ids = stream(Corpus(str(tmp_path), tokenizer))
    assert sum(map(len, texts_of(ids, tokenizer))) == 100


WRONG: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("a.jsonl", b"", "holds no text"),
    "only empty texts": ("a.jsonl", lines({"text": ""}, {"text": None}), "holds no text"),
    "an empty text file": ("a.txt", b"  \n", "holds no text"),
    "no JSON": ("a.jsonl", lines({"text": "fine"}) + b'{"text": \n', r"a.jsonl, line 2.*not JSON|not JSON.*line 2"),
    "JSON that nests without end": ("a.jsonl", b"[" * 100000 + b"\n", "not JSON"),
    "no object": ("a.jsonl", b'"text"\n', "is no object but str"),
    "no text field": ("a.jsonl", lines({"body": "x", "title": "y"}), "has no field text.*it has body, title"),
    "half a pair": ("a.jsonl", lines({"prompt": "x"}), "has no field text"),
    "text that is a number": ("a.jsonl", lines({"text": 5}), "text is no text but int"),
    "messages that are a text": ("a.jsonl", lines({"messages": "hello"}), "messages is no list but str"),
    "a message without a role": ("a.jsonl", lines({"messages": [{"content": "x"}]}), r"messages\[0\] is no message"),
    "a picture": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}),
        "has parts that are no text",
    ),
    "a role that the template refuses": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": "x"}]}, {"messages": [{"role": "wizard", "content": "x"}]}),
        "unknown role wizard",
    ),
    "Latin-1": (
        "a.jsonl",
        lines({"text": "fine"}) + '{"text": "Käse"}\n'.encode("latin-1"),
        r"not UTF-8 text \(in line 2\)",
    ),
    "a binary text file": ("a.txt", b"fine " * 10 + b"\xff\xfe\x00", r"not UTF-8 text \(at byte 50\)"),
    "half a character at the end": ("a.md", "fine é".encode()[:-1], r"not UTF-8 text \(at byte 5\)"),
    "gzip that is none": ("a.txt.gz", b"plain", "cannot be read"),
    "gzip cut short": ("a.txt.gz", gzip.compress(os.urandom(4000).hex().encode())[:900], "cannot be read"),
    "Parquet that is none": ("a.parquet", b"PAR1 nothing PAR1", "cannot be read|is not Parquet"),
    "an unknown kind in a folder": ("a.xml", b"<text>x</text>", "no file of a kind that is read here; it holds a.xml"),
    "a table without a column of text": ("a.csv", b"id;body\n1;x\n", "has no column text.*it has id, body"),
    "a table that is Latin-1": ("a.csv", "text\nKäse\n".encode("latin-1"), "not UTF-8 text"),
    "a turn of ShareGPT without words": (
        "a.jsonl",
        lines({"conversations": [{"from": "human", "value": 5}]}),
        r"conversations\[0\].content is no text but int",
    ),
    "too few tokens": ("a.txt", b"few words", r"holds \d+ tokens, and 64 are needed: 4 windows of 16 tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_calibration_text_is_named(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file, content, message = WRONG[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        Corpus(str(tmp_path), tokenizer, field="--calib-dataset").head(4, 16)
    assert str(caught.value).startswith("--calib-dataset: ")


def test_what_is_not_there_or_cannot_be_opened_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    for name, message in (
        ("none", "no such file"), ("empty", "it is empty"), ("pipe.txt", "neither a file nor a folder"),
        ("gone.txt", "no such file"), ("x" * 300, "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            Corpus(str(tmp_path / name), tokenizer)


def test_messages_need_a_model_with_a_template(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "plain", tokenizer=False)
    write_tokenizer(folder, chat_template=None)
    (tmp_path / "chat.jsonl").write_bytes(lines({"messages": [{"role": "user", "content": "x"}]}))
    with pytest.raises(SpecError, match=r"no chat template.*line 1"):
        Corpus(str(tmp_path / "chat.jsonl"), load_tokenizer(open_checkpoint(folder)))


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/texts", "hf://org/model", "hf://datasets/org", "hf://datasets/../x", "hf://datasets/a/b/../c",
     "pvc://", "", "  ", "hf://datasets/a/b@x y", "http://host/file", "hf://datasets/a/b//c"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(SpecError):
        parse_dataset(address, "--calib-dataset")


@pytest.mark.parametrize(
    "address",
    ["self", "hf://datasets/a/b@main", "hf://datasets/a/b@v1/c/d.jsonl", "pvc://claim/x/y", "pvc://claim", "x/y.txt",
     "hf://datasets/a/b@feature%2Fone/train"],
)  # fmt: skip
def test_an_address_reads_as_it_was_written(address: str) -> None:
    assert str(parse_dataset(address)) == address


def test_a_claim_is_mounted_by_the_cluster_and_self_is_not_read(tokenizer: Tokenizer) -> None:
    for address, message in (("pvc://claim/x", "only a cluster mounts"), ("self", "not read")):
        with pytest.raises(SpecError, match=message):
            Corpus(address, tokenizer)


def test_a_dataset_of_the_hub_needs_downloads(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpecError, match="downloads are off"):
        Corpus("hf://datasets/org/texts", tokenizer)


LISTED = [
    "README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet", "wiki/train.jsonl", "wiki/valid.jsonl", "wiki/trainee.jsonl", "x.xml",
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", LISTED[2:4]), ("test", [LISTED[1]]), ("wiki/valid", ["wiki/valid.jsonl"]), ("wiki", ["wiki/train.jsonl"]),
        ("wiki/train", ["wiki/train.jsonl"]), ("wiki/trainee.jsonl", ["wiki/trainee.jsonl"]), ("data", LISTED[2:4]),
        ("x.xml", []), ("nothing", []), ("wiki/test", []),
    ],
)  # fmt: skip
def test_a_datasets_files_by_file_folder_configuration_and_split(path: str, names: list[str]) -> None:
    assert choose(LISTED, path) == names


CLIENT = """
import json, sys
from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.quantjob import data

data.POOL = 100
tokenizer = load_tokenizer(open_checkpoint(sys.argv[1]))
for address in sys.argv[2:]:
    try:
        corpus = data.Corpus(address, tokenizer)
        print(json.dumps([corpus.source, corpus.head(1, 8).windows[0].tolist()]))
    except PlimsollError as error:
        print(json.dumps(str(error)))
"""


def test_a_dataset_of_the_hub_is_downloaded_as_far_as_it_is_wanted(
    checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """In a process of its own: huggingface_hub reads its endpoint when it is imported."""
    files = {f"data/train-{index}.jsonl": lines(*({"text": text} for text in TEXTS)) for index in range(3)}
    test = {"data/test.jsonl": lines({"text": "held out for measuring"})}
    wrong = {
        "hf://datasets/org/none": "no such repository",
        "hf://datasets/org/texts@v9": "no revision 'v9'",
        "hf://datasets/org/texts/valid": "no file, folder or split valid of a kind that is read here; it holds data/",
    }
    addresses = ["hf://datasets/org/texts", "hf://datasets/org/texts@main/test", *wrong]
    with running_hub(Hub(repos={"datasets/org/texts": files | test})) as hub:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(checkpoint), *addresses],
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        commit = hub.commit("datasets/org/texts")
    assert done.returncode == 0, done.stderr
    train, held_out, *errors = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(hub.sent) == ["data/test.jsonl", "data/train-0.jsonl"]
    assert train[0] == f"hf://datasets/org/texts@{commit}"
    assert held_out == [f"hf://datasets/org/texts@{commit}/test", tokenizer.encode("held out for measuring")[:8]]
    for error, message in zip(errors, wrong.values(), strict=True):
        assert message in error


def test_the_digest_is_of_the_ids_alone() -> None:
    windows = np.array([[1, 2], [3, 400]], dtype=np.int64)
    wanted = hashlib.sha256(b"".join(int(token).to_bytes(8, "little") for token in (1, 2, 3, 400))).hexdigest()
    assert data.tokens_of(windows, "x").digest == f"sha256:{wanted}"


def test_a_text_that_starts_with_a_megabyte_of_blanks_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b" " * files.READ + b"the text")
    assert data._pool(iter([tmp_path / "a.txt"]), tokenizer, "--dataset")[-1].parts == ["the text"]


def test_as_many_texts_are_kept_as_memory_allows(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MOST_TEXTS", 10)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 50)
    assert len(data._pool(iter([tmp_path / "a.jsonl"]), tokenizer, "--dataset")) == 10


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\u2028" * 50, "\U0010ffff", "\ufeff"])
def test_any_character_goes_through_the_tokenizer(text: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a " + text}))
    assert Corpus(str(tmp_path / "a.jsonl"), tokenizer).head(1, 2).windows.shape == (1, 2)
