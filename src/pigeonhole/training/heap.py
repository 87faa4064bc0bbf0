"""Memory that a step has freed is the next step's: glibc would hand it back to the system and fetch it page by page again.

A step of MiniLM frees and asks for some 100 MB in pieces of megabytes; the pages' faults are 6 % of its time.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # names of mallopt(3)


def keep_freed_memory() -> None:
    """For the rest of this process, where the C library is glibc; elsewhere nothing changes."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(ARENA_MAX, 1)  # the threads of a step share what is free
