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
CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]")  # of a file: it has an inode


def settle() -> None:
    """Keep the garbage collector from what is there now: going through it takes the event loop some 40 ms each time."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    give_back()


def give_back() -> None:
    """What opening a model leaves behind: 10 MB that C's allocator would keep for itself, and code that nothing runs again."""
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)  # glibc alone can be asked
    if trim is not None:
        trim(0)
    _let_go_of_code(libc)


def _let_go_of_code(libc: ctypes.CDLL) -> None:
    """Pages of the libraries' files are memory of who has run what is in them: to answer takes 10 MB of 30.

    What runs again is mapped again, from the system's own copy of the file. Code that somebody has changed in memory stays.
    """
    try:
        mapped = SMAPS.read_text().splitlines()
    except OSError:  # Linux alone has it, and a sandbox may keep it closed: what is mapped stays
        return
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    code = None
    for line in mapped:
        if "-" in line.partition(" ")[0]:
            code = CODE.match(line)
        elif code and line.startswith("Anonymous:") and line.split()[1] == "0":
            start, end = (int(address, 16) for address in code.groups())
            libc.madvise(start, end - start, mmap.MADV_DONTNEED)
