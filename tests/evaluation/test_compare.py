import json
from math import isclose
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.evaluation.test_labelled import origin
from tests.keyword_bundle import QUEUES, keyword_bundle, keyword_rows

from pigeonhole.command import call
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.compare import Part, _cell, _surely, compare, run, sign_test
from pigeonhole.metrics import Ids, Interval

LABELS = ("a", "b", "c", "d", "e", "f", "g", "h")
TRUE = np.arange(400) % len(LABELS)
LENGTHS = {"short": np.arange(400) < 200, "long": np.arange(400) >= 200}


def answers(wrong: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Ids:
    return np.where(wrong, (TRUE + 1) % len(LABELS), TRUE)


def test_the_sign_test_is_scipys_binomial_test() -> None:
    for won, lost in ((0, 0), (3, 0), (5, 9), (20, 20), (40, 11)):
        expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert isclose(sign_test(won, lost), expected, rel_tol=1e-9)


def test_a_against_itself_is_no_difference_in_any_of_100_seeds() -> None:
    same = answers(np.random.default_rng(0).random(400) < 0.2)
    assert {compare(TRUE, same, same, LABELS, LENGTHS, seed).verdict for seed in range(100)} == {"no difference"}


def test_two_models_of_equal_skill_with_mistakes_of_their_own_are_no_difference_in_95_of_100() -> None:
    random = np.random.default_rng(1)
    verdicts = [
        compare(TRUE, answers(random.random(400) < 0.2), answers(random.random(400) < 0.2), LABELS, LENGTHS, seed).verdict
        for seed in range(100)
    ]
    assert verdicts.count("no difference") >= 95


def test_one_dead_label_is_found_and_named() -> None:
    base = np.random.default_rng(2).random(400) < 0.1
    found = compare(TRUE, answers(base), answers(base | (TRUE == 3)), LABELS, LENGTHS, 0)
    assert found.verdict == "a difference"
    assert "d" in found.different
    assert not {"a", "b", "c"} & set(found.different)
    assert len(found.won) == 0
    assert set(TRUE[found.lost]) == {3}


def test_each_part_is_tested_by_its_own_rows_and_draws_with_the_seed() -> None:
    base, candidate = answers(TRUE == 5), answers((TRUE == 3) & LENGTHS["short"])
    found, other = ({part.name: part for part in compare(TRUE, base, candidate, LABELS, LENGTHS, seed).parts} for seed in (0, 1))
    p = {name: part.p for name, part in found.items()}
    of_one, both = sign_test(25, 0), sign_test(50, 25)
    assert p == {
        "all rows": both,
        **dict.fromkeys("abcegh", 1.0),
        "d": of_one,
        "f": sign_test(50, 0),
        "short": 1.0,
        "long": of_one,
    }
    assert {name: round(part.difference.estimate * part.n) for name, part in found.items() if part.p < 1} == {
        "all rows": 25,
        "d": -25,
        "f": 50,
        "long": 25,
    }
    assert found != other


@pytest.mark.parametrize(
    ("p", "certain"),
    [((0.03, 0.01, 0.02), 3), ((0.01, 0.03, 0.03), 1), ((0.02, 0.02, 0.02), 0), ((0.01, 0.02, 0.06), 2)],
)
def test_the_parts_are_adjusted_together_as_holm_does(p: tuple[float, ...], certain: int) -> None:
    """0.05 / 3 for the smallest, then 0.05 / 2, then 0.05."""
    parts = [Part("label", str(value), 1, Interval(0, 0, 0), value) for value in p]
    assert list(_surely(parts)) == sorted(map(str, p))[:certain]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text} | <b>,{label}\n" for text, label in keyword_rows()))
    return path


def test_the_command_writes_a_report_with_flips_first(
    tmp_path: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = keyword_bundle(tmp_path / "base", "v1")
    worse = keyword_bundle(tmp_path / "worse", "v2", {**QUEUES, "courier": "account"})
    out = tmp_path / "out"
    assert call(run, [f"base={base.url}", f"candidate={worse.url}", f"data.path={rows_file}", f"out={out}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["flips"]) == ("a difference", {"now_wrong": 24, "now_right": 0})
    assert "delivery" in found["different"]
    assert found["macro_f1"]["difference"] < 0
    assert {part["name"] for part in found["parts"] if part["difference"] < 0} >= {"all rows", "delivery"}
    assert max(part["difference"] for part in found["parts"]) == 0
    page = (out / "report.md").read_text()
    assert page.index("Was right, now wrong: 24") < page.index("Change of accuracy")
    assert "\\| \\<b\\>" in page
    assert {path.name for path in out.iterdir()} == {
        "labels.png",
        "reliability_base.png",
        "reliability_candidate.png",
        "report.json",
        "report.md",
    }


def test_rows_that_one_of_the_two_has_learned_are_noted(tmp_path: Path, rows_file: Path) -> None:
    base = keyword_bundle(tmp_path / "base", "v1", provenance=origin(rows_file))
    candidate = keyword_bundle(tmp_path / "candidate", "v2")
    out = tmp_path / "out"
    found = run([f"base={base.url}", f"candidate={candidate.url}", f"data.path={rows_file}", f"out={out}"])
    [note] = found["notes"]
    assert note.startswith("the base was trained or selected on ")
    assert f"Note: {note}." in (out / "report.md").read_text()


def test_a_cell_of_the_report_is_one_line_and_never_long() -> None:
    assert _cell("a\n b|c") == "a b\\|c"
    assert _cell("word " * 100) == ("word " * 24)[:119] + "…"


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"out=.+: cannot be written"):
        run(["base=no-such", "candidate=no-such", f"out={tmp_path / 'out'}"])


def test_both_bundles_are_needed_and_their_labels_have_to_be_the_same(tmp_path: Path, rows_file: Path) -> None:
    with pytest.raises(ConfigError, match="both are needed"):
        run(["base=x"])
    base, other = (
        keyword_bundle(tmp_path / "base", "v1"),
        keyword_bundle(tmp_path / "other", "v2", {"invoice": "money", "parcel": "post"}),
    )
    with pytest.raises(ConfigError, match="its labels are not those of"):
        run([f"base={base.url}", f"candidate={other.url}", f"data.path={rows_file}", f"out={tmp_path / 'out'}"])
