"""The native table against its plain twin, and against itself: no row may depend on what else is in the batch."""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.kernels import build, forecast, native
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.native import NativeUnavailableError, native_kernels, packed_bytes
from plimsoll.runtime.kernels.native_checks import CACHE_KINDS
from plimsoll.runtime.kernels.quantized_cache import QuantizedCache, block_bytes, spread
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.kernels.table import AttentionBatch, Cache, Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from plimsoll.runtime.machine import processor

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
PLAIN = torch_kernels("cpu", torch.float32)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 150), st.integers(1, 420), DTYPES, st.booleans(), st.sampled_from([1, 2, 3]))
def test_linear_agrees_and_each_row_is_what_it_is_alone(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, biased: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    ops = native_kernels("cpu", dtype)
    weight, x = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype), torch.randn(rows, inputs)
    bias = torch.randn(outputs) if biased else None
    packed = ops.pack(weight)
    found = ops.linear(x, packed, bias)
    close(found, torch.nn.functional.linear(x.to(dtype).float(), weight.float(), bias))
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(ops.linear(x[row : row + 1], packed, bias)[0], found[row])
    ids = torch.randint(outputs, (rows,))
    assert torch.equal(ops.embedding(ids, packed), weight.float()[ids])
    assert packed.nbytes == packed_bytes(outputs, inputs, dtype) >= weight.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_no_output_is_left_out_where_threads_wait_for_a_processor(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    ops = native_kernels("cpu", dtype)
    for rows, outputs in ((1, 33), (1, 2560), (2, 200), (40, 700)):
        x, weight = torch.randn(rows, 96), ops.pack(torch.randn(outputs, 96).to(dtype))
        wanted = ops.linear(x, weight, None).clone()
        for _ in range(60):
            made = ops.linear(x, weight, None)
            assert torch.equal(made, wanted)
            # The next product gets this memory.
            made.fill_(torch.nan)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 70), st.integers(1, 3))
