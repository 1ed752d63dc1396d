"""Libraries built ahead of time for kinds of processors: the right one is found, and each computes what torch does."""

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plimsoll.runtime.kernels import build, forecast, native
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.machine import processor
from tests.kernels import test_attention_pairs, test_native, test_pairs
from tests.kernels.test_quantized import assert_agrees
from tests.models.test_layers_at_once import assert_same_to_the_bit
from tests.support.checkpoints import make_checkpoint
from tests.support.libraries import V4_WITHOUT_PRODUCTS, Libraries

FITTING = [variant.name for variant in processor.fitting()]
#: How tables are called whose library uses no more than the variant's instructions.
NAMES = {"x86-64-v4": "native-avx512", "x86-64-v3": "native-avx2", "armv8-a": "native-neon"}
#: Every check of the native table that takes no fixture: against the plain twin, and rows against themselves.
CHECKS = [
    check
    for name, check in {**vars(test_native), **vars(test_pairs), **vars(test_attention_pairs)}.items()
    if name.startswith("test_") and (hasattr(check, "hypothesis") or not inspect.signature(check).parameters)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, libraries: Libraries) -> Path:
    into = tmp_path_factory.mktemp("ahead") / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(libraries.compiler))
        build.main(["--into", str(into)])
    return into


@pytest.fixture
def _nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No library in a cache and no compiler."""
    monkeypatch.setenv("PLIMSOLL_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("PLIMSOLL_KERNELS", raising=False)
    native.native_library.cache_clear()
    yield
    native.native_library.cache_clear()


def processor_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")


V3 = " ".join(sorted(processor._V3))
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (f"{V4} avx512_bf16 amx_bf16", ["x86-64-v4", "x86-64-v3"]),
        (f"{V3} avx512f avx512cd", ["x86-64-v3"]),
        ("avx sse4_2", []),
    ],
)
def test_a_variant_runs_where_all_it_needs_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, names: list[str]
) -> None:
    processor_with(monkeypatch, tmp_path, flags)
    assert [variant.name for variant in processor.fitting()] == names


@pytest.mark.skipif(not FITTING, reason="no variant runs on this processor")
@pytest.mark.usefixtures("_nothing_else")
def test_the_best_for_the_processor_is_taken_where_nothing_was_built_for_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLIMSOLL_KERNELS_DIR", str(folder))
    assert [build.variant_of(path).name for path in [build.library()]] == FITTING[:1]
    assert forecast.foreseen_table("cpu") == native_kernels("cpu", torch.bfloat16).facts
    for path in folder.glob(f"kernels-{FITTING[0]}-*"):
        # One of other sources, or one that a stranger may have written, is none.
        path.chmod(0o777)
        assert build.built_ahead() != path
        path.chmod(0o755)
    shutil.copytree(folder, tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        path.rename(path.with_name(path.name[:-8] + "00000.so"))
    monkeypatch.setenv("PLIMSOLL_KERNELS_DIR", str(tmp_path / "other"))
    assert build.built_ahead() is None


@pytest.mark.usefixtures("_nothing_else")
@pytest.mark.parametrize("name", FITTING)
def test_each_variant_computes_what_torch_does(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, name: str
) -> None:
    [path] = folder.glob(f"kernels-{name}-*.so")
    variant = build.variant_of(path)
    assert variant is not None
    assert_agrees(path)
    monkeypatch.setenv("PLIMSOLL_KERNELS_LIBRARY", str(path))
    assert native_kernels("cpu", torch.bfloat16).facts == forecast.foreseen_table("cpu")
    assert native_kernels("cpu", torch.bfloat16).name.startswith(NAMES[name])
    assert native.native_library().panel_width() == variant.panel == forecast.panel_width(path)
    assert len(CHECKS) >= 5
    threads = torch.get_num_threads()
    for check in CHECKS:
        torch.manual_seed(0)
        check()
    torch.set_num_threads(threads)
    checkpoint = make_checkpoint(tmp_path / "model", "Qwen3ForCausalLM", tokenizer=False)
    for precision in ("bfloat16", "w4a16"):
        assert_same_to_the_bit(checkpoint, torch.bfloat16, precision)


def attentions() -> list[torch.Tensor]:
    """Of prompts and decoded rows over caches of all kinds; heads that fill vectors of 512 bits and that do not."""
    torch.manual_seed(0)
    rows, contexts, found = [30, 1, 5], [70, 200, 5], []
    for dim in (16, 40, 64, 66):
        for held in (torch.float32, torch.bfloat16, 8, 4):
            ops = native_kernels("cpu", torch.float32 if held == torch.float32 else torch.bfloat16)
            keys, values = ([torch.randn(context, 2, dim) for context in contexts] for _ in range(2))
            step, q = test_native.paged(ops, keys, values, rows, 32, held), torch.randn(sum(rows), 6, dim)
            found += [ops.attention(q, step.cache, step.batch, dim**-0.5, window, None).clone() for window in (None, 9)]
    return found


@pytest.mark.skipif("x86-64-v4" not in FITTING, reason="this processor has no vectors of 512 bits")
@pytest.mark.usefixtures("_nothing_else")
def test_lanes_of_vectors_change_no_bit_of_attention(
    monkeypatch: pytest.MonkeyPatch, folder: Path, libraries: Libraries
) -> None:
    """In float32: where VDPBF16PS is left out, AVX-512 and AVX2 sum in one order."""
    wide = libraries.built(*V4_WITHOUT_PRODUCTS)
    [narrow] = folder.glob("kernels-x86-64-v3-*.so")
    found = []
    for path in (narrow, wide):
        monkeypatch.setenv("PLIMSOLL_KERNELS_LIBRARY", str(path))
        native.native_library.cache_clear()
        found.append(attentions())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert native_kernels("cpu", torch.bfloat16).name == "native-avx512"
    threads = torch.get_num_threads()
    test_native.test_attention_agrees_and_chunks_are_the_whole()
    torch.set_num_threads(threads)


def test_without_a_compiler_building_ahead_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plimsoll.runtime.kernels.build", "--into", str(tmp_path / "kernels")],
        env={**os.environ, "CC": "/no/such/compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no compiler")


def test_why_a_compiler_failed_is_the_error_it_printed_and_not_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    said = ("a.c: In function f:", "a.c:3:4: error: x is undeclared")
    compiler.write_text("\n".join(["#!/bin/sh", *(f"echo '{line}' >&2" for line in said), "exit 1"]))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(SystemExit, match=r"failed: a\.c:3:4: error: x is undeclared"):
        build.main(["--into", str(tmp_path / "kernels")])
