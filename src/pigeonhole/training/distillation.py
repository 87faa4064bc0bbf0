"""A smaller encoder learns from a larger bundle's answers (Hinton et al. 2015).

The teacher is any bundle with the same labels, asked once through the server's own door; its logits lie in the run folder, and a
run that goes on reads them from there.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import say
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.score import CHUNK
from pigeonhole.training.trainer import Criterion

CACHE = "teacher.npz"


def open_teacher(url: str, labels: Sequence[str]) -> Bundle:
    """Before anything is fitted. Raises ConfigError for a teacher of other labels or of another task, BundleError."""
    bundle = open_bundle(url)
    if bundle.manifest.task != "single_label":
        raise ConfigError(f"trainer.teacher={url}: is a {bundle.manifest.task} bundle; give one with one label for each text")
    if set(bundle.manifest.labels) != set(labels):
        other = sorted(set(bundle.manifest.labels) ^ set(labels))
        raise ConfigError(f"trainer.teacher={url}: has other labels than the data: {', '.join(map(repr, other[:5]))}")
    return bundle


def teacher_logits(
    bundle: Bundle, texts: Sequence[str], labels: Sequence[str], folder: Path | None, threads: int
) -> NDArray[np.float32]:
    """(n, c), in the order of the texts and of `labels`; kept in `folder`, if there is one."""
    manifest = bundle.manifest
    path = folder / CACHE if folder else None
    asked = hashlib.sha256(msgspec.json.encode(list(texts))).hexdigest()
    if path and path.exists():
        with np.load(path, allow_pickle=False) as cached:
            if str(cached["version"]) == manifest.version and str(cached.get("texts")) == asked:
                return np.asarray(cached["logits"], np.float32)
    precision = "fp32" if "fp32" in manifest.models else manifest.served
    classifier = Classifier.open(bundle, precision, threads)
    say(f"teacher: {manifest.name} {manifest.version}, {precision}, answers {len(texts)} texts")
    order = [manifest.labels.index(label) for label in labels]
    starts = tqdm(range(0, len(texts), CHUNK), desc="teacher", unit="batch", leave=False)
    found = [answer.logits[order] for start in starts for answer in classifier.predict(texts[start : start + CHUNK])]
    logits = np.stack(found).astype(np.float32)
    if path is None:
        return logits
    aside = path.with_suffix(".tmp.npz")
    np.savez(aside, logits=logits, version=np.array(manifest.version), texts=np.array(asked))
    aside.replace(path)
    return logits


def with_teacher(label_ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1 + c): what `Distillation` reads, the label's id and then the teacher's logits."""
    return np.concatenate([label_ids[:, None].astype(np.float32), logits], axis=1)


class Distillation:
    """`share` of the teacher's softened answers, the rest of the labels themselves by `criterion`."""

    def __init__(self, criterion: Criterion, share: float, temperature: float) -> None:
        self._criterion, self._share, self._temperature = criterion, share, temperature

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (b, c), targets (b, 1 + c) -> the mean loss of the b texts.

        The square of the temperature keeps the gradients of both parts alike in size.
        """
        label_ids, teacher = targets[:, 0].long(), targets[:, 1:]
        soft = F.kl_div(
            F.log_softmax(logits / self._temperature, dim=1),
            F.log_softmax(teacher / self._temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self._share * self._temperature**2 * soft + (1 - self._share) * self._criterion(logits, label_ids)