def test_norms_gates_and_rotations_agree(rows: int, heads: int, half: int, threads: int) -> None:
    torch.set_num_threads(threads)
    ops, dim = native_kernels("cpu", torch.bfloat16), 2 * half
    x, residual, weight = torch.randn(rows, heads * dim) * 3, torch.randn(rows, heads * dim), torch.randn(heads * dim)
    close(ops.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    sums = [residual.clone(), residual.clone()]
    close(ops.add_rms_norm(x, sums[0], weight, 1e-5), PLAIN.add_rms_norm(x, sums[1], weight, 1e-5))
    assert torch.equal(sums[0], sums[1])
    close(ops.activate(x * 10, "silu", True), PLAIN.activate(x * 10, "silu", True))
    for activation in native.ACTIVATIONS:
        for gated in (True, False):
            made = ops.activate(x, activation, gated)
            close(made, PLAIN.activate(x, activation, gated))
            assert torch.equal(made[:1], ops.activate(x[:1], activation, gated))
    for bias in (None, residual[0].clone()):
        close(ops.layer_norm(x, weight, bias, 1e-5), PLAIN.layer_norm(x, weight, bias, 1e-5))
    qkv = torch.randn(rows, heads + 2, dim)
    angles = torch.rand(rows, half) * 6
    turned = [qkv.clone(), qkv.clone()]
    for table, rotated in zip((ops, PLAIN), turned, strict=True):
        q, k, _ = rotated.split((heads, 1, 1), dim=1)
        table.rope(q, k, angles.cos(), angles.sin())
        norm = table.rms_norm(q, weight[:dim], 1e-5)
        close(norm, PLAIN.rms_norm(q, weight[:dim], 1e-5))
    close(turned[0], turned[1])


@dataclasses.dataclass
class Paged:
    """Sequences of (rows of this step, context) written through one table into blocks dealt in a shuffled order."""

    batch: AttentionBatch
    cache: Cache


def empty_cache(blocks: int, heads: int, block_size: int, dim: int, held: torch.dtype | Literal[4, 8]) -> Cache:
    """Blocks of floats of a dtype, or of codes of so many bits, with numbers in them that a mask must hide."""
    if isinstance(held, torch.dtype):
        full = torch.full((blocks, heads, block_size, dim), 3e3, dtype=held)
        return LayerCache(full, full.clone())
    full = torch.full((blocks, heads, block_bytes(held, block_size, dim)), 77, dtype=torch.uint8)
    return QuantizedCache(full, held, block_size, dim)


def paged(
    ops: native.Kernels,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    rows: list[int],
    block_size: int,
    held: torch.dtype | Literal[4, 8],
) -> Paged:
    contexts = [len(key) for key in keys]
    counts = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(5)).tolist()
    tables = torch.zeros(len(keys), max(counts), dtype=torch.int32)
    _, heads, dim = keys[0].shape
    cache = empty_cache(sum(counts), heads, block_size, dim, held)
    for b, context in enumerate(contexts):
        tables[b, : counts[b]] = torch.tensor([order.pop() for _ in range(counts[b])])
        position = torch.arange(context)
        slots = tables[b, position // block_size].long() * block_size + position % block_size
        ops.write_kv(keys[b], values[b], cache, slots)
    starts = [0, *torch.tensor(rows).cumsum(0).tolist()]
    batch = AttentionBatch(
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.zeros(starts[-1], dtype=torch.int64),
        query_start_cpu=starts,
        context_lens_cpu=contexts,
    )
    return Paged(batch, cache)


def size_of(value: torch.Tensor, held: torch.dtype | Literal[4, 8]) -> torch.Tensor:
    """What the rounding of a value's weight is a part of, in each of its columns."""
    if held == 4:
        return value.norm(dim=-1, keepdim=True).expand_as(value)
    return value.abs().amax(-1, keepdim=True).expand_as(value) if held == 8 else value.abs()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 150)), min_size=1, max_size=5),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([2, 8, 20, 24, 64, 100, 128]),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([None, 1, 20, 64, 500]),
    st.sampled_from([torch.float32, torch.bfloat16, 8, 4]),
    st.sampled_from([None, 0.5, 30.0]),
    st.integers(1, 2),
)
@example([(3, 17), (1, 1)], 2, 3, 33, 16, None, torch.bfloat16, None, 1)
@example([(1, 40)], 1, 3, 1, 16, None, torch.bfloat16, None, 1)
def test_attention_agrees_and_chunks_are_the_whole(
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    dim: int,
    block_size: int,
    window: int | None,
    held: torch.dtype | Literal[4, 8],
    softcap: float | None,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    ops = native_kernels("cpu", held if isinstance(held, torch.dtype) else torch.bfloat16)
    rows, contexts = [new for new, _ in lengths], [new + past for new, past in lengths]
    keys, values = ([torch.randn(context, kv_heads, dim) for context in contexts] for _ in range(2))
    q = torch.randn(sum(rows), kv_heads * group + 1, dim)[:, 1:]
    step = paged(ops, keys, values, rows, block_size, held)
    found = ops.attention(q, step.cache, step.batch, dim**-0.5, window, softcap)
    plain, seen = paged(PLAIN, keys, values, rows, block_size, held), q
    slack: torch.Tensor | float = 0.0
    if native.native_library().attention_in_pairs(CACHE_KINDS.index(held), dim):
        # Queries are rounded to bfloat16; weights are too: of floats above and below the line, of codes by half their
        # range, and of 4 bits before what was spread comes back.
        seen = spread(spread(q).bfloat16().float()) if held == 4 else q.bfloat16().float()
        sizes = paged(PLAIN, keys, [size_of(v, held) for v in values], rows, block_size, held)
        slack = 2**-8 * PLAIN.attention(seen, sizes.cache, sizes.batch, dim**-0.5, window, softcap)
    wanted = PLAIN.attention(seen, plain.cache, plain.batch, dim**-0.5, window, softcap)
    assert ((found - wanted).abs() <= 1e-5 + 1e-5 * wanted.abs() + slack).all()
    # The last row of each sequence as a decode of its own.
    last = [sum(rows[: b + 1]) - 1 for b in range(len(rows))]
    step = paged(ops, keys, values, [1] * len(rows), block_size, held)
    alone = ops.attention(q[last], step.cache, step.batch, dim**-0.5, window, softcap)
    assert torch.equal(alone, found[last])


def test_values_are_rounded_to_nearest_even_in_the_cache() -> None:
    ops, count = native_kernels("cpu", torch.bfloat16), 16
    v = torch.cat([torch.randn(count - 4), torch.tensor([1.00390625, 1.01171875, float("nan"), float("inf")])])
    cache = LayerCache(*(torch.zeros(1, 1, 16, 8, dtype=torch.bfloat16) for _ in range(2)))
    rows = v.view(count, 1, 1).expand(count, 1, 8)
    ops.write_kv(rows, rows, cache, torch.arange(count))
    torch.testing.assert_close(cache.values[0, 0], rows[:, 0].bfloat16(), equal_nan=True, rtol=0, atol=0)


def test_one_openmp_runtime_follows_torch() -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert native.threads_in_use() == threads
    runtimes = build._openmp_in_use()
    assert len(runtimes) == 1 or "torch" in Path(runtimes[0]).parts


def test_wrong_shapes_are_refused_before_memory_is_touched() -> None:
    ops = native_kernels("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="5 columns"):
        ops.linear(torch.randn(2, 5), ops.pack(torch.randn(3, 4)), None)
    cache = LayerCache(torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 16, 8))
    with pytest.raises(ValueError, match=r"must be contiguous torch\.bfloat16"):
        ops.write_kv(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), cache, torch.zeros(1, dtype=torch.int64))


