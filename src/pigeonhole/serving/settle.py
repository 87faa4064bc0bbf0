"""After loading, before serving: what stays is counted as such, and what does not goes back to the system."""

import ctypes
import gc


def settle() -> None:
    """Keep the garbage collector from what is there now: going through it takes the event loop some 40 ms each time."""
    gc.freeze()
    gc.enable()
    give_back()


def give_back() -> None:
    """Opening a model leaves 10 MB behind that C's allocator would keep for itself; glibc alone can be asked for them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
