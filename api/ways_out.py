"""What would make a budget close: each way names all that it changes, and the budget itself has checked it."""

from collections.abc import Callable, Iterator
from typing import Any

from plimsoll.api.loaded_line import Budget, Load
from plimsoll.api.names import Names
from plimsoll.api.quantity import format_bytes

MIB = 1 << 20
#: The shortest request that is worth suggesting, in tokens.
LEAST_LENGTH = 256
#: Of a cache's share of what is free, and of the tokens of a step, from the smallest change on.
RATIOS = (0.9, 0.95)
STEPS = (1024, 512, 256)
#: How finely a device is suggested.
GRAIN = 16 * MIB


Closes = Callable[[dict[str, Any]], Budget | None]
"""The budget with these fields of the load changed, `total` being the device's; None where it does not close."""


def ways_out(wish: Load, needed_cache: int, step: int, precisions: tuple[str, ...], closes: Closes) -> Iterator[
    tuple[dict[str, Any], Budget]
]:  # fmt: skip
    """Changes that close the budget, one field at a time, then a larger device.

    Two fields change at once where no single field closes it.

    Args:
        needed_cache: bytes that the cache of one request takes.
        step: tokens of the largest step, as it is now.
        precisions: in which weights take less than now, the least degraded first.
    """
    single = list(_single(wish, needed_cache, step, precisions, closes))
    yield from single
    if not single:
        yield from _double(wish, step, precisions, closes)
    total = _least_total(closes)
    if total is not None and (found := closes({"total": total})):
        yield {"total": total}, found


def _single(
    wish: Load, needed_cache: int, step: int, precisions: tuple[str, ...], closes: Closes
) -> Iterator[tuple[dict[str, Any], Budget]]:
    def first(changes: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Budget]]:
        yield from ((change, found) for change in changes if (found := closes(change)))

    yield from _shorter(wish, {}, closes)
    if wish.cache_bytes is None:
        yield from _first(first({"ratio": ratio} for ratio in RATIOS if ratio > wish.ratio))
    else:
        yield from _first(first(iter([{"cache_bytes": None}])))
        if needed_cache > wish.cache_bytes:
            yield from _first(first(iter([{"cache_bytes": needed_cache}])))
    yield from _first(first({"max_batched_tokens": tokens} for tokens in STEPS if tokens < step))
    if wish.host_bytes:
        yield from _first(first(iter([{"host_bytes": 0}])))
    if wish.held_cache == "float":
        yield from _first(first(iter([{"cache_precision": "int8"}])))
    yield from _first(first({"precision": one} for one in precisions))


def _double(
    wish: Load, step: int, precisions: tuple[str, ...], closes: Closes
) -> Iterator[tuple[dict[str, Any], Budget]]:
    """The first of each pair of fields that closes it."""
    steps = [tokens for tokens in STEPS if tokens < step]
    for outer in ([{"precision": one} for one in precisions], [{"max_batched_tokens": tokens} for tokens in steps]):
        yield from _first(found for change in outer for found in _shorter(wish, change, closes))
    pairs = ({"precision": one, "max_batched_tokens": tokens} for one in precisions for tokens in steps)
    yield from _first((change, found) for change in pairs if (found := closes(change)))


def _first(found: Iterator[tuple[dict[str, Any], Budget]]) -> Iterator[tuple[dict[str, Any], Budget]]:
    one = next(found, None)
    if one is not None:
        yield one


def _shorter(wish: Load, change: dict[str, Any], closes: Closes) -> Iterator[tuple[dict[str, Any], Budget]]:
    """The longest request, in whole blocks, that closes it together with `change`: shorter ones always do."""
    if wish.max_length is None:
        return
    size = wish.block_size
    low, high = -(-LEAST_LENGTH // size), (wish.max_length - 1) // size
    if high < low or closes({**change, "max_length": low * size}) is None:
        return
    while low < high:
        middle = (low + high + 1) // 2
        if closes({**change, "max_length": middle * size}):
            low = middle
        else:
            high = middle - 1
    whole = {**change, "max_length": low * size}
    found = closes(whole)
    assert found is not None
    yield whole, found


def _least_total(closes: Closes) -> int | None:
    """The least memory of a device, in steps of `GRAIN`; None for a cache whose own size is too small."""
    low, high = 0, 1 << 26
    if closes({"total": high * GRAIN}) is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if closes({"total": middle * GRAIN}):
            high = middle
        else:
            low = middle
    return high * GRAIN


def described(change: dict[str, Any], found: Budget, wish: Load, names: Names, note: str = "") -> str:
    """One way out as a user writes it: `context.maxLength 512`, `precision w4a16 and context.maxLength 512 (...)`.

    Args:
        note: more to know of the precision.
    """
    parts: list[str] = []
    notes: list[str] = []
    several = wish.tensor == "auto" and found.tensor > 1
    for field, value in change.items():
        if field == "total":
            parts.append(f"{names.memory} {value // MIB}Mi")
            taken: list[str] = [found.precision] if wish.precision == "auto" else []
            taken += [f"{found.tensor} devices"] if several else []
            notes += [f"auto takes {' on '.join(taken)} there"] if taken else []
        elif field == "host_bytes":
            parts.append(f"no {names.host_bytes}")
        elif field == "cache_precision":
            parts.append(names.int8_cache)
        elif field == "cache_bytes" and value is None:
            parts.append(f"{names.ratio} {wish.ratio:g} instead of an absolute size")
        elif field == "cache_bytes":
            parts.append(f"{names.cache_bytes} {-(-value // MIB)}Mi")
        else:
            text = f"{value:g}" if field == "ratio" else str(value)
            parts.append(f"{getattr(names, field)} {text}")
    if "precision" in change:
        notes += [f"{format_bytes(found.weights)} weights", f"{found.kv_tokens} tokens of cache"]
        notes += [note] if note else []
    if wish.cache_precision == "auto" and found.cache_precision != "float" and "cache_precision" not in change:
        notes.append(f"cache in {found.cache_precision}")
    if several and "total" not in change:
        notes.append(f"on {found.tensor} devices")
    return " and ".join(parts) + (f" ({', '.join(notes)})" if notes else "")
