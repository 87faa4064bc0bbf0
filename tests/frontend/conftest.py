"""The real service in a process of its own, over the tiny sealed bundle, and the pages that ask it."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import streamlit as st
from frontend.ports import API_VARIABLE, DRIFT_VARIABLE, KEY_VARIABLE
from streamlit.testing.v1 import AppTest

from pigeonhole.port import free_port

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"
"""The discard port: a connection is refused at once."""


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the process has ended"
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def environment(**variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIGEONHOLE_")}
    return {**own, "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture(scope="session")
def serve_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Starts `serve` over a bundle with an empty log, on a port of its own, and gives its URL."""
    with contextlib.ExitStack() as running:

        def start(bundle: Path) -> str:
            port = free_port()
            log = tmp_path_factory.mktemp("log")
            settings = environment(PORT=str(port), PIGEONHOLE_BUNDLE=str(bundle), PIGEONHOLE_LOG=str(log))
            process = subprocess.Popen([shutil.which("serve") or "serve"], env=settings)
            running.callback(process.wait, 20)
            running.callback(process.terminate)
            wait_until_ready(f"http://127.0.0.1:{port}/ready", process)
            return f"http://127.0.0.1:{port}"

        yield start


@pytest.fixture(scope="session")
def served(sealed_bundle: Path, serve_bundle: Callable[[Path], str]) -> str:
    """The URL of `serve` over the tiny bundle."""
    return serve_bundle(sealed_bundle)


@contextlib.contextmanager
def both_services(registry: str, folder: Path) -> Iterator[tuple[str, str]]:
    """`serve` and `drift` over a registry and a log that is empty: their URLs. Each answer is in the review queue."""
    shared = {"PIGEONHOLE_REGISTRY": registry, "PIGEONHOLE_LOG": str(folder / "log")}
    urls = []
    with contextlib.ExitStack() as running:
        for name, ready in (("serve", "/ready"), ("drift", "/health")):
            port = str(free_port())
            settings = environment(PORT=port, PIGEONHOLE_REPORTS=str(folder / "reports"), PIGEONHOLE_DRAW="no", **shared)
            settings |= {"PIGEONHOLE_AUDIT_SHARE": "1"} if name == "drift" else {}
            process = subprocess.Popen([shutil.which(name) or name], env=settings)
            running.callback(process.wait, 20)
            running.callback(process.terminate)
            wait_until_ready(f"http://127.0.0.1:{port}{ready}", process)
            urls.append(f"http://127.0.0.1:{port}")
        yield urls[0], urls[1]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """A page of the app, asked as a visitor of it; `api` is where it looks for the service."""

    def start(api: str, page: str = "", drift: str = NOBODY, query: dict[str, str] | None = None) -> AppTest:
        monkeypatch.setenv(API_VARIABLE, api)
        monkeypatch.setenv(DRIFT_VARIABLE, drift)
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        st.cache_data.clear()
        st.cache_resource.clear()
        app = AppTest.from_file(str(ROOT / "frontend/app.py"), default_timeout=60)
        for name, value in (query or {}).items():
            app.query_params[name] = value
        if page:
            app.switch_page(f"screens/{page}.py")
        return app.run()

    yield start
    st.cache_resource.clear()
