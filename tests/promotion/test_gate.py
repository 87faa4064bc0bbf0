"""The gate's conformance suite: challengers known to be better, worse, equal or crooked, and what it must say of each."""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pigeonhole.metrics import (
    Floats,
    Ids,
    Interval,
    bootstrap_calibration_error,
    bootstrap_share_difference,
    median_interval,
    wilson_interval,
)
from pigeonhole.promotion import gate
from pigeonhole.promotion.gate import Answers, Limits, decide

LABELS = ("a", "b", "c", "d", "e")
TRUE = LABELS * 100
ROWS = range(len(TRUE))
DEAD = [row for row in ROWS if TRUE[row] == "e"]


def answers(
    wrong: Iterable[int] = (), confidence: float | None = None, labels: tuple[str, ...] = LABELS, true: tuple[str, ...] = TRUE
) -> Answers:
    """Right on all rows but the wrong ones, where the next label is given; as sure as it is right, or as `confidence`."""
    n, c = len(true), len(labels)
    places = np.array([labels.index(label) for label in true])
    mistaken = np.zeros(n, bool)
    mistaken[list(wrong)] = True
    given = np.where(mistaken, (places + 1) % c, places)
    sure = 1 - mistaken.mean() if confidence is None else confidence
    probabilities = np.full((n, c), (1 - sure) / (c - 1))
    probabilities[np.arange(n), given] = sure
    return Answers("v1", "the frozen rows", labels, probabilities, size_bytes=90_000_000)


def share(parts: int, of: Iterable[int] = ROWS, start: int = 0) -> list[int]:
    """Every so-many-th row, spread evenly over the labels."""
    return list(of)[start::parts]


NAN = replace(answers(), probabilities=np.where(np.eye(1, 5), np.nan, answers().probabilities))
RIGHT_BUT_RARE = (*TRUE, "f", "f", "f")  # a sixth label with three rows, the last ones
SIX = (*LABELS, "f")
GOOD, FAIR, POOR = answers(share(23)), answers(share(11)), answers(share(3))
ALWAYS_A = answers([row for row in ROWS if TRUE[row] != "a"], 0.2)
ALWAYS_A = replace(ALWAYS_A, probabilities=np.tile([0.24, 0.19, 0.19, 0.19, 0.19], (500, 1)))
UNSURE = answers(share(11), 0.8)
UNSURE_LOW = bootstrap_calibration_error(UNSURE.probabilities, np.array([LABELS.index(label) for label in TRUE])).low


def held(rows: Iterable[int]) -> Any:
    inside = np.zeros(len(TRUE), bool)
    inside[list(rows)] = True
    return inside


def flags(passed: int, of: int = 100) -> Any:
    return np.arange(of) < passed


def refusing(given: Answers, refused: int, of: int = 100) -> Answers:
    return replace(given, refused=flags(refused, of))


def behaving(given: Answers, **passed: int) -> Answers:
    return replace(given, behaviour={name: flags(count) for name, count in passed.items()})


def taking(given: Answers, milliseconds: float, spread: float = 0) -> Answers:
    return replace(given, latencies_ms=milliseconds + spread * np.linspace(-1, 1, 101))


HUNDRED = {"the first hundred": held(range(100))}
FIVE_LOST = answers([1, 2, 3, 4, 5]), answers(range(100, 400, 2))
FIVE_LOST_HIGH = bootstrap_share_difference(np.arange(100) >= 5, np.ones(100, bool)).high
AT_THE_END_OF_70 = Limits(behaviour_floor=wilson_interval(70, 100).high)
JUST_QUICK_ENOUGH = Limits(latency_ms=median_interval(taking(GOOD, 21, 5).latencies_ms).low)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    name: str
    decision: str
    candidate: Answers
    production: Answers | None
    because: str = ""  # the checks that say no
    limits: Limits = field(default_factory=Limits)
    true: tuple[str, ...] = TRUE
    slices: dict[str, Any] = field(default_factory=dict)


SETS = ("a|b", "c", "", "b", "a|c") * 100
OF_SETS = ("a", "b", "c")


