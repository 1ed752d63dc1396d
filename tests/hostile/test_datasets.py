"""Hostile calibration texts: each is read, or refused by the file's name, in bounded time and memory.

Seeds in `seeds/datasets` are small honest files; cases are these files changed at random, and bombs made on the spot.
"""

import gzip
import io
import os
import random
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.quantjob import allowance, documents, parquet_rows
from tests.support.bounded import bounded, refusal
from tests.support.mutated_bytes import mutated

SEEDS = Path(__file__).parent / "seeds" / "datasets"
FIELD = "spec.calibration.dataset"


def read(path: Path) -> int:
    """Documents in the file."""
    return sum(1 for _ in documents.documents(path, FIELD))


@pytest.mark.parametrize("name", sorted(path.name for path in SEEDS.iterdir() if path.suffix != ".parquet"))
def test_changed_files_are_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    draw, honest = random.Random(name), (SEEDS / name).read_bytes()
    path = tmp_path / name
    assert read(SEEDS / name) > 0
    for _ in range(30):
        path.write_bytes(mutated(honest, draw))
        error = refusal(read, path)
        assert error is None or (FIELD in str(error) and name in str(error))
        if name.endswith(".gz"):
            # Behind a packing that is whole, so that what is packed is looked at.
            path.write_bytes(gzip.compress(mutated(gzip.decompress(honest), draw)))
            error = refusal(read, path)
            assert error is None or name in str(error)


def test_changed_parquet_is_read_or_refused_by_name(tmp_path: Path) -> None:
    draw = random.Random(5)
    for seed in SEEDS.glob("*.parquet"):
        assert read(seed) > 0
        path = tmp_path / seed.name
        for _ in range(2):
            path.write_bytes(mutated(seed.read_bytes(), draw))
            error = refusal(read, path)
            assert error is None or (FIELD in str(error) and seed.name in str(error))


def packed(*parts: bytes) -> bytes:
    """Gzip of the parts, the first once and the second, if any, for ever as far as any reader is concerned."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    return out.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "blank lines.jsonl.gz": lambda: packed(b"\n" * (1 << 14)),
    "one line.jsonl.gz": lambda: packed(b'{"text": "', b"a" * (1 << 20)),
    "other fields.jsonl.gz": lambda: packed(b'{"text": "", "other": "%s"}\n' % (b"a" * 999) * 1000),
    "rows.csv.gz": lambda: packed(b"text,other\n", b",\n" * (1 << 14)),
    "quoted row.csv.gz": lambda: packed(b"text,other\n", b'a,"\n",' + b'"\n",' * (1 << 16)),
    "one line.csv.gz": lambda: packed(b"text,other\n", b"a" * (1 << 20)),
    "columns.csv": lambda: b"text" + b"," * (2 << 20),
    "columns of a row.csv": lambda: b"text,other\n" + b"," * (1 << 17),
    "values.jsonl": lambda: b'{"text": "a", "other": [' + b"[]," * (1 << 15) + b"[]]}",
    "values.json": lambda: b"[" + b"[]," * (1 << 15) + b"[]]",
    "deep.jsonl": lambda: b"[" * 10_000,
    "deep.json": lambda: b'[{"text":' * 4_000,
    "digits.jsonl": lambda: b'{"text": %s}' % (b"9" * 10_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name_in_little_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance.Allowance.__init__, "__defaults__", (1 << 19, 1 << 12))
    for limit, value in {
        "LONGEST_LINE": 1 << 18,
        "LONGEST_JSON": 1 << 20,
        "MAX_JSON_VALUES": 1 << 14,
        "READ": 1 << 16,
    }.items():
        monkeypatch.setattr(documents, limit, value)
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())
    tracemalloc.start()
    try:
        error = refusal(read, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error is not None
    assert name in str(error)
    assert FIELD in str(error)
    assert len(str(error)) < 1000
    assert peak < 12 << 20


def test_a_parquet_file_that_unpacks_to_more_than_memory_ends_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long value, and a dictionary that repeats it: a few kilobytes for gigabytes."""
    import pyarrow
    import pyarrow.parquet

    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4096), pyarrow.array(["a" * (30 << 20)]))
    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    starter = tmp_path / "python"
    starter.write_text(f'#!/bin/sh\nulimit -d 700000\nexec {parquet_rows.sys.executable} "$@"\n')
    starter.chmod(0o755)
    monkeypatch.setattr(parquet_rows.sys, "executable", str(starter))
    tracemalloc.start()
    error = refusal(read, path)
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()
    assert error is not None
    assert "bomb.parquet" in str(error)
    assert "is not Parquet that can be read" in str(error)


def test_the_process_that_decodes_ends_when_enough_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)

    monkeypatch.setattr(parquet_rows.subprocess, "Popen", Noted)
    rows = documents.documents(SEEDS / "texts.parquet", FIELD)
    assert next(rows).content
    rows.close()  # type: ignore[attr-defined]
    assert [process.returncode is not None for process in started] == [True]


def test_packed_data_that_is_broken_is_no_traceback(tmp_path: Path) -> None:
    body = bytearray(gzip.compress(b'{"text": "a"}\n' * 50))
    body[10] = 0xFF  # no kind of block
    (tmp_path / "broken.jsonl.gz").write_bytes(body)
    with pytest.raises(zlib.error), gzip.open(tmp_path / "broken.jsonl.gz") as file:
        file.read()
    with pytest.raises(SpecError, match=r"cannot be read.*broken\.jsonl\.gz"):
        read(tmp_path / "broken.jsonl.gz")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("secret")
    (folder := tmp_path / "texts").mkdir()
    (folder / "a.txt").symlink_to("../keys.txt")
    with pytest.raises(SpecError, match=r"a\.txt is a link that leads out of the folder"):
        documents.data_files(folder, FIELD)
    (snapshot := tmp_path / "datasets--a--b" / "snapshots" / "0123").mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot.parent.parent / "blobs" / "aa").write_text("a text")
    (snapshot / "a.txt").symlink_to("../../blobs/aa")
    assert [path.name for path in documents.data_files(snapshot, FIELD)] == ["a.txt"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_is_not_opened(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "texts.jsonl")
    for path in (tmp_path, tmp_path / "texts.jsonl"):
        with bounded(), pytest.raises(SpecError, match=f"{FIELD}"):
            documents.data_files(path, FIELD)
