"""Memory that a pass frees stays with the process for the next one. Otherwise glibc hands it back, and gets it again as
pages that the system has first to fill with zeros: of a small language model's learner, a fifth of its time.

Like the number of threads, this holds for a whole process: on CPUs alone, and where the C library knows of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# glibc's names for what is set (malloc.h), and to what, in bytes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = 2**30  # free memory at the heap's end, before some is handed back
_AT_ONCE = 64 * 2**20  # by so much the heap grows
_OUTSIDE = 32 * 2**20  # larger arrays are mapped one by one, and handed back at once: no gaps of their size are left


def keep_freed_memory() -> None:
    """From now on, for the whole process."""
    set_option = _glibc("mallopt")
    for option, size in ((_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _AT_ONCE), (_M_MMAP_THRESHOLD, _OUTSIDE)):
        set_option(option, size)


def return_freed_memory() -> None:
    """Hands back what is kept now: of training that is over, in a process that goes on with something else."""
    _glibc("malloc_trim")(0)


def _glibc(name: str) -> Callable[..., object]:
    """A function of the C library; where it has none of that name, one that does nothing."""
    found: Callable[..., object] = getattr(ctypes.CDLL(None), name, lambda *_: 0)
    return found
