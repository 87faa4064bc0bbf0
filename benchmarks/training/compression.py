"""What to serve: `uv run python -m benchmarks.training.compression bundle=URL twin=FOLDER data=FILE` prints one JSON object.

One trained model as ONNX in fp32 and int8, with 30 % and 50 % of the smallest weights of every linear layer pruned (and int8 of
that), and in torch as it is and compiled: size of the model as it is and gzipped, latency of a text alone, texts a second in
batches of 32, accuracy on `data`. `bundle` and `twin` come from one run (`bundle/` and `model/` of the run folder).
"""

import gzip
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pigeonhole.bundle import WEIGHTS, Bundle, Precision, open_bundle
from pigeonhole.classifier import Classifier, Encoder
from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting

BATCH = 32
Answer = Callable[[Sequence[str]], Sequence[int]]  # texts -> label ids


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    twin: str | None = setting(None, "the save_pretrained folder of the same run")
    data: str = setting("package://pigeonhole/dataset/tickets/tickets.csv", "labelled rows, of which the test split is used")
    text: str = setting("text", "column of the texts")
    label: str = setting("label", "column of the labels")
    seconds: float = setting(3.0, "of each measurement of speed", gt=0, le=600)
    compile: bool = setting(True, "torch.compile too (a C++ compiler is needed)")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if not options.bundle or not options.twin:
        raise ConfigError("bundle= and twin= are needed: bundle/ and model/ of one run folder")
    weights = Path(options.twin) / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"twin={options.twin}: no model.safetensors there; model/ of the run folder has one")
    import torch

    torch.set_num_threads(1)
    bundle = open_bundle(options.bundle)
    dataset = load_dataset(DataConfig(path=options.data, text=options.text, label=options.label))
    if list(dataset.labels) != list(bundle.manifest.labels):
        raise ConfigError(f"data={options.data}: its labels are not those of the bundle")
    texts = [row.text for row in dataset.split.test]
    truth = np.array([dataset.labels.index(row.label) for row in dataset.split.test])
    rows: dict[str, Any] = {}

    def measure(name: str, answer: Answer, file: Path | None) -> None:
        rows[name] = {**_size(file), **_speed(answer, texts, options.seconds), "accuracy": _accuracy(answer, texts, truth)}
        say(f"{name}: {rows[name]}")

    for precision in sorted(bundle.manifest.models):
        measure(f"onnx_{precision}", _onnx(Classifier.open(bundle, precision)), bundle.path(bundle.manifest.models[precision]))
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.3, 0.5):
            for precision, (classifier, file) in _pruned(bundle, options.twin, share, Path(folder)).items():
                measure(f"pruned_{share:.0%}_{precision}".replace("%", ""), _onnx(classifier), file)
    measure("torch", _torch(bundle, options.twin, compiled=False), weights)
    if options.compile:
        measure("torch_compiled", _torch(bundle, options.twin, compiled=True), weights)
    return {"options": msgspec.to_builtins(options), "rows": len(texts), "models": rows}


def _size(file: Path | None) -> dict[str, float]:
    if file is None:
        return {}
    beside = file.with_name(file.name + WEIGHTS)
    content = file.read_bytes() + (beside.read_bytes() if beside.exists() else b"")
    return {"mb": round(len(content) / 1e6, 1), "gzip_mb": round(len(gzip.compress(content, 6)) / 1e6, 1)}


def _speed(answer: Answer, texts: Sequence[str], seconds: float) -> dict[str, float]:
    texts = [*itertools.islice(itertools.cycle(texts), max(BATCH, len(texts)))]
    for start in (0, len(texts) - BATCH):
        answer(texts[start : start + BATCH])  # warm, compiled
        answer(texts[start : start + 1])
    alone: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        answer([texts[len(alone) % len(texts)]])
        alone.append(time.perf_counter() - began)
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        at = done % (len(texts) - BATCH + 1)
        done += len(answer(texts[at : at + BATCH]))
    rate = done / (time.process_time() - began)
    return {"alone_p50_ms": round(statistics.median(alone) * 1e3, 2), "texts_a_cpu_s": round(rate, 1)}


def _accuracy(answer: Answer, texts: Sequence[str], truth: "np.ndarray[Any, np.dtype[np.int64]]") -> float:
    predicted = [label_id for start in range(0, len(texts), BATCH) for label_id in answer(texts[start : start + BATCH])]
    return round(float((np.array(predicted) == truth).mean()), 4)


def _onnx(classifier: Classifier) -> Answer:
    return lambda texts: [found.label_id for found in classifier.predict(texts)]


def _pruned(bundle: Bundle, twin: str, share: float, folder: Path) -> dict[Precision, tuple[Classifier, Path]]:
    """Each linear layer of the body without the smallest `share` of its weights, exported as training does it."""
    import torch
    from tokenizers import Tokenizer

    from pigeonhole.training import export

    model = _load(twin)
    with torch.no_grad():
        for module in model.body.modules():
            if isinstance(module, torch.nn.Linear):
                size = module.weight.abs()
                module.weight *= size > size.flatten().kthvalue(int(share * size.numel())).values
    own = folder / f"{share}"
    own.mkdir()
    (own / "tokenizer.json").write_bytes(bundle.path("tokenizer.json").read_bytes())
    models: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
    export.export_fp32(model, own / models["fp32"])
    encoder = Encoder(Tokenizer.from_file(str(own / "tokenizer.json")), bundle.manifest.max_length)
    samples = [encoding.input_ids for encoding in encoder.encode(export.PROBES)]
    export.export_int8(model, own / models["fp32"], own / models["int8"], samples)
    pruned = Bundle(str(own), own, msgspec.structs.replace(bundle.manifest, models=models))
    return {precision: (Classifier.load(pruned, precision), own / file) for precision, file in models.items()}


def _torch(bundle: Bundle, twin: str, *, compiled: bool) -> Answer:
    import torch
    from tokenizers import Tokenizer

    from pigeonhole.training.batches import TokenizedRows
    from pigeonhole.training.padding_free import PaddingFree

    model = PaddingFree(_load(twin).eval())
    forward = torch.compile(model, dynamic=True) if compiled else model
    tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
    encoder = Encoder(tokenizer, bundle.manifest.max_length)

    @torch.inference_mode()
    def answer(texts: Sequence[str]) -> Sequence[int]:
        rows = TokenizedRows([found.input_ids for found in encoder.encode(texts)], np.zeros(len(texts), np.int64))
        found: list[int] = forward(rows.pack(np.arange(len(texts))))[0].argmax(dim=1).tolist()
        return found

    return answer


def _load(twin: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    from pigeonhole.training.model import take_apart

    return take_apart(AutoModelForSequenceClassification.from_pretrained(twin, dtype=torch.float32)).eval()


main = command(run)

if __name__ == "__main__":
    main()
