"""Where `uv run serve` begins: SIGTERM ends it with 0 from its first moment on, Ctrl-C with a line.

Process 1 of a container has no default for a signal: the kernel drops what nobody handles. A SIGTERM that came while libraries or
the model were loading was lost, and the container ran on until it was killed.

Python's garbage collector rests until the service listens: loading makes 80,000 objects that stay, and no garbage.
"""

import gc
import os
import signal
from types import FrameType


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as of a script's background job
        signal.signal(signal.SIGINT, _interrupt)
    gc.disable()
    from pigeonhole.serving.serve import main as serve  # a second of loading, in which a SIGTERM may come

    serve()


def _end(_: int, __: FrameType | None) -> None:
    os._exit(0)  # an exception may be swallowed by whatever is being loaded; nothing is open yet that would have to be closed


def _interrupt(_: int, __: FrameType | None) -> None:
    """Until server.run. As Python's own exception it would be a stack of whatever is being loaded, or a failure of that."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
