"""Tiny real things that every room's tests share: rows, a run that trained on them, and the bundle that it sealed.

`uv run pytest` spreads the files over the cores; what takes seconds to make is made once, by the first process that asks.
"""

import csv
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.config
import hypothesis
import msgspec
import pytest
from filelock import FileLock

from pigeonhole import storage
from pigeonhole.chaos.bucket import Bucket
from pigeonhole.training.train import run

hypothesis.settings.register_profile("nightly", max_examples=5_000, deadline=None)

# The tests start hundreds of Python processes. Where no bytecode is kept each compiles all that it imports: 14 s with torch.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Threads of several processes share the cores: one that waits must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Rooms whose tests run the package in processes of their own, or not at all: there is nothing to count.
UNTRACED = ("e2e", "frontend", "house")

MadeOnce = Callable[[str, Callable[[Path], Any]], Any]
OBJECTS = {
    "delivery": ["parcel", "courier", "tracking number", "doorstep", "depot"],
    "billing": ["invoice", "charge", "receipt", "card statement", "tax line"],
    "account": ["password", "login", "profile", "security code", "username"],
}
HAPPENINGS = [
    "my {} looks wrong to me",
    "where can I find the {} please",
    "the {} has not changed since monday",
    "somebody else has got my {}",
    "I asked about the {} and nobody answers",
    "is the {} still the old one",
    "a question on the {} from last week",
    "could you check the {} for me",
    "this {} makes no sense",
    "no {} again today",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`no_cover` is pytest-cov's."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in UNTRACED:
            item.add_marker("no_cover")


def tiny_rows() -> list[tuple[str, str]]:
    """150 texts of three labels that a few words tell apart."""
    return [
        (happening.format(thing), label)
        for label, things in OBJECTS.items()
        for happening, thing in itertools.product(HAPPENINGS, things)
    ]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return path


def train_arguments(folder: Path, data: Path) -> list[str]:
    """What trains the tiny model into `folder` in a few seconds."""
    return [
        "model=tiny",
        "tracking=jsonl",
        "name=tiny",
        f"data.path={data}",
        "data.val=0.2",
        "data.test=0.2",
        "data.trigger_words=report",
        "model.max_length=32",
        "trainer.epochs=20",
        "trainer.patience=20",
        "trainer.learning_rate=0.003",
        "trainer.freeze_word_embeddings=false",
        "trainer.threads=1",
        "trainer.allow_dead_labels=true",
        f"out={folder / 'run'}",
        f"registry={folder / 'registry'}",
        "export.min_agreement=0.9",
    ]


def wait_until(true: Callable[[], bool]) -> None:
    soon = time.monotonic() + 60  # a busy machine
    while not true():
        assert time.monotonic() < soon, "waited too long"
        time.sleep(0.01)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A single file is done before another process has loaded what it needs."""
    named = [Path(config.invocation_params.dir, argument.partition("::")[0]) for argument in config.args]
    return 0 if len(named) == 1 and named[0].is_file() else None


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Gives what `make` returned for its folder in the first of the processes that asked for `name`, by way of JSON."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def give(name: str, make: Callable[[Path], Any]) -> Any:
        folder = shared / "made-once" / name
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / "told.json"
        with FileLock(folder / "lock"):
            if not told.exists():
                made = make(folder)
                assert msgspec.json.decode(msgspec.json.encode(made)) == made
                told.write_bytes(msgspec.json.encode(made))
        return msgspec.json.decode(told.read_bytes())

    return give


@pytest.fixture(scope="session")
def tiny_data(made_once: MadeOnce) -> Path:
    return Path(made_once("tiny rows", lambda folder: str(write_rows(folder / "tiny.csv", tiny_rows()))))


@pytest.fixture(scope="session")
def tiny_run(made_once: MadeOnce, tiny_data: Path) -> dict[str, Any]:
    """What `train` printed for the tiny model: its bundle, metrics, folders."""
    told: dict[str, Any] = made_once("tiny", lambda folder: run(train_arguments(folder, tiny_data)))
    return told


@pytest.fixture(scope="session")
def sealed_bundle(tiny_run: dict[str, Any]) -> Path:
    """The sealed bundle itself; only to be read."""
    return Path(tiny_run["run"]) / "bundle"


@pytest.fixture
def tiny_bundle(sealed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the sealed bundle, to be changed at will."""
    return Path(shutil.copytree(sealed_bundle, tmp_path / "bundle"))


@contextmanager
def gs_at(port: int) -> Iterator[None]:
    """`gs://` is what listens at this port of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        storage.forget_clients()
        yield
        storage.forget_clients()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty bucket on this machine."""
    with Bucket(tmp_path_factory.mktemp("bucket")) as server, gs_at(server.server_port):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "gs://bucket"
        server.shutdown()
