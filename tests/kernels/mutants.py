"""`python -m tests.kernels.mutants`: whether the tests of the C kernels catch small errors that are put into them.

Each mutant is one change of one line: a wrong stride, a block too far, the wrong nibble. The kernels are built with it
for this processor, and the tests named beside it must fail. Prints a line a mutant; exits 1 if one lives or cannot be
built.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plimsoll.runtime.kernels import build

NATIVE, QUANTIZED, INT8 = "test_native.py", "test_quantized.py", "test_int8.py"
SUPER, CACHE, PAIRS = "test_super_blocks.py", "test_quantized_cache.py", "test_pairs.py"
ATTENTION, DRAW, WIDE = "test_attention_pairs.py", "test_native_draw.py", "../models/test_wide_layers.py"
NEON, AMX = "test_neon.py", "test_amx.py"


@dataclass(frozen=True)
class Mutant:
    """`before` becomes `after` in `source`, where it occurs once."""

    what: str
    source: str
    before: str
    after: str
    tests: tuple[str, ...]
    #: Attention in float32, also where this processor has pairs.
    unpaired: bool = False
    #: Of AArch64: the test builds the kernels and runs them by qemu.
    emulated: bool = False


MUTANTS = (
    Mutant("bfloat16: the first panel's bias for all", "gemm_bf16.c",
           "start = bias ? bias + p * PANEL : zeros;\n            for",
           "start = bias ? bias + first * PANEL : zeros;\n            for", (NATIVE,)),
    Mutant("float32: a stride too short", "gemm_f32.c", "vf one = fill(x[r * ldx + k]);",
           "vf one = fill(x[r * (ldx - 1) + k]);", (NATIVE,)),
    Mutant("tasks: the last of another thread's part is left out", "parts.h",
           "{left.first + (of == me), left.end - (of != me)}", "{left.first + 1, left.end - (of != me)}", (NATIVE,)),
    Mutant("tasks: parts of the turn before", "parts.h", "{ parts[omp_get_thread_num()].turn++; }", "{ (void)parts; }",
           (NATIVE,)),
    Mutant("pairs: even and odd columns change places", "pairs.c", "both[i][lane] >> 16 | both[i][lane + 1]",
           "both[i][lane + 1] >> 16 | both[i][lane]", (PAIRS, NATIVE)),
    Mutant("norm: a quarter of the squares left out", "rowwise.h", "(sums[0] + sums[1]) + (sums[2] + sums[3])",
           "(sums[0] + sums[1]) + (sums[2] + sums[2])", (NATIVE,)),
    Mutant("rotation: the other way round", "rowwise.h", "second[i] = b * cos[i] + a * sin[i];",
           "second[i] = b * cos[i] - a * sin[i];", (NATIVE,)),
    Mutant("GELU: a constant in its third place", "rowwise.h", "-1.5957691216057308f", "-1.5917691216057308f",
           (NATIVE,)),
    Mutant("attention: one key too many", "attention.h", "*high = own + 1;", "*high = own + 2;", (NATIVE,)),
    Mutant("attention: a window one key short", "attention.h", "own - job->window + 1 : 0", "own - job->window + 2 : 0",
           (NATIVE,)),
    Mutant("attention: the block before", "attention.c", "long place = (at->table[n] * job->G + g) * bytes",
           "long place = (at->table[n ? n - 1 : 0] * job->G + g) * bytes", (NATIVE,), unpaired=True),
    Mutant("attention: the heads of another group", "attention.h", "(g * at->group + r % at->group) * job->q_head",
           "(g * at->group + r % at->group / 2 * 2) * job->q_head", (NATIVE,)),
    Mutant("attention in pairs: the block before", "attention_pairs.c",
           "long place = (at->table[n] * job->G + g) * bytes",
           "long place = (at->table[n ? n - 1 : 0] * job->G + g) * bytes", (NATIVE,)),
    Mutant("attention: a task of all groups leaves out half of them", "attention_team.c", "*groups = job->G / parts;",
           "*groups = (job->G / parts + 1) / 2;", (NATIVE,)),
    Mutant("attention in pairs: even and odd rows change places", "cache_pairs.h",
           "*first = (vu)_mm512_permutex2var_epi16(a, _mm512_loadu_si512(order), b);",
           "*first = (vu)_mm512_permutex2var_epi16(b, _mm512_loadu_si512(order), a);", (ATTENTION,)),
    Mutant("attention in pairs: every second weight is missing in the sum", "soften.h", "0x3f803f80u",
           "0x3f800000u", (ATTENTION,)),
    Mutant("attention in pairs: the sum of weights does not shrink", "soften.h",
           "store(row->mass, load(row->mass) * shrink);", "store(row->mass, load(row->mass));", (ATTENTION,)),
    Mutant("attention in pairs: keys' scale and minimum change places", "attention_pairs.c",
           "width, k_scales, k_scales + S, of->sums_of_q", "width, k_scales + S, k_scales, of->sums_of_q", (NATIVE,)),
    Mutant("attention in pairs: values' wrong nibble", "attention_pairs.c", "of == OF_HIGH ? 4 : 0",
           "of == OF_LOW ? 4 : 0", (NATIVE,)),
    Mutant("attention in pairs: a neighbour's upper bits", "cache_pairs.h", "upper << (18 - place)",
           "upper << (16 - place)", (NATIVE,)),
    Mutant("attention in pairs: the middle of codes is not taken back", "soften.h",
           "offset = add_pair(offset, both, back);", "", (NATIVE,)),
    Mutant("rows of 8 bits, six at once: quads and rows change places", "six_rows.h",
           "(i) / 24 + (i) % 6 % 2 * 2", "(i) / 24 * 2 + (i) % 6 % 2", (INT8,)),
    Mutant("rows of 8 bits, six at once: two lanes are left out of sums", "six_rows.h",
           "_mm512_shuffle_i64x2(half, half, 0x0d)", "_mm512_shuffle_i64x2(half, half, 0x0c)", (INT8,)),
    Mutant("rows of 8 bits, six at once: numbers that are not finite count", "six_rows.h",
           "_mm512_set1_epi32(0x7f800000), _MM_CMPINT_NLT", "_mm512_set1_epi32(0x7fffffff), _MM_CMPINT_NLT", (INT8,)),
    Mutant("wide layers: the gate for up", "wide_layers.c", "next->K + column + at - PIECE",
           "column + at - PIECE", (WIDE,)),
    Mutant("wide layers: the residual is left out", "wide_layers.c",
           "load(to + r * w->N + h) + load(own + r * PANEL + h)", "load(own + r * PANEL + h)", (WIDE,)),
    Mutant("wide layers: a band writes over the one before", "wide_layers.c",
           "out + task / t.shares * t.height * words(next)", "out + task / t.shares * words(next)", (WIDE,)),
    Mutant("wide layers: each piece of a run begins the sum", "int8.c",
           "if (column % group % RUN) memcpy(&sum, place + r, 4);", "", (WIDE,)),
    Mutant("wide layers: the first panel's bias for all", "wide_layers.c", "w->bias ? w->bias + n : NULL",
           "w->bias ? w->bias : NULL", (WIDE,)),
    Mutant("last layer of due rows: a key too few", "wide_layers.c", "s->starts[b + 1] - 1 - row",
           "s->starts[b + 1] - row", (WIDE,)),
    Mutant("last layer of due rows: the blocks of the first sequence", "wide_layers.c", "s->tables + b * width",
           "s->tables", (WIDE,)),
    Mutant("last layer of due rows: keys beside queries are left out", "wide_layers.c", "queries / PANEL, panels_of",
           "panels_of(queries), panels_of", (WIDE,)),
    Mutant("last layer of due rows: the first row for all", "wide_layers.c", "residual + s->due[i] * m->hidden",
           "residual + s->due[0] * m->hidden", (WIDE,)),
    Mutant("last layer of due rows: positions of other rows", "wide_layers.c", "places[i] = s->positions[row]",
           "places[i] = s->positions[i]", (WIDE,)),
    Mutant("attention of whole blocks: every second weight is missing in the sum", "weigh.h", "0x3f803f80u",
           "0x3f800000u", (ATTENTION,)),
    Mutant("attention of whole blocks: the middle of codes is not taken back", "weigh.h",
           "offset = add_pair(offset, both, back);", "", (ATTENTION,)),
    Mutant("attention of whole blocks: a key too many", "weigh.h", "(1ull << high) - 1;", "(2ull << high) - 1;",
           (ATTENTION,)),
    Mutant("attention of whole blocks: keys' minimums for values'", "weigh.h", "load(ends->v_minimums + 16 * i)",
           "load(ends->minimums + 16 * i)", (ATTENTION,)),
    Mutant("attention of many rows: values' lower halves twice", "block_pairs.h", "half_pairs(even, odd, 4, ~0u)",
           "half_pairs(even, odd, 0, ~0u)", (ATTENTION, CACHE, NATIVE)),
    Mutant("attention of many rows: the wrong upper bits of keys", "block_pairs.h", "(int)(k % 2 * 4)",
           "(int)(k % 2 * 2)", (ATTENTION, CACHE, NATIVE)),
    Mutant("spread: a step the other way", "cache.h", "0xf0f0, other, v)", "0x0f0f, other, v)", (CACHE, NATIVE)),
    Mutant("attention in tiles: keys of the panel before", "attention_tiles.c", "const char *at = keys + n * size,",
           "const char *at = keys + (n ? n - 16 : 0) * size,", (AMX,)),
    Mutant("attention in tiles: a block of dimensions is left out", "attention_tiles.c", "panel, BLOCKS(depth), 0,",
           "panel, depth / BLOCK, 0,", (AMX,)),
    Mutant("attention in tiles: later rows get the sums of the first", "attention_tiles.c",
           "from + row * ldf, ldf, y + row * ldy, ldy);", "from + row * ldf, ldf, y + row / 32 * ldy, ldy);", (AMX,)),
    Mutant("attention in tiles: values' wrong nibble", "attention_tiles.c", "of == OF_HIGH ? 4 : 0",
           "of == OF_LOW ? 4 : 0", (AMX,)),
    Mutant("attention in tiles: a neighbour's upper bits", "attention_tiles.c", "uppers + k / 2 * S;",
           "uppers + (k + 1) / 2 * S;", (AMX,)),
    Mutant("rows of 8 bits in tiles: the scale of the row before", "int8_tiles.c", "float_of(x.ends[r * words + 1])",
           "float_of(x.ends[(r ? r - 1 : 0) * words + 1])", (AMX,)),
    Mutant("rows of 8 bits in tiles: a group's last piece is taken for a whole one", "int8_tiles.c",
           "if (quads == PIECE / 4) MULTIPLY", "if (quads <= PIECE / 4) MULTIPLY", (AMX,)),
    Mutant("rows of 8 bits in tiles: what codes are too large by stays", "int8_tiles.c",
           " + all_lanes(x.ends[r * words])", "", (AMX,)),
    Mutant("rows of 8 bits in tiles: the first half of a panel twice", "int8_tiles.c", "c->wide + half * LANES",
           "c->wide + half / 2 * LANES", (AMX,)),
    Mutant("tiles: a row of weights twice", "tiles.c", "next = 2 * PANEL * sizeof(uint16_t);",
           "next = PANEL * sizeof(uint16_t);", (AMX,)),
    Mutant("tiles: columns of the first group for all", "tiles.c", "x + row * K + b / blocks * group + begin",
           "x + row * K + begin", (AMX,)),
    Mutant("cache of codes: scale and minimum change places", "attention.c", "width, k_scales, k_scales + S, sums_of_q",
           "width, k_scales + S, k_scales, sums_of_q", (CACHE, NATIVE), unpaired=True),
    Mutant("cache of 4 bits: values' wrong nibble", "attention.c",
           "if (of == OF_HIGH) codes >>= 4;\n    return (vf)", "if (of == OF_LOW) codes >>= 4;\n    return (vf)",
           (CACHE, NATIVE), unpaired=True),
    Mutant("cache of 4 bits: a neighbour's upper bits", "key_codes.h", "upper_bits(uppers, place + 2), keys_f)",
           "upper_bits(uppers, place), keys_f)", (CACHE, NATIVE), unpaired=True),
    Mutant("cache of 4 bits: keys that are not spread", "cache.h", "spread(turned, D), spread(turned + D, D);",
           "spread(turned + D, D);", (CACHE, NATIVE)),
    Mutant("codes: the zero point's sign", "ends.h", "offset = -load_bytes(zeros + v * LANES) * scale",
           "offset = load_bytes(zeros + v * LANES) * scale", (QUANTIZED,)),
    Mutant("super-blocks: the minimum's factor is the scale's", "ends.h", "load_scale(SCALE_F16, super + 2 * PANEL, v)",
           "load_scale(SCALE_F16, super, v)", (SUPER,)),
    Mutant("codes of 4 bits: 8 is not taken back", "ends.h", "madd(fill(8), scale, offset)",
           "madd(fill(7), scale, offset)", (QUANTIZED,)),
    Mutant("rows of 8 bits: the scale of the next row", "meet_int8.h", "float_of(x->ends[2 * r + 1])",
           "float_of(x->ends[2 * (r ? r - 1 : 0) + 1])", (INT8,)),
    Mutant("rows of 8 bits: the sum of the next row", "meet_int8.h", "float_of(x->sums[r])",
           "float_of(x->sums[r ? r - 1 : 0])", (INT8,)),
    Mutant("rows of 8 bits: a run forgets its pieces but the last", "meet_int8.h",
           "dots[at] = lone ? whole", "dots[at] = lone || done ? whole", (INT8,)),
    Mutant("rows of 8 bits: a chunk begins a piece late", "gemm_int8.c", "ends + 2 * piece * b.high, sums + run",
           "ends + 2 * (piece ? piece + 1 : 0) * b.high, sums + run", (INT8,)),
    Mutant("rows of 8 bits: columns of bytes in another order", "int8.h",
           "setr_epi32(0, 8, 16, 24, 1, 9,", "setr_epi32(0, 8, 24, 16, 1, 9,", (INT8,)),
    Mutant("rows of 8 bits: the second half of a word twice", "meet_int8.h",
           "vu second = source == FOURS ? quad_of_fours(words[1], j) : words[1];",
           "vu second = source == FOURS ? quad_of_fours(words[0], j) : words[0];", (INT8,)),
    Mutant("rows of 8 bits: codes one too large", "int8.c", "return (vi)(x + 12582912.0f) - 0x4b400000;",
           "return (vi)(x + 12582912.0f) - 0x4b3fffff;", (INT8,)),
    Mutant("NEON: columns of bytes in another order", "neon.h", "vzip1q_u8(column[2], column[3])",
           "vzip1q_u8(column[3], column[2])", (NEON,), emulated=True),
    Mutant("NEON: products of bytes of the low half twice", "neon.h", "high = vmull_high_s8(a, b)", "high = low",
           (NEON,), emulated=True),
    Mutant("NEON: codes are taken for unsigned ones", "neon.h", "0x4e809400", "0x6e809400", (NEON,),
           emulated=True),
    Mutant("NEON: bytes of the row before", "neon.h", "0x4fa0e800", "0x4f80e800", (NEON,), emulated=True),
    Mutant("NEON: pairs of the row before", "neon.h", "0x4f60f800", "0x4f40f800", (NEON,), emulated=True),
    Mutant("NEON: numbers of nibbles change places", "neon.h", "0,    0x80, 0,    0x40, 0x80, 0xa0,",
           "0,    0x80, 0x40, 0,    0x80, 0xa0,", (NEON,), emulated=True),
    Mutant("NEON: SDOT and BFDOT from any processor on", "neon.c", "& BF16) != 0", "& BF16) == 0", (NEON,),
           emulated=True),
    Mutant("draws: a bound that leaves out too much", "sample.c", "double spare = (1 - by->top_p - SLACK) * mass",
           "double spare = (1 - by->top_p / 2) * mass", (DRAW,)),
    Mutant("draws: top-k finds one too few", "sample.c", "return largest_but(best, stretches, k);",
           "return largest_but(best, stretches, k - 1);", (DRAW,)),
    Mutant("draws: equals by falling id", "sample.c", "<< 32 | at->ids[i];", "<< 32 | (0x7fffffffu - at->ids[i]);",
           (DRAW,)),
    Mutant("draws: a digit that is left out", "sample.c", "if (start[keys[0] >> shift & 255] == n) continue;",
           "if (start[keys[0] >> shift & 255] <= n / 2) continue;", (DRAW,)),
)  # fmt: skip


def compiled(sources: Path, unit: str, into: Path, *flags: str) -> Path:
    made = into / f"{unit}.o"
    options = [*build.FLAGS, *flags, "-march=native", "-w"]
    subprocess.run([*build._compiler(), *options, "-c", str(sources / unit), "-o", str(made)], check=True)
    return made


def readers(source: str) -> set[str]:
    """Units that are or include `source`."""
    listed = {
        unit: subprocess.check_output(
            [*build._compiler(), "-march=native", "-MM", str(build.SOURCES / unit)], text=True
        )
        for unit in build.UNITS
    }
    return {unit for unit, files in listed.items() if f"/{source}" in files}


def changed_sources(mutant: Mutant, folder: Path) -> Path:
    """A copy of the sources with the mutant in it. Raises ValueError for a line that is not."""
    sources = folder / "csrc"
    shutil.copytree(build.SOURCES, sources)
    text = (sources / mutant.source).read_text()
    if text.count(mutant.before) != 1:
        raise ValueError(f"occurs {text.count(mutant.before)} times in {mutant.source}: {mutant.before}")
    (sources / mutant.source).write_text(text.replace(mutant.before, mutant.after))
    return sources


def built(mutant: Mutant, plain: dict[str, Path], folder: Path) -> Path:
    """The library with the mutant in it; `plain` has the other units. Raises ValueError for a line that is not."""
    sources = changed_sources(mutant, folder)
    changed = {unit: compiled(sources, unit, folder) for unit in readers(mutant.source)}
    if mutant.unpaired:
        unit = "attention_pairs.c"
        changed[unit] = compiled(sources, unit, folder, "-DPLIMSOLL_WITHOUT_PAIRS")
    objects = [str(path) for path in (plain | changed).values()]
    subprocess.run([*build._compiler(), "-shared", *objects, "-o", str(folder / "mutant.so")], check=True)
    return folder / "mutant.so"


def caught(mutant: Mutant, plain: dict[str, Path]) -> bool:
    """Whether one of its tests fails."""
    with tempfile.TemporaryDirectory() as folder:
        if mutant.emulated:
            given = {"PLIMSOLL_TEST_SOURCES": str(changed_sources(mutant, Path(folder)))}
        else:
            given = {"PLIMSOLL_KERNELS_LIBRARY": str(built(mutant, plain, Path(folder))), "PLIMSOLL_KERNELS": "native"}
        environment = {**os.environ, **given}
        tests = [f"tests/kernels/{name}" for name in mutant.tests]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="mutants whose description contains this")
    given = parser.parse_args()
    lives = 0
    with tempfile.TemporaryDirectory() as folder:
        plain = {unit: compiled(build.SOURCES, unit, Path(folder)) for unit in build.UNITS}
        for mutant in MUTANTS:
            if given.only not in mutant.what:
                continue
            try:
                verdict = "caught" if caught(mutant, plain) else "LIVES"
            except (ValueError, RuntimeError, subprocess.CalledProcessError) as error:
                verdict = f"NOT RUN: {error}"
            lives += verdict != "caught"
            print(f"{mutant.what}: {verdict}", flush=True)
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
