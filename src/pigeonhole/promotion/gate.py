"""The gate: the answers of a candidate and of production to the same rows -> PROMOTE, HOLD or REJECT, with reasons.

PROMOTE: every check passed. REJECT: a check failed for certain. HOLD: one did not pass, and the rows are too few to be certain. A
check passes only where a comparison says so in the affirmative: a figure that is not a number never opens the gate, and neither
does one that is there for production and missing for the candidate. Knows neither bundles nor registries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pigeonhole import metrics
from pigeonhole.bundle import Task
from pigeonhole.dataset.label_sets import ids_of, parts_of
from pigeonhole.dataset.read import some_of
from pigeonhole.metrics import (
    Floats,
    Ids,
    Interval,
    bootstrap_calibration_error,
    bootstrap_difference,
    bootstrap_share_difference,
    expected_calibration_error,
    median_interval,
    predict,
    wilson_interval,
)
from pigeonhole.options import setting

Decision = Literal["PROMOTE", "HOLD", "REJECT"]
Flags = NDArray[np.bool_]


@dataclass
class Limits:
    """What the gate asks for."""

    min_rows: int = setting(25, "fewer frozen rows than this hold a successor, whatever both versions say to them", ge=1)
    margin: float = setting(0.01, "macro-F1 that a candidate may lose at worst (95 % interval)", ge=0, le=1)
    recall_floor: float = setting(0.5, "recall of each label, where production does not fall below it too", ge=0, le=1)
    ece_ceiling: float = setting(0.1, "calibration error, where production's is not larger", ge=0, le=1)
    slice_margin: float = setting(0.05, "accuracy that a candidate may lose on any slice of the rows", ge=0, le=1)
    out_of_scope_margin: float = setting(0.05, "share of out-of-scope texts that a candidate may accept on top", ge=0, le=1)
    behaviour_floor: float = setting(
        0.8, "share of each behavioural test that has to pass, where production does too", ge=0, le=1
    )
    latency_ms: float = setting(100, "median time of one text, where production is not slower", gt=0)
    size_mb: float = setting(500, "megabytes of the served model", gt=0)


@dataclass(frozen=True)
class Answers:
    """What one bundle says to the frozen rows: probabilities (n, c) in the order of its labels; `rows` identifies the rows.

    `thresholds` (c,): from which probability on a label is given, where a text may have several; else the likeliest is.
    `refused` (m,): which out-of-scope texts it does not accept. `behaviour`: for each test, which of its texts passed, (k,).
    `latencies_ms`: of single texts, on one machine for both. None and {}: not measured.
    """

    version: str
    rows: str
    labels: tuple[str, ...]
    probabilities: Floats
    size_bytes: int
    thresholds: Floats | None = None
    refused: Flags | None = None
    behaviour: Mapping[str, Flags] = field(default_factory=dict)
    latencies_ms: Floats | None = None


@dataclass(frozen=True)
class Check:
    name: str
    outcome: Decision
    reason: str


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """Of those checks that the decision comes from: what is not certain is no reason for a REJECT."""
        return [check.reason for check in self.checks if check.outcome == self.decision]


def decide(
    true_labels: Sequence[str],
    candidate: Answers,
    production: Answers | None,
    limits: Limits,
    seed: int = 0,
    slices: Mapping[str, Flags] | None = None,
) -> Verdict:
    """The candidate against production, or, where there is none yet, against always giving the most frequent label.

    Where a text may have several labels, the true ones are joined as rows have them, and a row is right where all of them are.
    `slices` says for each name which of the rows it holds, (n,).
    """
    foreign = _foreign(true_labels, candidate, production)
    if foreign:
        return _judge([foreign])
    frame = _Frame(true_labels, candidate, production)
    found = frame.probabilities(candidate)
    if not np.isfinite(found).all():
        return _judge([Check("numbers", "REJECT", "the candidate gives probabilities that are not numbers")])
    before = frame.probabilities(production) if production else None
    given, given_before = frame.given(candidate), frame.given(production) if production else None
    return _judge(
        [
            *_check_rows(len(true_labels), production, limits.min_rows),
            _check_macro_f1(frame, given, given_before, limits.margin, seed),
            *_check_recalls(frame, given, given_before, limits.recall_floor),
            _check_calibration(frame, found, before, limits.ece_ceiling, seed),
            *_check_slices(frame, given, given_before, slices or {}, limits.slice_margin, seed),
            *_check_out_of_scope(candidate, production, limits.out_of_scope_margin, seed),
            *_check_behaviour(candidate, production, limits.behaviour_floor),
            *_check_latency(candidate, production, limits.latency_ms),
            _check_size(candidate, production, limits.size_mb),
        ]
    )


def _task(answers: Answers) -> Task:
    return "single_label" if answers.thresholds is None else "multi_label"


def _foreign(true_labels: Sequence[str], candidate: Answers, production: Answers | None) -> Check | None:
    """Answers that cannot be compared: to other rows, or from a model that has never seen a label of the rows."""
    task = _task(candidate)
    for answers in filter(None, (candidate, production)):
        if _task(answers) != task:
            said = f"version {answers.version} is {_task(answers)}, the candidate is {task}: they cannot be compared"
            return Check("labels", "HOLD", said)
        if answers.rows != candidate.rows or len(answers.probabilities) != len(true_labels):
            return Check("rows", "REJECT", "candidate and production answered different rows")
        unseen = sorted({label for answer in true_labels for label in parts_of(answer, task)} - set(answers.labels))
        if unseen:
            shown = some_of([repr(label) for label in unseen])
            return Check(
                "labels", "HOLD", f"version {answers.version} cannot be measured on rows with labels unseen by it: {shown}"
            )
    return None


class _Frame:
    """The labels of the rows and of both models as one list, so that their answers can be laid side by side."""

    def __init__(self, true_labels: Sequence[str], candidate: Answers, production: Answers | None) -> None:
        self.labels = sorted({*candidate.labels, *(production.labels if production else ())})
        self.places = {label: place for place, label in enumerate(self.labels)}
        self.true_ids: Ids = ids_of(true_labels, self.labels, _task(candidate))

    def probabilities(self, answers: Answers) -> Floats:
        """(n, all labels): the columns of a bundle at their places, 0 for labels that it does not have."""
        found = np.zeros((len(answers.probabilities), len(self.labels)))
        found[:, [self.places[label] for label in answers.labels]] = answers.probabilities
        return found

    def given(self, answers: Answers) -> Ids:
        """(n,) label ids; (n, all labels), 1 where a label is given, where a text may have several."""
        if answers.thresholds is None:
            return predict(self.probabilities(answers))
        given = np.zeros((len(answers.probabilities), len(self.labels)), np.int64)
        given[:, [self.places[label] for label in answers.labels]] = predict(answers.probabilities, answers.thresholds)
        return given

    def most_frequent(self) -> Ids:
        """(n,): what is always right most often; of several labels the one that most rows have."""
        if self.true_ids.ndim == 2:
            always = np.zeros_like(self.true_ids)
            always[:, self.true_ids.sum(axis=0).argmax()] = 1
            return always
        return np.full_like(self.true_ids, np.bincount(self.true_ids).argmax())

    def recalls(self, given: Ids) -> Iterator[tuple[str, int, int]]:
        """Label, rows in which it was found, and rows that have it, for each label that the rows have."""
        for label_id, label in enumerate(self.labels):
            several = self.true_ids.ndim == 2
            of_label, found = (ids[:, label_id].astype(bool) if several else ids == label_id for ids in (self.true_ids, given))
            if of_label.any():
                yield label, int(found[of_label].sum()), int(of_label.sum())


def _check_rows(n: int, production: Answers | None, least: int) -> list[Check]:
    """Two versions that answer a handful of rows alike have shown no difference, and nothing else either."""
    if production is None or n >= least:
        return []
    return [Check("rows", "HOLD", f"{n} rows say too little about a successor, at least {least} are needed")]


def _check_macro_f1(frame: _Frame, given: Ids, before: Ids | None, margin: float, seed: int) -> Check:
    """Non-inferiority to production; a first version has to be better than no model at all."""
    if before is None:
        opponent, least = "always giving the most frequent label", 0.0
        difference = bootstrap_difference(frame.true_ids, given, frame.most_frequent(), seed)
        passed = difference.low > least
    else:
        opponent, least = "production", -margin
        difference = bootstrap_difference(frame.true_ids, given, before, seed)
        passed = difference.low >= least
    said = f"macro-F1 {difference.estimate:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] against {opponent}"
    if passed:
        return Check("macro_f1", "PROMOTE", said)
    if difference.high < 0:
        return Check("macro_f1", "REJECT", f"{said}: worse for certain")
    return Check("macro_f1", "HOLD", f"{said}: not certain to be above {least:g} on these {len(given)} rows")


def _check_recalls(frame: _Frame, given: Ids, before: Ids | None, floor: float) -> list[Check]:
    """No label may die; one that is as poor in production already does not hold up its successor."""
    if before is None:
        return []
    failed = []
    for (label, hits, n), (_, hits_before, _) in zip(frame.recalls(given), frame.recalls(before), strict=True):
        if hits / n >= floor or hits >= hits_before:
            continue
        outcome: Decision = "REJECT" if wilson_interval(hits, n).high < floor else "HOLD"
        failed.append(
            Check("recall", outcome, f"recall of {label!r} is {hits} of {n}, production's {hits_before}; {floor:g} is the floor")
        )
    return failed or [Check("recall", "PROMOTE", f"no label fell below recall {floor:g}")]


def _check_calibration(frame: _Frame, found: Floats, before: Floats | None, ceiling: float, seed: int) -> Check:
    error = bootstrap_calibration_error(found, frame.true_ids, seed=seed)
    error_before = 0.0 if before is None else expected_calibration_error(before, frame.true_ids)
    allowed = max(ceiling, error_before)
    said = f"calibration error {error.estimate:.4f} [{error.low:.4f}, {error.high:.4f}]"
    if error.estimate <= allowed:
        return Check("calibration", "PROMOTE", f"{said}, at most {allowed:.4g} is allowed")
    return Check("calibration", "REJECT" if error.low > allowed else "HOLD", f"{said}: more than {allowed:.4g}")


def _check_slices(
    frame: _Frame, given: Ids, before: Ids | None, slices: Mapping[str, Flags], margin: float, seed: int
) -> list[Check]:
    """A gain on average may not be paid for by one kind of text."""
    if before is None:
        return []
    right, right_before = (metrics.right(frame.true_ids, ids) for ids in (given, before))
    checks = []
    for name, inside in slices.items():
        difference = bootstrap_share_difference(right[inside], right_before[inside], seed)
        said = f"accuracy {_signed(difference)} against production on the {int(inside.sum())} rows of {name}"
        checks.append(Check("slices", _reaches(difference, -margin), f"{said}; {margin:g} may be lost"))
    return _failed(checks) or [Check("slices", "PROMOTE", f"no slice of {len(slices)} lost more than {margin:g}")]


def _check_out_of_scope(candidate: Answers, production: Answers | None, margin: float, seed: int) -> list[Check]:
    if production is None or (candidate.refused is None and production.refused is None):
        return []
    if candidate.refused is None or production.refused is None or candidate.refused.shape != production.refused.shape:
        return [Check("out_of_scope", "HOLD", "out-of-scope texts were not put to both in the same way")]
    difference = bootstrap_share_difference(candidate.refused, production.refused, seed)
    refused, n = int(candidate.refused.sum()), len(candidate.refused)
    said = f"{refused} of {n} out-of-scope texts are not accepted, {_signed(difference)} against production"
    return [Check("out_of_scope", _reaches(difference, -margin), f"{said}; {margin:g} may be lost")]


def _check_behaviour(candidate: Answers, production: Answers | None, floor: float) -> list[Check]:
    """Each test by itself; where production fails it too, no worse than production."""
    before = production.behaviour if production else {}
    checks = [
        Check("behaviour", "HOLD", f"{name}: measured for production and not for the candidate")
        for name in before
        if name not in candidate.behaviour
    ]
    for name, passed in candidate.behaviour.items():
        share = wilson_interval(int(passed.sum()), len(passed))
        allowed = min(floor, float(before[name].mean())) if name in before else floor
        said = f"{name}: {int(passed.sum())} of {len(passed)} passed"
        checks.append(Check("behaviour", _reaches(share, allowed), f"{said}, {allowed:.3g} of them are needed"))
    return _failed(checks) or checks


def _check_latency(candidate: Answers, production: Answers | None, limit_ms: float) -> list[Check]:
    """Measured side by side, so that a busy machine slows both down."""
    if candidate.latencies_ms is None:
        missing = production is not None and production.latencies_ms is not None
        return [Check("latency", "HOLD", "measured for production and not for the candidate")] if missing else []
    found = median_interval(candidate.latencies_ms)
    before = None if production is None or production.latencies_ms is None else median_interval(production.latencies_ms)
    allowed = limit_ms if before is None else max(limit_ms, before.high)
    slower = Interval(-found.estimate, -found.high, -found.low)
    than = "" if before is None else f", production {before.estimate:.1f}"
    said = f"one text takes {found.estimate:.1f} ms [{found.low:.1f}, {found.high:.1f}]{than}"
    return [Check("latency", _reaches(slower, -allowed), f"{said}; {allowed:.4g} ms are allowed")]


def _check_size(candidate: Answers, production: Answers | None, size_mb: float) -> Check:
    fits = candidate.size_bytes <= size_mb * 1e6
    than = "" if production is None else f", production's {production.size_bytes / 1e6:.1f}"
    return Check(
        "size",
        "PROMOTE" if fits else "REJECT",
        f"the model has {candidate.size_bytes / 1e6:.1f} MB{than}; {size_mb:g} are allowed",
    )


def _reaches(found: Interval, allowed: float) -> Decision:
    """A figure that has to be at least `allowed`: rejected where even the upper end of its interval is below."""
    if found.estimate >= allowed:
        return "PROMOTE"
    return "REJECT" if found.high < allowed else "HOLD"


def _failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.outcome != "PROMOTE"]


def _signed(difference: Interval) -> str:
    return f"{difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _judge(checks: list[Check]) -> Verdict:
    outcomes = {check.outcome for check in checks}
    worst: Sequence[Decision] = ("REJECT", "HOLD", "PROMOTE")
    return Verdict(next(outcome for outcome in worst if outcome in outcomes), tuple(checks))
