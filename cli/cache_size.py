"""How large the KV cache is: `--cache-max-entry-count`, a share, or `--kv-cache-bytes`, its size itself."""

from plimsoll.api.errors import SpecError
from plimsoll.api.quantity import byte_option

SHARE, SIZE = "--cache-max-entry-count", "--kv-cache-bytes"
DEFAULT_SHARE = 0.8


def cache_size(share: float | None, size: str | None) -> tuple[float, int | None]:
    """The share of what is free, and the bytes where a size is given; the share does not count then.

    Args:
        share: between 0 and 1, both excluded; None is the default.
        size: as 2Gi.

    Raises SpecError for a share or a size that is none, and where both are given.
    """
    if share is not None and not 0 < share < 1:
        raise SpecError(
            "must be between 0 and 1, both excluded",
            field=SHARE,
            value=share,
            fix=f"For an absolute size there is {SIZE}",
        )
    if share is not None and size is not None:
        raise SpecError(f"contradicts {SIZE}, which is the whole size", field=SHARE, value=share, fix="Leave one")
    return DEFAULT_SHARE if share is None else share, None if size is None else byte_option(size, SIZE)
