"""Feedback joined to the texts that it is about: what a version got right and wrong, as rows that can be learned from.

The latest word on a prediction counts. What answers the review queue is weighed: the queue shows above all what the version is
not sure of, and its plain share of right answers is far below that of the traffic. A text that the log does not keep (policies
hash and none) is counted and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.taxonomy import Taxonomy
from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.feedback import latest_words, said_at
from pigeonhole.drift.review import Judged, estimate, probability_asked
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.metrics import Interval
from pigeonhole.prediction_log import Feedback, read_window


@dataclass(frozen=True)
class Harvest:
    """`rows` has each text once, with the latest word on it; judged and right count predictions."""

    rows: list[Row]
    judged: int
    right: int
    without_text: int  # judged, but the log keeps no text to learn from
    unknown_labels: int  # judged with a label that the version does not have
    weighed: Sequence[Judged] = ()  # those judged, each with the probability that somebody was asked

    @property
    def accuracy(self) -> Interval:
        """Of all predictions; where nobody answered the review queue, the plain share and Wilson's interval."""
        found = estimate(self.weighed)
        return Interval(found["accuracy"] or 0.0, *found["interval"])


def harvest(
    log: str,
    start: datetime,
    end: datetime,
    model: str,
    version: str,
    labels: tuple[str, ...],
    taxonomy: Taxonomy | None = None,
    audit_share: float = AUDIT_SHARE,
) -> Harvest:
    """Of the predictions that `version` made between `start` and `end`. Raises StorageError.

    With a taxonomy the rows have its labels, and a word may already be one of those: it cannot be right or wrong for the version.
    """
    ahead = taxonomy.targets if taxonomy else set()
    words = latest_words(log, start, end)
    texts: dict[str, tuple[Feedback, Row]] = {}
    known = frozenset(labels)
    weighed: list[Judged] = []
    judged = right = without_text = unknown_labels = 0
    for record in read_window(log, start, end, read_compacted=compacted_lines):
        word = words.get(record.prediction_id)
        if word is None or (record.model, record.version) != (model, version):
            continue
        if not word.given <= known | ahead:
            unknown_labels += 1
            continue
        if word.given <= known:
            judged += 1
            right += record.given == word.given
            if (asked := probability_asked(record, word, audit_share)) is not None:
                weighed.append(Judged(record.given, word.given, asked))
        if record.text is None or record.text_policy == "hash":
            without_text += 1
        elif (learned := _learned(record.text, word.given, known, taxonomy)) is not None:
            key = normalise(record.text)
            if key not in texts or said_at(texts[key][0]) < said_at(word):
                texts[key] = word, Row(record.text, learned, 0)
    return Harvest([row for _, row in texts.values()], judged, right, without_text, unknown_labels, weighed)


def _learned(text: str, given: frozenset[str], known: frozenset[str], taxonomy: Taxonomy | None) -> str | None:
    """What is learned; None: the label is there no more, or nobody has said which part of a split one this is."""
    if taxonomy is None or not given <= known:
        return join_labels(given)
    (label,) = given
    return taxonomy.label_of(text, label)
