"""`retrain` with the arguments given. KILL_AT=PATTERN: is killed when a file of such a path is about to get its name."""

import os
import re
import signal
import sys
from typing import Any

from pigeonhole.loop.retrain import main

pattern = os.environ.get("KILL_AT")


def kill(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("os.rename", "os.link") and pattern and re.search(pattern, str(arguments[1])):
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(kill)
main()