def build_in(folder: Path, **environment: str) -> subprocess.Popen[str]:
    # A library that another run left in the temporary folder would be used as it is.
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "plimsoll.runtime.kernels.build"],
        env={**os.environ, "PLIMSOLL_CACHE": str(folder), "TMPDIR": str(temporary), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


#: Makes a file of one line in place of what it is to compile. Two of it meet where they link.
COMPILER = """#!/bin/sh
turn=$1
for word; do [ "$word" = -shared ] && links=yes; done
while [ $# -gt 1 ]; do [ "$1" = -o ] && made=$2; shift; done
echo whole > "$made"
[ -n "$links" ] || exit 0
case $turn in
  first) : > {folder}/one; : < {folder}/other ;;
  second) : < {folder}/one; : > {folder}/other ;;
esac
"""


def test_two_builds_at_once_leave_one_library(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER.format(folder=tmp_path))
    compiler.chmod(0o755)
    for name in ("one", "other"):
        os.mkfifo(tmp_path / name)
    builds = [build_in(tmp_path, CC=f"{compiler} {turn}") for turn in ("first", "second")]
    paths = {process.communicate(timeout=60)[0].strip() for process in builds}
    assert [process.returncode for process in builds] == [0, 0]
    assert [str(path) for path in (tmp_path / "kernels").iterdir()] == list(paths)
    (library,) = (tmp_path / "kernels").iterdir()
    assert library.read_text() == "whole\n"
    written = library.stat().st_mtime_ns
    again = build_in(tmp_path, CC="/no/such/compiler")
    assert again.communicate(timeout=60)[0].strip() == str(library)
    assert library.stat().st_mtime_ns == written


def test_a_library_others_can_write_is_not_loaded(tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    library.write_bytes(b"")
    library.chmod(0o755)
    assert build._is_ours(library)
    library.chmod(0o777)
    assert not build._is_ours(library)


def test_without_a_compiler_plain_torch_runs_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLIMSOLL_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("PLIMSOLL_KERNELS", raising=False)
    native.native_library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            table = select(torch.device("cpu"), torch.bfloat16)
        assert (table.name, table.dtype) == ("torch", torch.bfloat16)
        assert [record.message for record in caplog.records if "there is no compiler" in record.message]
        with pytest.raises(PlimsollError, match=r"kernels: .*no compiler"):
            select(torch.device("cpu"), torch.bfloat16, "native")
    finally:
        native.native_library.cache_clear()


def test_the_environment_decides_where_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIMSOLL_KERNELS", "torch")
    assert select(torch.device("cpu"), torch.float32).name == "torch"
    assert select(torch.device("cpu"), torch.float32, "native").name.startswith("native-")
    monkeypatch.setenv("PLIMSOLL_KERNELS", "fast")
    with pytest.raises(PlimsollError, match="no such table"):
        select(torch.device("cpu"), torch.float32)


def test_other_dtypes_and_devices_are_left_to_torch() -> None:
    with pytest.raises(NativeUnavailableError, match="float16"):
        native_kernels("cpu", torch.float16)
    with pytest.raises(NativeUnavailableError, match="cuda"):
        native_kernels("cuda", torch.bfloat16)


def test_wide_products_may_go_through_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "UNPACK_ELEMENTS", 64 * 40)
    ops, wide = native_kernels("cpu", torch.bfloat16), native_kernels("cpu", torch.bfloat16, 8)
    weight, bias = (torch.randn(150, 40) / 7).bfloat16(), torch.randn(150)
    for rows in (7, 8, 20):
        x = torch.randn(rows, 40)
        found, wanted = wide.linear(x, wide.pack(weight), bias), ops.linear(x, ops.pack(weight), bias)
        close(found, wanted, 3e-2)
        assert torch.equal(found, wanted) == (rows < 8)


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor that multiplies bfloat16 in hardware, as far as it says, and an environment that asks for nothing."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nflags : {' '.join(processor.processor_flags())} avx512_bf16 amx_bf16\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    for name in ("PLIMSOLL_KERNELS", "PLIMSOLL_TORCH_ROWS"):
        monkeypatch.delenv(name, raising=False)


def product(ops: Kernels, rows: int) -> torch.Tensor:
    torch.manual_seed(1)
    weight, x = (torch.randn(70, 48) / 7).bfloat16(), torch.randn(300, 48)
    return ops.linear(x[:rows], ops.pack(weight), None)


@pytest.mark.usefixtures("amx")
def test_no_product_leaves_the_table_unless_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    native_one = product(native_kernels("cpu", torch.bfloat16), 300)
    assert torch.equal(product(select(cpu, torch.bfloat16), 300), native_one)
    named = select(cpu, torch.bfloat16, torch_rows=200)
    assert torch.equal(product(named, 199), native_one[:199])
    assert not torch.equal(product(named, 200), native_one[:200])
    monkeypatch.setenv("PLIMSOLL_TORCH_ROWS", "100")
    assert not torch.equal(product(select(cpu, torch.bfloat16), 100), native_one[:100])
    assert torch.equal(product(select(cpu, torch.bfloat16, torch_rows=301), 300), native_one)
    monkeypatch.setenv("PLIMSOLL_TORCH_ROWS", "0")
    assert torch.equal(product(select(cpu, torch.bfloat16), 300), native_one)


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "²"])
def test_a_number_of_rows_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PLIMSOLL_TORCH_ROWS", value)
    with pytest.raises(PlimsollError, match="PLIMSOLL_TORCH_ROWS: must be a number of rows"):
        select(torch.device("cpu"), torch.bfloat16)


def test_rows_for_torch_go_with_the_native_table_alone() -> None:
    for device, kernels in ((torch.device("cpu"), "torch"), (torch.device("cuda"), "auto")):
        with pytest.raises(PlimsollError, match="torchRows: only the native kernels of a CPU"):
            select(device, torch.bfloat16, kernels, 128)


@pytest.mark.parametrize(("table", "rows"), [("auto", None), ("auto", 128), ("torch", None)])
def test_the_table_is_foreseen_without_torch(monkeypatch: pytest.MonkeyPatch, table: str, rows: int | None) -> None:
    monkeypatch.setenv("PLIMSOLL_KERNELS", table)
    assert forecast.foreseen_table("cpu", rows) == select(torch.device("cpu"), torch.bfloat16, "auto", rows).facts


def test_panels_are_two_of_the_widest_vectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(forecast.platform, "machine", lambda: "x86_64")
    for flags, panel in (("sse2", 8), ("sse2 avx avx2", 16), ("avx avx512f", 32)):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert forecast.panel_width() == panel
