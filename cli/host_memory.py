"""How much host memory a second tier of cache blocks gets: `--host-memory`, or what vLLM calls it."""

from plimsoll.api.errors import SpecError
from plimsoll.api.quantity import byte_option

OPTION, SWAP, OFFLOADED = "--host-memory", "--swap-space", "--kv-offloading-size"
_GIB = 1 << 30


def host_bytes(host_memory: str | None, swap_space: float | None, offloaded: float | None, ranks: int | str) -> int:
    """Bytes of each rank's tier; 0 is none.

    Args:
        host_memory: of each rank, as 8Gi; 0 is none.
        swap_space: GiB of each rank; 0 is none.
        offloaded: GiB of all ranks together; 0 is none.
        ranks: how many there are, or auto.

    Raises SpecError for a value that is no amount of memory, and where more than one of the three is given.
    """
    given = {OPTION: host_memory, SWAP: swap_space, OFFLOADED: offloaded}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise SpecError(f"says the same as {named[0]}", field=named[1], value=given[named[1]], fix="Leave one")
    if host_memory is not None:
        return 0 if host_memory.strip() == "0" else byte_option(host_memory, OPTION)
    if offloaded is not None and not isinstance(ranks, int):
        raise SpecError(
            "is of all ranks together, and --tp auto does not say how many there are", field=OFFLOADED,
            value=offloaded, fix="Give --host-memory, which is of each rank, or a number of ranks",
        )  # fmt: skip
    if offloaded is not None:
        assert isinstance(ranks, int)
        return int(offloaded * _GIB) // ranks
    return int((swap_space or 0) * _GIB)
