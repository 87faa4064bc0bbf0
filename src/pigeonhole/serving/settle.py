"""After loading, before serving: what stays is counted as such, and what does not goes back to the system."""

import ctypes
import gc
import mmap
import re
from pathlib import Path

# A thousand connections that wait have 200,000 objects, through which a full collection goes in 50 ms: it comes when a million
# are new, and the small ones before it go through 6,000 at most.
THRESHOLDS = (1000, 5, 200)

SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)")


def settle() -> None:
    """Keep the garbage collector from what is there now: going through it takes the event loop some 40 ms each time."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    give_back()


def give_back() -> None:
    """What loading leaves behind: 10 MB that C's allocator would keep for itself, and what nobody reads of libraries again."""
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)  # glibc alone can be asked
    if trim is not None:
        trim(0)
    _let_go_of_libraries(libc)


def _let_go_of_libraries(libc: ctypes.CDLL) -> None:
    """Pages of the libraries' files are memory of who has touched them: to answer takes 20 MB of the 40 that a start does.

    What is read again is mapped again, from the system's own copy of the file. Pages that somebody has changed stay.
    """
    try:
        mapped = SMAPS.read_text().splitlines()
    except OSError:  # Linux alone has it, and a sandbox may keep it closed: what is mapped stays
        return
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in read_only(mapped):
        libc.madvise(start, end - start, mmap.MADV_DONTNEED)


def read_only(mapped: list[str]) -> list[tuple[int, int]]:
    """Addresses (first, behind the last) of pages that a library's file has and that nobody has changed.

    A thread may be loading one meanwhile. The loader maps a file whole and read-only, and then its parts over that, going up:
    what lies below a writable part is in its last state, and nothing will be written there.
    """
    found: list[tuple[int, int]] = []
    below: list[tuple[int, int]] = []
    file, here = "", None
    for line in mapped:
        if mapping := MAPPING.match(line):
            if mapping[4] != file or not file:
                file, below = mapping[4], []
            if mapping[3].startswith("rw"):
                found += below
                below = []
            here = (int(mapping[1], 16), int(mapping[2], 16)) if mapping[3].startswith("r-") else None
        elif here and file and line.startswith("Anonymous:") and line.split()[1] == "0":
            below.append(here)
    return found
