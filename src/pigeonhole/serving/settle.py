"""After loading, before serving: what stays is counted as such, and what does not goes back to the system."""

import ctypes
import gc

# A thousand connections that wait have 200,000 objects, through which a full collection goes in 50 ms: it comes when a million
# are new, and the small ones before it go through 6,000 at most.
THRESHOLDS = (1000, 5, 200)


def settle() -> None:
    """Keep the garbage collector from what is there now: going through it takes the event loop some 40 ms each time."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
    give_back()


def give_back() -> None:
    """Opening a model leaves 10 MB behind that C's allocator would keep for itself; glibc alone can be asked for them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
