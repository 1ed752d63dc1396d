"""Libraries are code: none is built in, or loaded from, a place where another user of the machine may write."""

import os
import subprocess
from pathlib import Path

import pytest

from plimsoll.checkpoint import ownership
from plimsoll.runtime.kernels import build, selection
from plimsoll.runtime.kernels.build import NativeUnavailableError

SOMEBODY = 54321


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `path` belong to another user: it does, or this process takes itself for one."""
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY)
    else:
        monkeypatch.setattr(ownership.os, "geteuid", lambda: SOMEBODY)


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder with a predictable name, where the cache cannot be written and a compiler is quick."""
    (tmp_path / "cache").write_text("no folder")
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\n[ -z "$HOOK" ] || . "$HOOK"\n: > "$last"\n')
    compiler.chmod(0o755)
    for name, value in {"PLIMSOLL_CACHE": tmp_path / "cache", "CC": compiler}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("PLIMSOLL_KERNELS_DIR", "PLIMSOLL_KERNELS_LIBRARY", "TRITON_CACHE_DIR", "HOOK"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"plimsoll-{os.getuid()}"


def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A library that leaves a mark where it is loaded, and the mark."""
    mark, source, library = tmp_path / "mark", tmp_path / "planted.c", tmp_path / "planted.so"
    source.write_text(
        f'#include <fcntl.h>\n__attribute__((constructor)) static void run(void) {{ open("{mark}", O_CREAT, 0600); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library, mark


def test_a_folder_of_this_user_alone_is_built_in(fallback: Path) -> None:
    library = build.library()
    assert library.parent == fallback
    assert [entry.name for entry in fallback.iterdir()] == [library.name], "what was built beside it is gone"
    assert fallback.stat().st_mode & 0o777 == 0o700
    assert build.library() == library


@pytest.mark.parametrize("kind", ["of another user", "open to all", "open to a group", "a link"])
def test_nothing_is_built_in_a_folder_that_others_may_write(
    fallback: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = fallback if kind != "a link" else tmp_path / "elsewhere"
    place.mkdir(mode=0o755)
    if kind == "of another user":
        give_away(place, monkeypatch)
    elif kind == "a link":
        fallback.symlink_to(place)
    else:
        place.chmod(0o777 if kind == "open to all" else 0o770)
    with pytest.raises(NativeUnavailableError, match=rf"{fallback}: .*\$PLIMSOLL_CACHE"):
        build.library()
    with pytest.raises(NativeUnavailableError, match=f"no folder to keep triton in: .*{fallback}"):
        build.own_cache("triton")
    assert not list(place.iterdir())


def test_a_folder_replaced_while_it_is_built_in_gives_no_library(
    fallback: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the owner of a parent folder without the sticky bit can do."""
    hook = tmp_path / "hook"
    gone = tmp_path / "gone"
    hook.write_text(f'[ -e "{gone}" ] || {{ mv "{fallback}" "{gone}"; mkdir -m 777 "{fallback}"; }}\n')
    monkeypatch.setenv("HOOK", str(hook))
    path = build.library()
    assert not list(fallback.iterdir()), "what is built stays in the folder that was looked at"
    assert [entry.name for entry in gone.iterdir()] == [path.name]
    library, mark = planted(tmp_path)
    library.rename(path)
    monkeypatch.setattr(build, "library", lambda: path)
    with pytest.raises(NativeUnavailableError, match="cannot be loaded"):
        build.load()
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["of another user", "open to all", "a link", "in a folder open to all", "a FIFO"])
def test_a_library_is_looked_at_again_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.delenv("PLIMSOLL_KERNELS_LIBRARY", raising=False)
    (folder := tmp_path / "folder").mkdir(mode=0o755)
    (library, mark), path = planted(tmp_path), folder / "kernels.so"
    if kind == "a link":
        path.symlink_to(library)
    elif kind == "a FIFO":
        os.mkfifo(path)
    else:
        library.rename(path)
    if kind == "of another user":
        give_away(path, monkeypatch)
    elif kind == "open to all":
        path.chmod(0o777)
    elif kind == "in a folder open to all":
        folder.chmod(0o777)
    monkeypatch.setattr(build, "library", lambda: path)
    with pytest.raises(NativeUnavailableError, match="cannot be loaded"):
        build.load()
    assert not mark.exists()


def test_a_library_of_this_user_is_loaded_from_the_file_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLIMSOLL_KERNELS_LIBRARY", raising=False)
    library, mark = planted(tmp_path)
    monkeypatch.setattr(build, "library", lambda: library)
    build.load()
    assert mark.exists()


def test_triton_keeps_its_code_where_nobody_else_can_write(
    fallback: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert selection._unsafe_triton_cache() == ""
    assert os.environ["TRITON_CACHE_DIR"] == str(fallback / "triton")
    assert (fallback / "triton").stat().st_mode & 0o777 == 0o700
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(shared))
    assert "can be written by other users (mode 0777)" in selection._unsafe_triton_cache()


def test_a_relative_compiler_is_found_from_the_folder_of_the_build(
    fallback: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "./cc")
    assert build.library().parent == fallback
