"""What this machine's processor can do, and which ahead-of-time build of the C kernels suits it. Without torch."""

import platform
from dataclasses import dataclass
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")

_BYTES = {32: "avx2", 16: "avx2", 8: "asimddp"}
"""What multiplies bytes faster than floats, by rows of a panel."""
_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})


@dataclass(frozen=True)
class Variant:
    """One build of the kernels that runs on every processor of a kind.

    Attributes:
        name: the level, as compilers call it.
        machine: `platform.machine()` of where it runs and is built.
        flags: for the compiler.
        needs: instruction sets, as /proc/cpuinfo names them.
        panel: rows of a panel: two of its vectors of float32, as `csrc/vec.h` has it.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]
    panel: int


VARIANTS = (
    # Left to itself GCC takes 256 bits of these 512 in loops that it makes vectors of.
    Variant(
        "x86-64-v4",
        "x86_64",
        ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        32,
    ),
    Variant("x86-64-v3", "x86_64", ("-march=x86-64-v3",), _V3, 16),
    Variant("armv8-a", "aarch64", ("-march=armv8-a",), frozenset(), 8),
)
"""The best of each machine first. AMX makes no other one: the kernels ask the processor when they run."""


def variants(machine: str | None = None) -> list[Variant]:
    """Those of a kind of machine, by default this one's."""
    wanted = machine or platform.machine()
    return [variant for variant in VARIANTS if variant.machine == wanted]


def fitting() -> list[Variant]:
    """Those that run on this processor, the best first."""
    flags = processor_flags()
    return [variant for variant in variants() if variant.needs <= flags]


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return not processor_flags().isdisjoint(("amx_bf16", "avx512_bf16", "bf16"))


def multiplies_bytes(panel: int) -> bool:
    """Whether products of rows of 8 bits are faster than those of bfloat16: by VPDPBUSD, VPMADDUBSW or SDOT, of
    kernels with `panel` rows a panel, and without AMX, whose tiles of bfloat16 are faster still (`csrc/path.c`)."""
    flags = processor_flags()
    return _BYTES.get(panel) in flags and not {"amx_bf16", "amx_tile"} <= flags


def processor_flags() -> set[str]:
    """Instruction sets as Linux names them, `Features` on AArch64; empty where it does not say."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
