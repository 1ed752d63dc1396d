"""The kernels in AMX's tiles: real ones, or elsewhere those of `amx/emulator.c`, instruction by instruction.

Everything runs in processes of its own.
"""

import signal
from pathlib import Path

import pytest

from plimsoll.runtime.kernels import build
from plimsoll.runtime.machine.processor import processor_flags
from tests.kernels.amx.emulated import compiled, environment, has_tiles, run, skip_where_no_tiles_can_be
from tests.kernels.test_int8 import BITS, bits_of

#: Kinds of instructions that the emulator counts.
LOADED, STORED, OF_BF16, OF_BYTES = range(4)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has tiles."""
    skip_where_no_tiles_can_be()
    return environment(tmp_path_factory.mktemp("amx"))


INSTRUCTIONS = """
import ctypes, sys
import numpy

code, random = ctypes.CDLL(sys.argv[1]), numpy.random.default_rng(0)
for function in (code.bf16, code.signed_signed, code.signed_unsigned, code.unsigned_signed, code.unsigned_unsigned):
    function.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
# The kernel gives a process real tiles when it asks for them.
ctypes.CDLL(None).syscall(158, 0x1023, 18)


def flushed(x):
    return numpy.where(numpy.abs(x) < 2.0**-126, x * 0, x)


def fused(a, b, c):
    # Of bfloat16 and a sum near them float64 holds the product, and the sum but for its last bits.
    with numpy.errstate(all="ignore"):
        return flushed((a.astype(numpy.float64) * b.astype(numpy.float64) + c.astype(numpy.float64)).astype("f4"))


def by_hand(x, w, y):
    halves = []
    for half in (0, 1):
        total = numpy.zeros_like(y)
        for k in range(x.shape[1] // 2):
            total = fused(flushed(x[:, 2 * k + half, None]), flushed(w[None, k, half::2]), total)
        halves.append(total)
    with numpy.errstate(all="ignore"):
        return flushed(flushed(y) + flushed(halves[0] + halves[1]))


for turn in range(60):
    M, K, N = random.integers(1, 17, 3)
    powers = random.integers(-12, 12, (16, 64)) * random.choice([1, 1, 5])
    numbers = (random.standard_normal((2, 16, 64)) * 2.0**powers).astype("f4")
    x, w = numbers.view("u4") & 0xFFFF0000
    y = random.standard_normal((16, 16)).astype("f4")
    if turn % 3 == 0:
        x[:, 1] = 0x00400000  # A subnormal number.
        x[0, 2], w[0, 0], y[0, 0] = 0x7F800000, 0x7FC00000, 1e-39
    before, narrow = y.copy(), [(part >> 16).astype("u2") for part in (x, w)]
    right = narrow[1][:, :32].copy()
    code.bf16(int(M), int(K), 4 * int(N), narrow[0].ctypes.data, right.ctypes.data, y.ctypes.data)
    left = (narrow[0][:M, : 2 * K].astype("u4") << 16).view("f4")
    wanted = by_hand(left, (right[:K, : 2 * N].astype("u4") << 16).view("f4"), before[:M, :N])
    assert numpy.array_equal(y[:M, :N], wanted, equal_nan=True), (M, K, N)
    y[:M, :N] = before[:M, :N]
    assert numpy.array_equal(y, before)
    for name in ("signed_signed", "signed_unsigned", "unsigned_signed", "unsigned_unsigned"):
        kinds = ["i1" if kind == "signed" else "u1" for kind in name.split("_")]
        x, w = random.integers(0, 256, (2, 16, 128)).astype("u1")
        w, y = w[:, :64].copy(), random.integers(-(2**31), 2**31, (16, 16)).astype("i4")
        before = y.copy()
        getattr(code, name)(int(M), int(K), 4 * int(N), x.ctypes.data, w.ctypes.data, y.ctypes.data)
        left = x.view(kinds[0])[:M, : 4 * K].astype("i8")
        right = w.view(kinds[1])[:K, : 4 * N].reshape(K, N, 4).transpose(0, 2, 1).reshape(4 * K, N).astype("i8")
        assert numpy.array_equal(y[:M, :N], (before[:M, :N] + left @ right).astype("i4")), name
y = numpy.ones((16, 16), "f4")
code.zero(ctypes.c_void_p(y.ctypes.data))
assert not y.any()
"""


def test_instructions_do_what_the_manual_says(tiles: dict[str, str], tmp_path: Path) -> None:
    """For any number of rows and columns, and of numbers that are subnormal or none."""
    done = run(INSTRUCTIONS, tiles, str(compiled("instructions.c", tmp_path)))
    assert done.returncode == 0, done.stderr


FAULT = (
    "import ctypes, sys; ctypes.CDLL(None).syscall(158, 0x1023, 18); getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])()"
)


@pytest.mark.parametrize(
    "fault", ["run_an_instruction_that_is_none", "use_released_tiles", "multiply_tiles_that_do_not_fit"]
)
def test_what_faults_on_the_processor_faults_here(fault: str, tiles: dict[str, str], tmp_path: Path) -> None:
    done = run(FAULT, tiles, str(compiled("instructions.c", tmp_path)), fault)
    assert done.returncode == -signal.SIGILL


TESTS = """
import ctypes, sys
import pytest

failed = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler", *sys.argv[1:]])
everything = ctypes.CDLL(None)
print("emulated", *([everything.emulated(kind) for kind in range(4)] if hasattr(everything, "emulated") else ()))
sys.exit(failed)
"""


def pass_in_tiles(tiles: dict[str, str], *arguments: str) -> list[int]:
    """Runs tests where tiles are; how many instructions of each kind the emulator ran."""
    done = run(TESTS, tiles, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(word) for word in done.stdout.split("emulated")[-1].split()]


def test_products_of_bfloat16_rows_and_attention_hold_in_tiles(tiles: dict[str, str]) -> None:
    """A row has the bits that it has alone: in vectors for products, in a decode for attention. Attention is near plain
    torch's, and has its order of sums to the bit."""
    tests = ["tests/kernels/test_tiles.py"]
    if "avx512_bf16" in processor_flags():
        agrees = "test_attention_agrees_and_chunks_are_the_whole"
        tests += ["tests/kernels/test_attention_pairs.py", f"tests/kernels/test_native.py::{agrees}"]
    counts = pass_in_tiles(tiles, *tests)
    assert has_tiles() or counts[OF_BF16] > 2000


def test_rows_of_8_bits_have_the_bits_of_vectors_in_tiles(tiles: dict[str, str]) -> None:
    """Against codes of every kind, in groups that end within a piece, and with numbers that are not finite."""
    count = "import ctypes; every = ctypes.CDLL(None)\nprint(every.emulated(3) if hasattr(every, 'emulated') else 0)"
    done = run(BITS + count, tiles)
    assert done.returncode == 0, done.stderr
    name, digest, products = done.stdout.split()
    assert name == "native-avx512-amx-int8-vnni"
    assert digest == bits_of(build.library()).split()[-1]
    assert has_tiles() or int(products) > 1000
