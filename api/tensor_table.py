"""The headers of a checkpoint's tensors, collapsed by layer: eighty layers of one kind take as many words as one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import prod
from typing import Any

from plimsoll.api.model import TensorFact

#: The number of the layer in a tensor's name; `*` stands for it in a pattern.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
#: Beyond any checkpoint that is run; a forged table must not expand to gigabytes, nor for minutes.
_MOST_TENSORS, _LONGEST_NAME = 1 << 15, 1 << 10
_MOST_SIZES = 8
_LARGEST_SIZE = 1 << 48


def collapse(tensors: Mapping[str, TensorFact]) -> dict[str, Any]:
    """Plain data that `expand` makes an equal mapping of.

    `rates` gives the bytes of an element by dtype, as numerator and denominator (`Q4_K`: 9/16), where they are the same
    throughout. `rows` has one entry a pattern, shape and, where its dtypes have no rate (quantized weights beside their
    scales), bytes: the pattern, the shape, and for each dtype the layers, as `0-3,8`; names without a layer have ``.
    Such an entry has a fourth item, the bytes of each of its tensors.

    Raises:
        ValueError: a name has a star in it; no reader makes such.
    """
    rates = _rates(tensors.values())
    groups: dict[tuple[str, tuple[int, ...], int | None], dict[str, list[int | None]]] = {}
    for name, fact in tensors.items():
        if "*" in name:
            raise ValueError(f"{name} has a star in it")
        match = _LAYER.search(name)
        layer = int(match[0]) if match and str(int(match[0])) == match[0] else None
        pattern = name if layer is None or match is None else f"{name[: match.start()]}*{name[match.end() :]}"
        own = None if fact.dtype in rates else fact.nbytes
        groups.setdefault((pattern, tuple(fact.shape), own), {}).setdefault(fact.dtype, []).append(layer)
    return {
        "rates": {dtype: [rate.numerator, rate.denominator] for dtype, rate in rates.items()},
        "rows": [
            [pattern, list(shape), {dtype: _ranges(layers) for dtype, layers in kinds.items()}]
            + ([] if own is None else [own])
            for (pattern, shape, own), kinds in groups.items()
        ],
    }


def expand(table: Mapping[str, Any]) -> dict[str, TensorFact]:
    """The mapping that `collapse` was given.

    Raises:
        ValueError, KeyError, TypeError: the table is damaged.
    """
    rates = {dtype: Fraction(*pair) if pair[1] else Fraction(0) for dtype, pair in table["rates"].items()}
    found: dict[str, TensorFact] = {}
    seen = 0
    for pattern, sizes, kinds, *own in table["rows"]:
        shape = tuple(int(size) for size in sizes[:_MOST_SIZES])
        if len(sizes) > _MOST_SIZES or any(not 0 <= size <= _LARGEST_SIZE for size in shape):
            raise ValueError("a tensor without a shape")
        if len(pattern) > _LONGEST_NAME or pattern.count("*") > 1:
            raise ValueError("a tensor with a name that no reader makes")
        for dtype, ranges in kinds.items():
            nbytes = Fraction(int(own[0])) if own else rates[dtype] * prod(shape)
            if nbytes.denominator != 1 or not 0 <= nbytes <= _LARGEST_SIZE:
                raise ValueError("a tensor of a fraction of a byte")
            for layer in _layers(ranges):
                name = pattern if layer is None else pattern.replace("*", str(layer))
                found[name] = TensorFact(name, shape, dtype, nbytes.numerator)
                seen += 1  # Not those that are found: a name that comes again and again costs time as well.
                if seen > _MOST_TENSORS:
                    raise ValueError("too many tensors")
    return found


def _rates(facts: Iterable[TensorFact]) -> dict[str, Fraction]:
    """Bytes of an element of each dtype whose elements all have as many; 0 for one that only empty tensors have."""
    found: dict[str, set[Fraction]] = {}
    for fact in facts:
        elements = prod(fact.shape)
        rates = found.setdefault(fact.dtype, set())
        if elements:
            rates.add(Fraction(fact.nbytes, elements))
    return {dtype: next(iter(rates), Fraction(0)) for dtype, rates in found.items() if len(rates) <= 1}


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
