"""The headers of a checkpoint's tensors, collapsed by layer: eighty layers of one kind take as many words as one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import prod
from typing import Any

from plimsoll.api.model import TensorFact

#: The number of the layer in a tensor's name; `*` stands for it in a pattern.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
#: Beyond any checkpoint that is read; a forged table must not expand to gigabytes.
_MOST_TENSORS = 1 << 17


def collapse(tensors: Mapping[str, TensorFact]) -> dict[str, Any]:
    """Plain data that `expand` makes an equal mapping of.

    `rates` gives the bytes of an element by dtype, as numerator and denominator (`Q4_K`: 9/16). `rows` has one entry a
    pattern and shape: the pattern, the shape, and for each dtype the layers, as `0-3,8`; names without a layer have ``.

    Raises:
        ValueError: a dtype's elements have two sizes, or a name has a star in it; no reader makes such.
    """
    rates: dict[str, Fraction] = {}
    groups: dict[tuple[str, tuple[int, ...]], dict[str, list[int | None]]] = {}
    for name, fact in tensors.items():
        if "*" in name:
            raise ValueError(f"{name} has a star in it")
        match = _LAYER.search(name)
        layer = int(match[0]) if match and str(int(match[0])) == match[0] else None
        pattern = name if layer is None or match is None else f"{name[: match.start()]}*{name[match.end() :]}"
        elements = prod(fact.shape)
        if elements:
            rate = Fraction(fact.nbytes, elements)
            if rates.setdefault(fact.dtype, rate) != rate:
                raise ValueError(f"{fact.dtype} has elements of {rates[fact.dtype]} and of {rate} bytes")
        groups.setdefault((pattern, tuple(fact.shape)), {}).setdefault(fact.dtype, []).append(layer)
    for kinds in groups.values():
        for dtype in kinds:
            rates.setdefault(dtype, Fraction(0))
    return {
        "rates": {dtype: [rate.numerator, rate.denominator] for dtype, rate in rates.items()},
        "rows": [
            [pattern, list(shape), {dtype: _ranges(layers) for dtype, layers in kinds.items()}]
            for (pattern, shape), kinds in groups.items()
        ],
    }


def expand(table: Mapping[str, Any]) -> dict[str, TensorFact]:
    """The mapping that `collapse` was given.

    Raises:
        ValueError, KeyError, TypeError: the table is damaged.
    """
    rates = {dtype: Fraction(*pair) if pair[1] else Fraction(0) for dtype, pair in table["rates"].items()}
    found: dict[str, TensorFact] = {}
    for pattern, sizes, kinds in table["rows"]:
        shape = tuple(int(size) for size in sizes)
        for dtype, ranges in kinds.items():
            nbytes = rates[dtype] * prod(shape)
            if nbytes.denominator != 1 or nbytes < 0:
                raise ValueError("a tensor of a fraction of a byte")
            for layer in _layers(ranges):
                name = pattern if layer is None else pattern.replace("*", str(layer))
                found[name] = TensorFact(name, shape, dtype, nbytes.numerator)
                if len(found) > _MOST_TENSORS:
                    raise ValueError("too many tensors")
    return found


def _ranges(layers: Iterable[int | None]) -> str:
    numbers = sorted(layer for layer in layers if layer is not None)
    if not numbers:
        return ""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _layers(ranges: str) -> Iterator[int | None]:
    if not ranges:
        yield None
        return
    for run in ranges.split(","):
        first, _, last = run.partition("-")
        end = int(last or first)
        if end - int(first) > _MOST_TENSORS:
            raise ValueError("too many layers")
        yield from range(int(first), end + 1)
