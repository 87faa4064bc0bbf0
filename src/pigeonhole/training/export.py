"""From torch to ONNX: a bundle's graphs in fp32 and int8, and how far each of them is from the model that was trained.

BERT-family bodies become padding-free graphs (packed.py); any other one is traced as it is.
"""

import datetime
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pigeonhole import metrics, storage
from pigeonhole.bundle import TOKENIZER, WEIGHTS, Golden, Manifest, Precision, Task, Windowing
from pigeonhole.classifier import OUTPUTS, Classifier, Encoder, Prediction
from pigeonhole.decision import to_probabilities
from pigeonhole.errors import ParityError
from pigeonhole.evaluation.labelled import thresholds_of
from pigeonhole.metrics import Floats, Ids
from pigeonhole.training.model import TextClassifier, positions_of
from pigeonhole.training.packed import write_packed
from pigeonhole.training.pretrained import sha256_of
from pigeonhole.training.tfidf import TfidfModel
from pigeonhole.training.weights import read_weights

COMPANY_TEXTS = 256  # as many are asked alone, to see whether their answers are those that they got among others
COMPANY_TOLERANCE = 1e-5

SAMPLES = 32  # texts, beside the probes, that tell int8 what is usual: more widen its ranges, and its steps with them
INT8_BLOCK = 64  # 32: 99.8 % and 1.6 times the speed of fp32, 128: 99.3 % and 1.8 times
INT8_ACTIVATIONS = 4  # the operator's accuracy_level for int8 activations

# What golden answers are sealed for: short, long, shouted, foreign, numeric, and a text that looks like control tokens.
PROBES = (
    "Where is my order?",
    "I was charged twice for the same thing and nobody answers my mails, please have a look.",
    "PLEASE STOP IT NOW!!!",
    "¿Puede ayudarme alguien? Ich verstehe die Rechnung nicht, 谢谢.",
    "4421 0093 / 12.50 EUR / 2026-03-01",
    "[CLS] ignore the rest [SEP] [PAD] [MASK]",
    "ok",
    "and then, as I said before, it happened again on the way home, " * 60,
)


@dataclass(frozen=True)
class Parity:
    """How far the exported models are from the trained one over `rows` texts; flips are texts with another label.

    A company difference is the largest one between the logits of a text alone and among others.
    """

    rows: int
    fp32_max_logit_difference: float
    fp32_label_flips: int
    fp32_company_difference: float
    int8_max_logit_difference: float | None
    int8_label_flips: int | None
    int8_agreement_with_fp32: float | None
    int8_company_difference: float | None


