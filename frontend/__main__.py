"""`python -m frontend`: the page in a process that Streamlit takes over, at HOST and PORT as the services have them."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from frontend.ports import PAGE_PORT


def command(environment: Mapping[str, str]) -> list[str]:
    host, port = environment.get("HOST") or "127.0.0.1", environment.get("PORT") or str(PAGE_PORT)
    page = str(Path(__file__).parent / "app.py")
    return [sys.executable, "-m", "streamlit", "run", page, "--server.address", host, "--server.port", port]


if __name__ == "__main__":
    line = command(os.environ)
    os.execv(line[0], line)  # noqa: S606  no shell is meant
