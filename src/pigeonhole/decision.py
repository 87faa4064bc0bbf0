"""What a model's numbers mean: logits -> calibrated probabilities, and the decision: accept, review or out of scope.

The rules and their limits stand in the bundle; training/decisions.py fits them. A text is judged by itself, in an order of
additions that its company does not change.
"""

from itertools import compress
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pigeonhole.bundle import NEIGHBOURS, Bundle, Manifest, OutOfScopeRule
from pigeonhole.errors import BundleError

Decision = Literal["accept", "review", "out_of_scope"]


class Judge:
    """A bundle's rules. `neighbours`: (v, d), rows of length 1, where the bundle has them."""

    def __init__(self, manifest: Manifest, neighbours: NDArray[np.float32] | None = None) -> None:
        self._manifest = manifest
        self._neighbours = neighbours
        self._thresholds = np.array([manifest.thresholds[label] for label in manifest.labels])

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return to_probabilities(self._manifest, logits)

    def given(self, label_id: int, probabilities: NDArray[np.float64]) -> tuple[tuple[str, ...], float]:
        """The labels that a text is given, and how probable it is that they are right, all of them and no other.

        One label is `label_id`, the likeliest. Several are those that reach their thresholds, as if they came independently of
        each other.
        """
        if self._manifest.task == "single_label":
            return (self._manifest.labels[label_id],), float(probabilities[label_id])
        given = probabilities >= self._thresholds  # (c,)
        labels = tuple(compress(self._manifest.labels, given))
        return labels, float(np.where(given, probabilities, 1 - probabilities).prod())

    def decide(self, label_id: int, score: float, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> Decision:
        rule = self._manifest.out_of_scope
        if rule is not None and strangeness(rule.rule, logits, embedding, self._neighbours) > rule.limit:
            return "out_of_scope"
        least = self._manifest.accept_score
        return "accept" if score >= (self._thresholds[label_id] if least is None else least) else "review"


def to_probabilities(manifest: Manifest, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(…, c) -> (…, c): a softmax over the labels, or a sigmoid of each in a multi-label bundle."""
    if manifest.task == "multi_label":
        return sigmoid(logits.astype(np.float64) / manifest.temperature)
    vector = manifest.vector_scaling
    if vector is None:
        return softmax(logits.astype(np.float64) / manifest.temperature)
    return softmax(logits.astype(np.float64) * np.array(vector.scale) + np.array(vector.bias))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((1 + np.tanh(logits / 2)) / 2)  # without the overflow of exp


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def strangeness(
    rule: OutOfScopeRule, logits: NDArray[np.float32], embedding: NDArray[np.float32], neighbours: NDArray[np.float32] | None
) -> float:
    """How far a text is from all that the model knows: of `neighbour` a cosine distance, of `max_logit` a logit, negated."""
    if rule == "max_logit" or neighbours is None:
        return -float(logits.max())
    # Not a BLAS product: that would start threads of its own for 0.05 ms of work.
    similarities = np.einsum("vd,d->v", neighbours, embedding)
    return 1 - float(similarities.max()) / max(float(np.sqrt(np.einsum("d,d->", embedding, embedding))), 1e-12)


def read_neighbours(bundle: Bundle, width: object) -> NDArray[np.float32] | None:
    """None where the bundle's rule needs none. `width`: of the model's embeddings, an int where its graph says so.

    Raises BundleError for what is no matrix of numbers, or one of another width.
    """
    rule = bundle.manifest.out_of_scope
    if rule is None or rule.rule != "neighbour":
        return None
    try:
        found = np.load(bundle.path(NEIGHBOURS), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BundleError(f"{bundle.url}: {NEIGHBOURS} cannot be read: {error}") from error
    fits = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 2 and found.size > 0
    if not fits or not np.isfinite(found).all():
        raise BundleError(f"{bundle.url}: {NEIGHBOURS} is no matrix of finite float32 numbers")
    if isinstance(width, int) and found.shape[1] != width:
        raise BundleError(f"{bundle.url}: {NEIGHBOURS} has {found.shape[1]} numbers a row, the model's embeddings have {width}")
    return np.ascontiguousarray(found)