def draft(
    folder: Path,
    model: TextClassifier | TfidfModel,
    tokenizer: str,
    *,
    name: str,
    labels: Sequence[str],
    task: Task,
    max_length: int,
    windowing: Windowing,
    threshold: float,
    served: Precision,
    int8: bool,
    usual: Sequence[Sequence[int]] = (),
) -> Manifest:
    """Write models and tokenizer into a new folder, and return the manifest as far as it is known; nothing is sealed yet.

    `usual`: token ids of texts as they will come, which tell int8 what range numbers keep to, and which words are common. The
    rules of the manifest are those of a model that nothing is known of: no calibration, `threshold` for every label.
    """
    models: dict[Precision, str] = {"fp32": "model.onnx"}
    shutil.rmtree(folder, ignore_errors=True)  # what a run left that was killed while it exported
    folder.mkdir()
    probes = [encoding.input_ids for encoding in Encoder(Tokenizer.from_str(tokenizer), max_length).encode(PROBES)]
    asked = [*probes, *usual]  # the probes at each start
    export_fp32(model, folder / models["fp32"], asked)
    if int8 and isinstance(model, TextClassifier):
        models["int8"] = "model.int8.onnx"
        samples = [*probes, *usual[:: max(1, len(usual) // SAMPLES)][:SAMPLES]]
        export_int8(model, folder / models["fp32"], folder / models["int8"], samples, asked)
    storage.write(str(folder / TOKENIZER), tokenizer.encode())
    now = datetime.datetime.now(datetime.UTC)
    return Manifest(
        schema_version=1,
        name=name,
        version=f"{now:%Y%m%d-%H%M%S}-{sha256_of(_files_of(folder, models['fp32'])[-1])[:8]}",
        created_at=now.isoformat(timespec="seconds"),
        task=task,
        labels=tuple(labels),
        max_length=max_length,
        windowing=windowing,
        temperature=1.0,
        thresholds=dict.fromkeys(labels, 0.5 if task == "multi_label" else threshold),
        threshold_target=None,
        accept_score=threshold if task == "multi_label" else None,
        models=models,
        served=served,
        parity={},
        metrics={},
        provenance={},
        files={},
        int8_sums_fit="int8" in models,
    )


def leave_int8_out(manifest: Manifest, folder: Path) -> Manifest:
    """Whoever has the model open lets go of it first: its weights are mapped, and Windows keeps such a file."""
    for file in _files_of(folder, manifest.models["int8"]):
        file.unlink()
    return msgspec.structs.replace(manifest, models={"fp32": manifest.models["fp32"]}, served="fp32", int8_sums_fit=False)


def _files_of(folder: Path, model: str) -> list[Path]:
    """A model's graph, and its weights where they are beside it."""
    return [path for name in (model, model + WEIGHTS) if (path := folder / name).exists()]


def export_fp32(model: TextClassifier | TfidfModel, path: Path, usual: Sequence[Sequence[int]] = ()) -> None:
    """`usual`: token ids of texts as they will come."""
    if isinstance(model, TfidfModel):
        model.write(path)
        return
    weights = read_weights(model)
    if weights is None:
        trace(model, path)
    else:
        write_packed(weights, path, "fp32", [], usual)


def export_int8(
    model: TextClassifier, fp32: Path, path: Path, samples: Sequence[Sequence[int]], usual: Sequence[Sequence[int]] = ()
) -> None:
    """`fp32`: the exported file; token ids: `samples` of some texts, whatever they say, `usual` of texts as they will come."""
    weights = read_weights(model)
    if weights is None:
        _quantize(fp32, path)
    else:
        write_packed(weights, path, "int8", samples, usual)


def trace(model: TextClassifier, path: Path) -> None:
    """The graph of any body, for texts of equal length: any number of texts (b), any number of tokens (t)."""
    model.eval().cpu()
    model.body.set_attn_implementation("eager")
    # Two tensors: given one twice, the exporter wires both inputs to the first.
    example = {"input_ids": torch.ones((2, 8), dtype=torch.int64), "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}
    longest = positions_of(model.body.config)
    shape = {0: torch.export.Dim("b", min=1, max=65_536), 1: torch.export.Dim("t", min=2, max=longest)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each torchvision operator that is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated calls
        torch.onnx.export(
            model,
            tuple(example.values()),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(example),
            output_names=list(OUTPUTS),
            dynamic_shapes=dict.fromkeys(example, shape),
        )
    graph = onnx.load(path)
    graph.graph.ClearField("value_info")  # shapes that the exporter noted make the quantizer fail
    onnx.save(graph, path)


def _quantize(fp32: Path, int8: Path) -> None:
    """Weights to int8 in blocks of 64 inputs, activations to int8 by token and block when they are computed.

    ONNX Runtime's usual dynamic int8 has one scale for all tokens of a batch: answers depend on their company.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Importing it sets up logging for the whole program, and it tells of every node: undone right after.
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    matmul_nbits_quantizer.logger.setLevel(logging.ERROR)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(fp32), bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(int8))


def golden_answers(classifiers: Sequence[Classifier]) -> list[Golden]:
    """The probes with the logits that each precision gives here."""
    answers: list[dict[Precision, list[float]]] = [{} for _ in PROBES]
    for classifier in classifiers:
        for answer, prediction in zip(answers, classifier.predict(PROBES), strict=True):
            answer[classifier.precision] = [float(logit) for logit in prediction.logits]
    return [Golden(text, logits) for text, logits in zip(PROBES, answers, strict=True)]


def compare(
    torch_logits: NDArray[np.float32],
    classifiers: Mapping[Precision, Classifier],
    predictions: Mapping[Precision, Sequence[Prediction]],
    texts: Sequence[str],
) -> Parity:
    """`torch_logits` (n, c) and the predictions are those of the texts."""
    logits = {precision: np.stack([found.logits for found in answers]) for precision, answers in predictions.items()}
    company = {
        precision: _company_difference(classifier, texts, logits[precision]) for precision, classifier in classifiers.items()
    }
    manifest = next(iter(classifiers.values())).manifest
    return compare_logits(torch_logits, logits, company, lambda found: given_by(manifest, found))


def _company_difference(classifier: Classifier, texts: Sequence[str], logits: NDArray[np.float32]) -> float:
    alone = [classifier.predict([text])[0].logits for text in texts[:COMPANY_TEXTS]]
    return max(float(np.abs(one - row).max()) for one, row in zip(alone, logits, strict=False))


def compare_logits(
    torch_logits: NDArray[np.float32],
    logits: Mapping[Precision, NDArray[np.float32]],
    company: Mapping[Precision, float],
    given: Callable[[Floats], Ids] = metrics.predict,
) -> Parity:
    """Logits (n, c) of the same texts through the trained model and through the bundle; `company`: the company differences.

    `given`: logits -> what a text is given, a label id, or a row of flags.
    """
    fp32, int8 = logits["fp32"], logits.get("int8")
    labels, fp32_labels = given(torch_logits.astype(np.float64)), given(fp32.astype(np.float64))
    int8_labels = None if int8 is None else given(int8.astype(np.float64))
    return Parity(
        rows=len(labels),
        fp32_max_logit_difference=float(np.abs(torch_logits - fp32).max()),
        fp32_label_flips=int((~metrics.right(labels, fp32_labels)).sum()),
        fp32_company_difference=company["fp32"],
        int8_max_logit_difference=None if int8 is None else float(np.abs(torch_logits - int8).max()),
        int8_label_flips=None if int8_labels is None else int((~metrics.right(labels, int8_labels)).sum()),
        int8_agreement_with_fp32=None if int8_labels is None else metrics.accuracy(fp32_labels, int8_labels),
        int8_company_difference=company.get("int8"),
    )


def given_by(manifest: Manifest, logits: Floats) -> Ids:
    """What a bundle gives to texts with these logits (n, c): (n,) label ids, or (n, c) flags of a multi-label one."""
    return metrics.predict(to_probabilities(manifest, logits), thresholds_of(manifest))


def require_parity(parity: Parity, tolerance: float, key: str = "export.tolerance") -> None:
    """Raises ParityError with the numbers and the key of the tolerance: fp32 is the trained model, or nothing is served."""
    if not parity.fp32_max_logit_difference <= tolerance:  # nan is none
        raise ParityError(
            f"the exported model's logits are up to {parity.fp32_max_logit_difference:.2g} off the trained model's over "
            f"{parity.rows} texts, at most {tolerance:g} is allowed ({key})"
        )
    if parity.fp32_company_difference > COMPANY_TOLERANCE:
        raise ParityError(
            f"the exported model's logits differ by up to {parity.fp32_company_difference:.2g} between a text alone and among "
            f"others, at most {COMPANY_TOLERANCE:g} is allowed"
        )


def why_not_int8(parity: Parity, min_agreement: float, key: str = "export.min_agreement") -> str | None:
    """What speaks against serving int8; None where nothing does."""
    agreement, company = parity.int8_agreement_with_fp32, parity.int8_company_difference
    if agreement is not None and agreement < min_agreement:
        return f"int8 and fp32 agree on {agreement:.4f} of {parity.rows} texts, {key} is {min_agreement:g}"
    if company is not None and company > COMPANY_TOLERANCE:
        return f"int8 logits differ by up to {company:.2g} between a text alone and among others"
    return None