def several(wrong: Iterable[int] = (), dead: str = "") -> Answers:
    """Each label is given where its row has it; the wrong rows are given all that they have not, and `dead` is never given."""
    has = np.array([[label in answer.split("|") for label in OF_SETS] for answer in SETS])
    given = has.copy()
    given[list(wrong)] ^= True
    given[:, [label == dead for label in OF_SETS]] = False
    sure = (given == has).mean()
    probabilities = np.where(given, sure, 1 - sure)
    return Answers("v1", "the frozen rows", OF_SETS, probabilities, 90_000_000, thresholds=np.full(3, 0.5))


SEVERAL_GOOD, SEVERAL_POOR = several(share(23)), several(share(3))
CASES = [
    Case("several labels, better", "PROMOTE", SEVERAL_GOOD, SEVERAL_POOR, true=SETS),
    Case("several labels, worse", "REJECT", SEVERAL_POOR, SEVERAL_GOOD, "macro_f1", true=SETS),
    Case("several labels, the first version", "PROMOTE", SEVERAL_GOOD, None, true=SETS),
    Case("several labels, one of them dead", "REJECT", several(dead="a"), SEVERAL_POOR, "recall", true=SETS),
    Case("several labels against one", "HOLD", GOOD, replace(GOOD, thresholds=np.full(5, 0.5)), "labels"),
    Case("clearly better", "PROMOTE", GOOD, POOR),
    Case("clearly worse (the same two, swapped)", "REJECT", POOR, GOOD, "macro_f1"),
    Case("equal", "PROMOTE", FAIR, FAIR),
    Case("equal, on as many rows as are needed", "PROMOTE", answers(true=TRUE[:25]), answers(true=TRUE[:25]), true=TRUE[:25]),
    Case("equal, on one row less", "HOLD", answers(true=TRUE[:24]), answers(true=TRUE[:24]), "rows", true=TRUE[:24]),
    Case("the first version, on few rows", "PROMOTE", answers(true=TRUE[:24]), None, true=TRUE[:24]),
    Case(
        "worse for certain, on few rows",
        "REJECT",
        answers(range(20), true=TRUE[:20]),
        answers(true=TRUE[:20]),
        "rows macro_f1 recall",
        true=TRUE[:20],
    ),
    Case("equal, with no margin", "PROMOTE", FAIR, FAIR, limits=Limits(margin=0)),
    Case("a little worse, on too few rows to tell", "HOLD", answers([*share(23), 1, 7]), GOOD, "macro_f1"),
    Case(
        "worse for certain, but within the margin",
        "PROMOTE",
        answers(share(23) + share(40, start=1)),
        GOOD,
        limits=Limits(margin=0.1),
    ),
    Case(
        "worse for certain, with no margin", "REJECT", answers(share(23) + share(40, start=1)), GOOD, "macro_f1", Limits(margin=0)
    ),
    Case("better on average, with one label dead", "REJECT", answers(DEAD, 0.8), POOR, "recall"),
    Case("a label that is dead in production too", "PROMOTE", answers(DEAD, 0.8), answers({*DEAD, *share(5, start=1)}, 0.6)),
    Case("a label as dead as in production, no more", "PROMOTE", answers(DEAD[:60], 0.88), answers(DEAD[:60], 0.88)),
    Case("a label right on the floor", "PROMOTE", answers(DEAD[:50], 0.9), answers(share(3))),
    Case("a label a little below the floor", "HOLD", answers(DEAD[:51], 0.9), answers(share(3)), "recall"),
    Case(
        "a label dead on three rows",
        "HOLD",
        answers([500, 501, 502], 0.99, SIX, RIGHT_BUT_RARE),
        answers(share(3), None, SIX, RIGHT_BUT_RARE),
        "recall",
        true=RIGHT_BUT_RARE,
    ),
    Case(
        "a label that may be right on the floor",
        "HOLD",
        answers([500, 501, 502], 0.99, SIX, RIGHT_BUT_RARE),
        answers(share(3), None, SIX, RIGHT_BUT_RARE),
        "recall",
        Limits(recall_floor=wilson_interval(0, 3).high),
        RIGHT_BUT_RARE,
    ),
    Case("better, but far less sure than right", "REJECT", answers(share(23), 0.5), POOR, "calibration"),
    Case("better, but far surer than right", "REJECT", answers(share(4), 0.999), POOR, "calibration"),
    Case("calibration a little above the ceiling", "HOLD", UNSURE, FAIR, "calibration"),
    Case("calibration that may be right on the ceiling", "HOLD", UNSURE, FAIR, "calibration", Limits(ece_ceiling=UNSURE_LOW)),
    Case("calibration right on the ceiling", "PROMOTE", answers(share(4), 0.75 + 0.125), POOR, limits=Limits(ece_ceiling=0.125)),
    Case("badly calibrated, but production was worse", "PROMOTE", answers(share(23), 0.6), answers(share(23), 0.5)),
    Case(
        "badly calibrated, and production a little less",
        "REJECT",
        answers(share(23), 0.5),
        answers(share(23), 0.6),
        "calibration",
    ),
    Case("as large as the budget", "PROMOTE", GOOD, POOR, limits=Limits(size_mb=90)),
    Case("larger than the budget", "REJECT", GOOD, POOR, "size", Limits(size_mb=89)),
    Case("probabilities that are not numbers", "REJECT", NAN, POOR, "numbers"),
    Case("answers to other rows", "REJECT", replace(GOOD, rows="other rows"), POOR, "rows"),
    Case("fewer answers than rows", "REJECT", replace(GOOD, probabilities=GOOD.probabilities[:-1]), POOR, "rows"),
    Case("production has never seen a label", "HOLD", GOOD, replace(POOR, labels=("a", "b", "c", "d", "z")), "labels"),
    Case("the candidate has never seen a label", "HOLD", replace(GOOD, labels=("a", "b", "c", "d", "z")), POOR, "labels"),
    Case("the same labels in another order", "PROMOTE", answers(share(23), labels=("e", "c", "a", "d", "b")), GOOD),
    Case(
        "another order of the labels hides no mistake",
        "REJECT",
        replace(GOOD, labels=("e", "c", "a", "d", "b")),
        GOOD,
        "macro_f1 recall calibration",
    ),
    Case("one label more than production", "PROMOTE", answers(share(23), labels=SIX), GOOD),
    Case("better on average, worse on a slice", "REJECT", GOOD, POOR, "slices", slices={"short": held(share(23))}),
    Case("better on every slice", "PROMOTE", GOOD, POOR, slices={"short": held(ROWS[:250]), "long": held(ROWS[250:])}),
    Case("a slice loses what may be lost", "PROMOTE", *FIVE_LOST, limits=Limits(slice_margin=0.05), slices=HUNDRED),
    Case("a slice loses a little more than may be lost", "HOLD", *FIVE_LOST, "slices", Limits(slice_margin=0.04), slices=HUNDRED),
    Case(
        "a slice that may have lost only what may be lost",
        "HOLD",
        *FIVE_LOST,
        "slices",
        Limits(slice_margin=-FIVE_LOST_HIGH),
        slices=HUNDRED,
    ),
    Case("as many out-of-scope texts are accepted", "PROMOTE", refusing(FAIR, 90), refusing(FAIR, 90)),
    Case(
        "out-of-scope texts: what may be lost",
        "PROMOTE",
        refusing(FAIR, 85),
        refusing(FAIR, 90),
        limits=Limits(out_of_scope_margin=0.05),
    ),
    Case(
        "out-of-scope texts: a little more than may be lost",
        "HOLD",
        refusing(FAIR, 85),
        refusing(FAIR, 90),
        "out_of_scope",
        Limits(out_of_scope_margin=0.04),
    ),
    Case("out-of-scope texts are all accepted", "REJECT", refusing(GOOD, 0), refusing(POOR, 90), "out_of_scope"),
    Case("out-of-scope texts were not put to the candidate", "HOLD", GOOD, refusing(POOR, 90), "out_of_scope"),
    Case("out-of-scope texts were not put to production", "HOLD", refusing(GOOD, 90), POOR, "out_of_scope"),
    Case(
        "other out-of-scope texts were put to production", "HOLD", refusing(GOOD, 90), refusing(POOR, 90, of=99), "out_of_scope"
    ),
    Case("behaves well", "PROMOTE", behaving(GOOD, a=95, b=99), behaving(POOR, a=96, b=90)),
    Case("behaves as well as is asked for", "PROMOTE", behaving(GOOD, a=80), behaving(POOR, a=96)),
    Case("behaves a little worse than is asked for", "HOLD", behaving(GOOD, a=79), behaving(POOR, a=96), "behaviour"),
    Case("fails one behavioural test of two", "REJECT", behaving(GOOD, a=95, b=20), behaving(POOR, a=96, b=96), "behaviour"),
    Case("fails a behavioural test as production does", "PROMOTE", behaving(GOOD, a=20), behaving(POOR, a=20)),
    Case("fails it more than production does", "REJECT", behaving(GOOD, a=20), behaving(POOR, a=60), "behaviour"),
    Case("may behave as is asked for", "HOLD", behaving(GOOD, a=70), behaving(POOR, a=96), "behaviour", AT_THE_END_OF_70),
    Case("behaviour was not measured on the candidate", "HOLD", behaving(GOOD, a=95), behaving(POOR, a=96, b=96), "behaviour"),
    Case("a behavioural test that production never had", "REJECT", behaving(GOOD, a=95, b=20), behaving(POOR, a=96), "behaviour"),
    Case("quick enough", "PROMOTE", taking(GOOD, 20), taking(POOR, 10), limits=Limits(latency_ms=20)),
    Case("too slow", "REJECT", taking(GOOD, 21), taking(POOR, 10), "latency", Limits(latency_ms=20)),
    Case("too slow, as production is", "PROMOTE", taking(GOOD, 21), taking(POOR, 21), limits=Limits(latency_ms=20)),
    Case("may be quick enough", "HOLD", taking(GOOD, 21, spread=5), taking(POOR, 10), "latency", Limits(latency_ms=20)),
    Case("may be just quick enough", "HOLD", taking(GOOD, 21, spread=5), taking(POOR, 10), "latency", JUST_QUICK_ENOUGH),
    Case("quick enough, and production was not timed", "PROMOTE", taking(GOOD, 20), POOR),
    Case("too slow, and production was not timed", "REJECT", taking(GOOD, 101), POOR, "latency"),
    Case("was not timed, and production was", "HOLD", GOOD, taking(POOR, 20), "latency"),
    Case("the first version, timed and well behaved", "PROMOTE", behaving(taking(FAIR, 20), a=95), None),
    Case("the first version, badly behaved", "REJECT", behaving(FAIR, a=20), None, "behaviour"),
    Case("the first version, with out-of-scope texts and slices", "PROMOTE", refusing(FAIR, 9), None, slices=HUNDRED),
    Case("the first version, better than none", "PROMOTE", FAIR, None),
    Case("the first version, always one label", "HOLD", ALWAYS_A, None, "macro_f1"),
    Case("the first version, wrong on every row", "REJECT", answers(ROWS, 0.25), None, "macro_f1", Limits(ece_ceiling=0.5)),
    Case("the first version, badly calibrated", "REJECT", answers(share(23), 0.5), None, "calibration"),
    Case("the first version, with a dead label", "PROMOTE", answers(DEAD, 0.8), None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_gate_says(case: Case) -> None:
    verdict = decide(case.true, case.candidate, case.production, case.limits, slices=case.slices)
    assert verdict.decision == case.decision, verdict.reasons
    assert _says_no(verdict) == set(case.because.split())


def _says_no(verdict: gate.Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.outcome != "PROMOTE"}


def test_every_check_speaks_and_no_reason_is_empty() -> None:
    verdict = decide(TRUE, GOOD, POOR, Limits())
    assert [check.name for check in verdict.checks] == ["macro_f1", "recall", "calibration", "slices", "size"]
    assert verdict.reasons == [check.reason for check in verdict.checks]
    assert all(verdict.reasons)


def test_reasons_against_name_what_was_found_and_what_is_allowed() -> None:
    verdict = decide(TRUE, answers(DEAD, 0.8), POOR, Limits())
    assert verdict.reasons == ["recall of 'e' is 0 of 100, production's 67; 0.5 is the floor"]


def test_what_is_not_certain_is_no_reason_for_a_rejection() -> None:
    verdict = decide(
        TRUE, replace(FIVE_LOST[0], size_bytes=2_000_000), FIVE_LOST[1], Limits(slice_margin=0.04, size_mb=1), slices=HUNDRED
    )
    assert {check.name: check.outcome for check in verdict.checks if check.outcome != "PROMOTE"} == {
        "slices": "HOLD",
        "size": "REJECT",
    }
    assert verdict.decision == "REJECT"
    assert verdict.reasons == ["the model has 2.0 MB, production's 90.0; 1 are allowed"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    verdict = decide(TRUE, answers(DEAD, 0.4), GOOD, Limits(size_mb=1))
    assert {check.name for check in verdict.checks if check.outcome == "REJECT"} == {"macro_f1", "recall", "calibration", "size"}


def test_same_seed_same_verdict() -> None:
    assert decide(TRUE, GOOD, FAIR, Limits(), seed=5) == decide(TRUE, GOOD, FAIR, Limits(), seed=5)


def test_equal_models_are_told_apart_in_no_seed() -> None:
    assert {decide(TRUE, FAIR, FAIR, Limits(margin=0), seed).decision for seed in range(20)} == {"PROMOTE"}


def test_a_coin_toss_against_another_is_rarely_called_worse() -> None:
    """Two models of the same skill with independent mistakes: REJECT is wrong, and may happen in 2.5 % of sets."""
    random = np.random.default_rng(0)
    rejected = 0
    for seed in range(200):
        candidate, production = (answers(np.flatnonzero(random.random(500) < 0.1)) for _ in range(2))
        rejected += decide(TRUE, candidate, production, Limits(), seed).decision == "REJECT"
    assert rejected <= 12  # binomial(200, 0.025) is above 12 once in 400


OTHERS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}


def mutants() -> Iterator[tuple[str, str]]:
    """The gate's source with one comparison changed, for each and for each change; what only words a message is left out."""
    source = Path(gate.__file__).read_text()
    comparisons = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare)]
    for number, node in enumerate(comparisons):
        if "shown" in ast.unparse(node) or "len(unseen)" in ast.unparse(node):
            continue
        for other in OTHERS[type(node.ops[0])]:
            tree = ast.parse(source)
            changed = [found for found in ast.walk(tree) if isinstance(found, ast.Compare)][number]
            changed.ops[0] = other()
            yield f"line {node.lineno}: {ast.unparse(node)} -> {ast.unparse(changed)}", ast.unparse(tree)


