"""Kubernetes quantities and durations: the strings of a manifest as exact numbers, and back for people."""

import re
from decimal import Decimal, InvalidOperation

from plimsoll.api.errors import SpecError

_UNITS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}))(?:([eE][+-]?\d{1,2})|(m|[kMGTPE]|[KMGTPE]i)|)", re.A
)
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?", re.A)
#: The largest quantity Kubernetes itself keeps exactly.
_LARGEST = (1 << 63) - 1


def parse_quantity(text: str | int | float) -> Decimal:
    """`500m`, `4`, `24Gi`, `1e9` as an exact number.

    Raises:
        ValueError: it is not a quantity, or does not fit 63 bits.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("must be a quantity such as 24Gi")
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError("must be a quantity such as 24Gi, 500M or 1e9")
    number, exponent, unit = match.groups()
    try:
        value = Decimal(number + (exponent or ""))
    except InvalidOperation:
        raise ValueError("must be a quantity such as 24Gi") from None
    value = value / 1000 if unit == "m" else value * _UNITS[unit or ""]
    if abs(value) > _LARGEST:
        raise ValueError("is larger than any quantity Kubernetes holds")
    return value


def parse_bytes(text: str | int | float) -> int:
    """A quantity of memory as whole bytes, rounded up as Kubernetes does. Raises ValueError unless above 0."""
    value = parse_quantity(text)
    if value <= 0:
        raise ValueError("must be above 0, such as 24Gi")
    return int(value.to_integral_value(rounding="ROUND_CEILING"))


def byte_option(text: str, option: str) -> int:
    """Bytes of a command-line option; `24GiB` is taken as 24Gi.

    Raises:
        SpecError: it is no quantity of memory; `option` is named.
    """
    try:
        return parse_bytes(text.strip().removesuffix("B") if text.strip().endswith("iB") else text)
    except ValueError as error:
        raise SpecError(str(error), field=option, value=text[:80]) from None


def parse_cpus(text: str | int | float) -> int:
    """A quantity of processors as whole threads, rounded up. Raises ValueError unless above 0."""
    value = parse_quantity(text)
    if not 0 < value <= 4096:
        raise ValueError("must be a number of processors such as 2 or 1500m")
    return int(value.to_integral_value(rounding="ROUND_CEILING"))


def parse_seconds(text: str | int | float) -> float:
    """`120s`, `2m`, `1h30m` or a plain number as seconds. Raises ValueError for anything else."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("must be a duration such as 120s")
    if isinstance(text, int | float):
        if not 0 <= text < 1e9:
            raise ValueError("must be a duration such as 120s")
        return float(text)
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError("must be a duration such as 120s, 2m or 1h30m")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def format_seconds(seconds: float) -> str:
    """Seconds as a manifest has them, in the largest whole unit: `10m`, `90s`, `0.5s`."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:g}s"


def format_bytes(count: int) -> str:
    """Bytes for a person, in binary units: `512.0 MiB`, `15.0 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
