"""Options that take one of a few values."""

from collections.abc import Iterable

from plimsoll.api.errors import SpecError


def check_choice(value: object, allowed: Iterable[object], field: str, fix: str | None = None) -> None:
    """Raises SpecError that lists what `field` may be, unless `value` is one of `allowed`."""
    known = tuple(allowed)
    if value not in known:
        raise SpecError(f"must be one of {', '.join(map(str, known))}", field=field, value=value, fix=fix)