def suite_passes(decide_changed: Callable[..., gate.Verdict]) -> bool:
    for case in CASES:
        try:
            verdict = decide_changed(case.true, case.candidate, case.production, case.limits, slices=case.slices)
        except Exception:  # noqa: BLE001 - a gate that breaks is a gate that is found out
            return False
        reasons = [check.reason for check in verdict.checks if check.outcome == verdict.decision]
        if (verdict.decision, _says_no(verdict), verdict.reasons) != (case.decision, set(case.because.split()), reasons):
            return False
    return True


def load(source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", module)
    exec(compile(source, "mutant.py", "exec"), module.__dict__)
    module.__dict__["bootstrap_calibration_error"] = calibration_error
    return module


KNOWN_ERRORS: dict[tuple[bytes, bytes, int], Interval] = {}


def calibration_error(probabilities: Floats, true_ids: Ids, *, seed: int) -> Interval:
    """bootstrap_calibration_error itself, asked once: of each mutant's seconds it would be four fifths."""
    key = (probabilities.tobytes(), true_ids.tobytes(), seed)
    if key not in KNOWN_ERRORS:
        KNOWN_ERRORS[key] = bootstrap_calibration_error(probabilities, true_ids, seed=seed)
    return KNOWN_ERRORS[key]


def test_the_suite_passes_on_the_gate_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite_passes(load(Path(gate.__file__).read_text(), monkeypatch).decide)


@pytest.mark.parametrize("source", [pytest.param(source, id=name) for name, source in mutants()])
def test_a_flipped_comparison_turns_the_suite_red(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not suite_passes(load(source, monkeypatch).decide)
