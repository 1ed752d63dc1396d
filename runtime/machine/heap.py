"""How a process's heaps behave: what C's holds is in use, so that a prediction can be exact; Python's stops no step."""

import ctypes
import gc
import mmap
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_HUGEPAGE = 14
LARGE_BYTES = 2 << 20
"""In engines and quantization jobs, tensors from this size on get pages of their own, which go back when freed."""
SLACK_BYTES = 32 << 20
"""What the heap may keep at its end. Less would be given back and taken again within every step."""


def steady_heap(large: int = LARGE_BYTES, slack: int = SLACK_BYTES) -> None:
    """Pins glibc's thresholds. Left alone it raises them as it goes, and large holes stay behind in its heap.

    Does nothing where the C library is not glibc.

    Args:
        large: bytes of a block from which on it gets pages of its own.
        slack: bytes that the heap may keep at its end.
    """
    _libc("mallopt", _M_MMAP_THRESHOLD, large)
    _libc("mallopt", _M_TRIM_THRESHOLD, slack)


def return_freed_memory() -> None:
    """Gives the system what glibc's heap holds for nothing, holes between used blocks included."""
    _libc("malloc_trim", 0)


def keep_what_is_loaded() -> None:
    """Takes all objects of now out of Python's garbage collection: each full one would scan them, and stop all answers
    for that time."""
    gc.collect()
    gc.freeze()


def _libc(name: str, *values: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*values)


def advise_huge_pages(address: int, nbytes: int) -> None:
    """Asks for large pages behind memory that is not touched yet: the cache is read block by block, all over.

    A wish: a kernel that has none to give changes nothing.
    """
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + nbytes - start) // page * page
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None and length > 0:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
