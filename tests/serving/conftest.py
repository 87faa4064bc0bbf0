"""A tiny real bundle (an ONNX graph of four nodes that counts words) and a real server on a free port."""

import contextlib
import datetime as dt
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pigeonhole.bundle import Golden, Manifest, Windowing, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.port import bind
from pigeonhole.prediction_log import LogWriter, Record, read_window
from pigeonhole.registry import Registry
from pigeonhole.serving.app import create_app
from pigeonhole.serving.batcher import Batcher
from pigeonhole.serving.server import make_server
from pigeonhole.serving.settings import Settings

LABELS = ("billing", "delivery", "refund")
OTHER_LABELS = ("money", "post", "return")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[",
    "]",
    "sep",
    "cls",
    "invoice",
    "parcel",
    "refund",
    "where",
    "is",
    "my",
    "word",
    "cafe",
]
WEIGHTS = np.zeros((len(WORDS), 3), np.float32)
WEIGHTS[WORDS.index("invoice"), 0] = WEIGHTS[WORDS.index("parcel"), 1] = WEIGHTS[WORDS.index("refund"), 2] = 4.0
"""What a word adds to the logits; logits are the mean of it over the tokens of a text, [CLS] and [SEP] too."""


def write_model(path: Path) -> None:
    """logits = (mask @ WEIGHTS[input_ids]) / n_tokens; the embedding is the same."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["rows"]),  # (b, t, c)
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),  # (b, t)
        helper.make_node("Unsqueeze", ["mask", "one"], ["mask_row"]),  # (b, 1, t)
        helper.make_node("MatMul", ["mask_row", "rows"], ["sums"]),  # (b, 1, c)
        helper.make_node("Squeeze", ["sums", "one"], ["sum"]),  # (b, c)
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),  # (b, 1)
        helper.make_node("Div", ["sum", "count"], ["logits"]),
        helper.make_node("Identity", ["logits"], ["text_embedding"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("logits", "text_embedding")]
    constants = [numpy_helper.from_array(WEIGHTS, "weights"), numpy_helper.from_array(np.array([1]), "one")]
    graph = helper.make_graph(nodes, "words", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(path))


def make_bundle(
    folder: Path,
    name: str = "words",
    version: str = "20260301-120000",
    labels: tuple[str, ...] = LABELS,
    **changes: object,
) -> Manifest:
    folder.mkdir(parents=True)
    write_model(folder / "model.onnx")
    write_tokenizer(folder / "tokenizer.json")
    golden = [Golden(text="where is my parcel", logits={"fp32": [0.0, 4 / 6, 0.0]})]
    (folder / "golden.json").write_bytes(msgspec.json.encode(golden))
    manifest = Manifest(
        schema_version=1,
        name=name,
        version=version,
        created_at="2026-03-01T12:00:00Z",
        task="single_label",
        labels=labels,
        max_length=128,
        windowing=Windowing(),
        temperature=0.5,
        thresholds=dict.fromkeys(labels, 0.5),
        threshold_target=None,
        models={"fp32": "model.onnx"},
        served="fp32",
        parity={},
        metrics={"test": {"accuracy": 0.9}},
        provenance={},
        files={},
    )
    return seal(folder, msgspec.structs.replace(manifest, **changes))


@pytest.fixture(scope="session")
def words_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "words"
    make_bundle(folder)
    return folder


@pytest.fixture
def classifier(words_bundle: Path) -> Classifier:
    return Classifier.open(open_bundle(str(words_bundle)))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """v1 in production; v2 has other labels; broken has a byte changed."""
    found = Registry(str(tmp_path / "registry"))
    for version, labels in (("v1", LABELS), ("v2", OTHER_LABELS), ("broken", LABELS)):
        found.publish(tmp_path / version, make_bundle(tmp_path / version, "words", version, labels))
    model = tmp_path / "registry" / "models" / "words" / "versions" / "broken" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    found.set_alias("words", "production", "v1", "first", expected=None)
    return found


def opened(registry: Registry, version: str = "v1") -> Classifier:
    return Classifier.open(open_bundle(registry.version_url("words", version)))


@dataclass
class Running:
    """A service that answers on a socket."""

    url: str
    port: int
    log: Path
    http: httpx.Client

    def records(self) -> list[Record]:
        end = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        window = read_window(str(self.log), end - dt.timedelta(hours=3), end)
        found = list(window)
        assert (window.counts.torn, window.counts.damaged_objects) == (0, 0)
        return found

    def raw(self, *parts: bytes, patience_s: float = 10.0) -> bytes:
        """Send bytes as they are, and read until the server closes or has nothing more to say."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience_s) as connection:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := connection.recv(65536):
                    found += part
                    connection.settimeout(0.2)
            return found


Start = Callable[..., "contextlib.AbstractContextManager[Running]"]


@contextlib.contextmanager
def run_service(
    classifier: Classifier,
    log: Path,
    settings: Settings,
    followed: Registry | None = None,
    tell: Callable[[], None] = lambda: None,
) -> Iterator[Running]:
    with (
        bind("127.0.0.1", 0) as listener,
        LogWriter(str(log), interval_s=0.2, durability=settings.level, when_full=settings.spool_full) as writer,
        LogWriter(str(log), "feedback", interval_s=0.2, durability=settings.level, when_full=settings.spool_full) as feedback,
    ):
        server = make_server(create_app(settings, classifier, writer, feedback, followed, tell))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            port = listener.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=30) as http:
                yield Running(url, port, log, http)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def start(classifier: Classifier, tmp_path: Path) -> Start:
    """Start a service over `classifier`, or over another one, with other settings."""

    def start_service(
        other: Classifier | None = None,
        followed: Registry | None = None,
        tell: Callable[[], None] = lambda: None,
        **settings: object,
    ) -> "contextlib.AbstractContextManager[Running]":
        return run_service(other or classifier, tmp_path / "log", Settings(**settings), followed, tell)  # type: ignore[arg-type]

    return start_service


@pytest.fixture
def running(start: Start) -> Iterator[Running]:
    with start() as service:
        yield service


@pytest.fixture(scope="session")
def running_once(words_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for all tests that need nothing of its past."""
    opened = Classifier.open(open_bundle(str(words_bundle)))
    with run_service(opened, tmp_path_factory.mktemp("service") / "log", Settings()) as service:
        yield service


@pytest.fixture
def patience_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each question that was put to a batcher may wait there."""
    given: list[float] = []
    wait = Batcher.ask

    async def ask_noting(batcher: Any, asked: Any, deadline: float) -> Any:
        given.append(deadline - time.monotonic())
        return await wait(batcher, asked, deadline)

    monkeypatch.setattr(Batcher, "ask", ask_noting)
    return given
