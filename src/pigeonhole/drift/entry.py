"""Where `uv run drift` begins: SIGTERM ends it with 0 from its first moment on, as that of a container's process 1 too."""

import os
import signal
from types import FrameType


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    from pigeonhole.drift.service import main as watch  # seconds of loading, in which a SIGTERM may come

    watch()


def _end(_: int, __: FrameType | None) -> None:
    os._exit(0)  # uvicorn raises the signal again when all requests are answered; before it listens nothing is open


if __name__ == "__main__":
    main()
