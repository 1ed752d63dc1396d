"""The kernels of AArch64, run by qemu as three processors: without dot products, with SDOT, and with BFDOT too.

The library is cross-compiled once for ARMv8; which instructions it uses is seen when it runs.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from plimsoll.runtime.kernels import build
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.native_quantized import scale_kind
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from plimsoll.runtime.machine import processor
from tests.kernels.test_pairs import CHUNK, moderate, summed_at_once
from tests.kernels.test_super_blocks import in_super_blocks, with_minimums

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
#: Files that the driver leaves out: it multiplies by bfloat16 weights and by codes, and calls nothing of these.
OTHERS = (
    "gemm_f32.c", "rowwise.c", "attention.c", "attention_pairs.c", "attention_team.c", "layers.c", "wide_layers.c",
    "sample.c", "group.c",
)  # fmt: skip
UNITS = [unit for unit in build.UNITS if unit not in OTHERS]
#: A processor as qemu calls it, and what the library says there: its instructions, and whether SDOT is one.
PROCESSORS = {"cortex-a72": "neon 0", "neoverse-n1": "neon 1", "max": "neon-bf16 1"}
BFLOAT16, CODES, ROWS_OF_BYTES = range(3)
BLOCK = 32
"""Columns whose even and odd products are summed on their own, where pairs do not work."""

Sum = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Job:
    """A product by rows x [M, K]: of bfloat16 weights [N, K], or of a matrix of codes."""

    kind: int
    x: torch.Tensor
    weight: torch.Tensor | QuantizedMatrix
    bias: torch.Tensor | None = None

    @property
    def outputs(self) -> int:
        return len(self.weight if isinstance(self.weight, torch.Tensor) else self.weight.codes)

    def packed(self) -> bytes:
        """As neon_driver.c reads it."""
        bits, kind, group, parts = 16, 0, self.x.shape[1], [self.weight, None, None, None, None]
        if isinstance(self.weight, QuantizedMatrix):
            held = self.weight
            bits, kind, group = held.bits, scale_kind(held), held.group_size
            scales = held.scales.float() if kind == 2 else held.scales
            zeros = held.zeros if held.minimums is None else held.minimums
            parts = [held.codes, scales, zeros, held.super_scales, held.super_minimums]
        head = struct.pack("<8q", self.kind, bits, kind, len(self.x), self.outputs, self.x.shape[1], group, 0)
        arrays = [b"" if part is None else raw(part) for part in (self.x, *parts, self.bias)]
        return head + b"".join(struct.pack("<q", len(array)) + array for array in arrays)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """neon_driver.c with the kernels. $PLIMSOLL_TEST_SOURCES names other sources of these, of a mutant."""
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: the kernels of AArch64 cannot be built and run here")
    folder = tmp_path_factory.mktemp("neon")
    sources = Path(os.environ.get("PLIMSOLL_TEST_SOURCES") or build.SOURCES)

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        flags = [*build.FLAGS, "-O1", "-march=armv8-a"]
        subprocess.run([COMPILER, *flags, "-c", str(source), "-o", made], check=True, capture_output=True)
        return made

    probe = folder / "probe.c"
    probe.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
    link = [COMPILER, "-static", "-fopenmp"]
    if subprocess.run([*link, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no C library with OpenMP to link with (libc6-dev-arm64-cross)")
    with ThreadPoolExecutor(2) as pool:
        objects = list(
            pool.map(compiled, [*(sources / unit for unit in UNITS), Path(__file__).with_name("neon_driver.c")])
        )
    subprocess.run([*link, *objects, "-o", str(folder / "driver")], check=True, capture_output=True)
    return folder / "driver"


@pytest.mark.parametrize("unit", build.UNITS)
def test_every_unit_is_understood_by_a_compiler_for_aarch64(unit: str) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    [variant] = processor.variants("aarch64")
    command = [COMPILER, *build.FLAGS, *variant.flags, "-fsyntax-only", str(build.SOURCES / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def answers(driver: Path, name: str, jobs: Sequence[Job]) -> list[torch.Tensor]:
    """Each job's outputs [M, N] on a processor. The driver has seen that each row is what it is alone."""
    done = subprocess.run(
        [EMULATOR, "-cpu", name, str(driver)],
        input=b"".join(job.packed() for job in jobs),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr.decode().strip() == PROCESSORS[name]
    found, values = [], torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    for job in jobs:
        count = len(job.x) * job.outputs
        found.append(values[:count].view(len(job.x), job.outputs))
        values = values[count:]
    assert not len(values)
    return found


def in_blocks(x: torch.Tensor, w: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """start [T, N] + x [T, K] w [N, K]^T as dots.h adds by fused multiply-adds."""
    total = start.float()
    for begin in range(0, x.shape[1], BLOCK):
        sums = [torch.zeros_like(total), torch.zeros_like(total)]
        for k in range(begin, min(begin + BLOCK, x.shape[1])):
            product = x[:, k, None].double() * w[None, :, k].double()
            sums[k % 2] = (sums[k % 2].double() + product).float()
        total = total + (sums[0] + sums[1])
    return total


def by_codes(add: Sum, job: Job) -> torch.Tensor:
    """A product with codes, each chunk summed by `add`; scales are powers of 2, and zeros stand for 0."""
    held = job.weight
    assert isinstance(held, QuantizedMatrix)
    total = torch.zeros(len(job.x), job.outputs)
    numbers, group = held.codes.float() - (8 if held.bits == 4 else 0), held.group_size
    for begin in range(0, job.x.shape[1], group):
        for start in range(begin, begin + group, CHUNK):
            end = min(start + CHUNK, begin + group)
            dots = add(job.x[:, start:end], numbers[:, start:end], torch.zeros_like(total))
            total = (total.double() + dots.double() * held.scales[:, begin // group].double()).float()
    return total


def matrices() -> list[QuantizedMatrix]:
    """Codes of all kinds, in groups that fill words, pieces and runs and that do not."""
    held = [in_super_blocks(4, 21, 32, 1, True), in_super_blocks(8, 21, 16, 1, False), with_minimums(19, 33, 2)]
    for bits, group in ((4, 8), (4, 32), (4, 136), (4, 640), (8, 3), (8, 32), (8, 77), (8, 600)):
        low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
        codes, scales = torch.randint(low, high, (45, 2 * group)).to(dtype), (torch.rand(45, 2) / 7).half()
        codes[0] = low
        zeros = torch.randint(0, 16, (45, 2)).to(torch.uint8) if bits == 4 else None
        held.append(QuantizedMatrix(bits, codes, scales, zeros))  # type: ignore[arg-type]
        if bits == 4:
            held.append(QuantizedMatrix(4, codes, scales.bfloat16(), zeros))
    return held


@pytest.mark.parametrize("name", PROCESSORS)
def test_rows_of_bytes_have_the_same_bits_on_every_processor(driver: Path, name: str) -> None:
    """As the library that was built for this machine gives them; the largest codes of both signs among them."""
    torch.manual_seed(0)
    ops, jobs = native_kernels("cpu", torch.bfloat16, int8=True), []
    for held in matrices():
        for rows in (1, 2, 3, 4, 6, 7, 14):
            x = torch.randn(rows, held.codes.shape[1]) * 2.0 ** torch.randint(-9, 9, (rows, 1))
            x[0] = torch.where(held.codes[0] > 0, 1, -1)
            jobs.append(Job(ROWS_OF_BYTES, x, held, torch.randn(len(held.codes)) if rows % 2 else None))
    for job, found in zip(jobs, answers(driver, name, jobs), strict=True):
        assert isinstance(job.weight, QuantizedMatrix)
        assert torch.equal(found, ops.linear(job.x, ops.pack_quantized(job.weight), job.bias))


@pytest.mark.parametrize("name", PROCESSORS)
def test_rows_of_bfloat16_are_summed_in_the_order_of_the_processor(driver: Path, name: str) -> None:
    """By BFDOT, which rounds to odd, or by fused multiply-adds in blocks; of every number of rows of a tile."""
    torch.manual_seed(0)
    jobs = []
    for columns in (2, 63, 264):
        for rows in (*range(1, 14), 30):
            bias = moderate(21) if rows % 2 else None
            jobs.append(Job(BFLOAT16, moderate(rows, columns), moderate(21, columns).bfloat16(), bias))
    for bits, columns, groups in ((4, 320, 1), (4, 64, 2), (8, 321, 1), (8, 66, 2)):
        low, high = (0, 16) if bits == 4 else (-128, 128)
        codes = torch.randint(low, high, (21, columns)).to(torch.uint8 if bits == 4 else torch.int8)
        zeros = torch.full((21, groups), 8, dtype=torch.uint8) if bits == 4 else None
        held = QuantizedMatrix(bits, codes, (2.0 ** torch.randint(-2, 3, (21, groups))).half(), zeros)  # type: ignore[arg-type]
        jobs += [Job(CODES, moderate(rows, columns), held) for rows in (1, 2, 3, 5, 12, 13, 30)]
    add = summed_at_once if name == "max" else in_blocks
    for job, found in zip(jobs, answers(driver, name, jobs), strict=True):
        if isinstance(job.weight, QuantizedMatrix):
            assert torch.equal(found, by_codes(add, job))
        else:
            start = torch.zeros(len(job.x), job.outputs) if job.bias is None else job.bias.expand(len(job.x), -1)
            assert torch.equal(found, add(job.x, job.weight, start))


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_is_not_finite_stays_in_its_row(driver: Path, name: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 70), torch.randn(21, 70).bfloat16()
    held = QuantizedMatrix(8, torch.randint(-128, 128, (21, 70)).char(), (torch.rand(21, 1) / 7).half())
    clean = x.clone()
    x[2, 5], x[4, 69], x[7] = torch.nan, torch.inf, 1e-39
    jobs = [Job(BFLOAT16, rows, weight) for rows in (x, clean)]
    jobs += [Job(kind, rows, held) for kind in (CODES, ROWS_OF_BYTES) for rows in (x, clean)]
    found = answers(driver, name, jobs)
    for spoiled, whole in zip(found[::2], found[1::2], strict=True):
        kept = [0, 1, 3, 5, 6, 8]
        assert torch.equal(spoiled[kept], whole[kept])
        assert bool(spoiled[2].isnan().all())
        assert not bool(spoiled[4].isfinite().any())
        assert float(spoiled[7].abs().max()) < 1e-36
