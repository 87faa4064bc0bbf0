import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.evaluation.test_labelled import origin
from tests.keyword_bundle import QUEUES, keyword_bundle, keyword_rows

from pigeonhole import storage
from pigeonhole.bundle import Bundle, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.command import call
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import read_out_of_scope
from pigeonhole.errors import ConfigError, DataError, GateError, RegistryError
from pigeonhole.evaluation.labelled import read_own_rows
from pigeonhole.promotion.measure import Probes
from pigeonhole.promotion.promote import ProbesConfig, choose_probes, run
from pigeonhole.registry import Registry

MISTAKEN = {**QUEUES, "charge": "delivery", "courier": "account"}
HOPELESS = {**QUEUES, "charge": "delivery", "courier": "account", "password": "billing", "login": "billing"}


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in keyword_rows()))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def published(registry: Registry, folder: Path, version: str, words: dict[str, str] = QUEUES, **changes: Any) -> Bundle:
    bundle = keyword_bundle(folder / version, version, words, weight=changes.pop("weight", 6.0), **changes)
    registry.publish(bundle.folder, bundle.manifest)
    return bundle


def in_production(registry: Registry, bundle: Bundle) -> None:
    registry.set_alias("keywords", "production", bundle.manifest.version, "for the test", expected=None)


def promote(registry: Registry, candidate: str, *arguments: str) -> dict[str, Any]:
    """These models know words as they are written only, so case and typos are left out of the judgement."""
    return run([f"candidate={candidate}", f"registry={registry.url}", "gate.behaviour_floor=0", *arguments])


def test_a_better_version_becomes_production_and_the_history_says_why(
    registry: Registry, rows_file: Path, tmp_path: Path
) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN))
    published(registry, tmp_path, "v2")
    found = promote(registry, "v2", f"data.path={rows_file}")
    assert (found["decision"], found["moved"], found["forced"], found["production"]) == ("PROMOTE", True, False, "v1")
    state = registry.alias("keywords", "production")
    assert (state.version, state.history[-1].action) == ("v2", "promote")
    assert state.history[-1].reason.startswith("PROMOTE: macro-F1 +0.")
    assert state.history[-1].reason.endswith(f"(144 rows of {rows_file})")


def test_a_version_of_the_registry_is_opened_once(
    registry: Registry, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open one in a bucket is to fetch it."""
    published(registry, tmp_path, "v1")
    opened: list[str] = []

    def watched(url: str) -> Bundle:
        opened.append(url)
        return open_bundle(url)

    monkeypatch.setattr("pigeonhole.promotion.promote.open_bundle", watched)
    assert promote(registry, "v1", f"data.path={rows_file}")["moved"]
    assert opened == [storage.to_url(registry.version_url("keywords", "v1"))]


def test_a_worse_version_stays_out_and_the_verdict_is_on_stdout(
    registry: Registry, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2", MISTAKEN)
    assert call(run, ["candidate=v2", f"registry={registry.url}", f"data.path={rows_file}"]) == 4
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["decision"], found["moved"]) == ("REJECT", False)
    assert "worse for certain" in found["reasons"][0]
    assert "error: REJECT: macro-F1" in printed.err
    assert "; force=true moves the alias all the same" in printed.err
    state = registry.alias("keywords", "production")
    assert (state.version, state.history[-1].action, state.history[-1].refused) == ("v1", "reject", "v2")
    assert "worse for certain" in state.history[-1].reason


def test_forcing_moves_the_alias_and_leaves_a_record(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2", MISTAKEN)
    found = promote(registry, "v2", f"data.path={rows_file}", "force=true")
    assert (found["decision"], found["moved"], found["forced"]) == ("REJECT", True, True)
    state = registry.alias("keywords", "production")
    assert state.version == "v2"
    assert state.history[-1].reason.startswith("forced over REJECT: ")
    assert (state.history[-1].action, state.history[-1].before) == ("force", "v1")


def test_forcing_a_version_that_passes_is_no_force(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2")
    assert promote(registry, "v2", f"data.path={rows_file}", "force=true")["forced"] is False
    assert registry.alias("keywords", "production").history[-1].reason.startswith("PROMOTE")


def test_the_first_version_has_to_beat_no_model_at_all(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    published(registry, tmp_path, "v1", {"zebra": "billing", "yak": "delivery", "gnu": "account"})
    with pytest.raises(GateError, match="HOLD: macro-F1"):
        promote(registry, "v1", f"data.path={rows_file}")
    published(registry, tmp_path, "v2")
    found = promote(registry, "v2", f"data.path={rows_file}")
    assert (found["decision"], found["production"]) == ("PROMOTE", None)
    assert "no production version yet" in found["notes"][0]
    assert registry.alias("keywords", "production").version == "v2"


def test_a_bundle_from_elsewhere_is_published_when_it_passes(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN))
    better, worse = (
        keyword_bundle(tmp_path / "better", "v2", weight=6),
        keyword_bundle(tmp_path / "worse", "v3", HOPELESS, weight=6),
    )
    with pytest.raises(GateError):
        promote(registry, worse.url, f"data.path={rows_file}")
    assert registry.versions("keywords") == ["v1"]
    promote(registry, better.url, f"data.path={rows_file}")
    assert registry.versions("keywords") == ["v1", "v2"]
    assert registry.alias("keywords", "production").version == "v2"


def test_another_bundle_under_the_name_of_a_version_is_refused(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    published(registry, tmp_path, "v1", MISTAKEN)
    other = keyword_bundle(tmp_path / "other", "v1")
    with pytest.raises(RegistryError, match="another bundle"):
        promote(registry, other.url, f"data.path={rows_file}")


def test_what_is_production_already_stays_so_without_being_measured(registry: Registry, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    found = promote(registry, "v1")
    assert (found["decision"], found["moved"]) == ("PROMOTE", False)
    assert len(registry.alias("keywords", "production").history) == 1


def test_without_a_file_the_candidate_answers_the_rows_that_it_kept_for_its_test(
    registry: Registry, rows_file: Path, tmp_path: Path
) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN, provenance=origin(rows_file)))
    published(registry, tmp_path, "v2", provenance=origin(rows_file))
    found = promote(registry, "v2")
    assert found["data"] == f"test split of {rows_file}, seed 0"
    assert (found["test"]["n"], found["notes"]) == (29, [])


def test_other_training_data_of_production_is_noted(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN))
    published(registry, tmp_path, "v2", provenance=origin(rows_file))
    assert "trained on other data" in promote(registry, "v2")["notes"][0]


def test_rows_that_one_of_the_two_has_learned_are_counted_in_another_file_too(
    registry: Registry, rows_file: Path, tmp_path: Path
) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN, provenance=origin(rows_file)))
    published(registry, tmp_path, "v2", provenance=origin(rows_file))
    part = tmp_path / "part.csv"
    lines = rows_file.read_text().splitlines()[1:101]
    part.write_text("text,label\n" + "".join(f"  {line}\n" for line in lines))
    notes = promote(registry, "v2", f"data.path={part}")["notes"]
    split = read_own_rows(open_bundle(registry.version_url("keywords", "v2")))[1].split
    learned = {row.text for row in (*split.train, *split.validation)}
    n = sum(line.rpartition(",")[0] in learned for line in lines)
    assert 0 < n < 100
    assert notes == [
        f"the candidate was trained or selected on {n} of the 100 rows: that favours it",
        f"production was trained or selected on {n} of the 100 rows: that favours it",
    ]


def test_other_training_data_that_are_still_there_are_counted_and_not_guessed_at(
    registry: Registry, rows_file: Path, tmp_path: Path
) -> None:
    other, part = tmp_path / "other.csv", tmp_path / "part.csv"
    other.write_text(rows_file.read_text() + "one more invoice,billing\n")
    part.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:101]))
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN, provenance=origin(other)))
    published(registry, tmp_path, "v2", provenance=origin(rows_file))
    notes = promote(registry, "v2", f"data.path={part}")["notes"]
    assert [note.partition(" was trained or selected on ")[0] for note in notes] == ["the candidate", "production"]


def test_the_same_training_data_are_no_other_data_though_they_are_gone(
    registry: Registry, rows_file: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.csv"
    gone.write_text(rows_file.read_text() + "one more invoice,billing\n")
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN, provenance=origin(gone)))
    published(registry, tmp_path, "v2", provenance=origin(gone))
    gone.unlink()
    assert promote(registry, "v2", f"data.path={rows_file}")["notes"] == []


def test_rows_that_the_candidate_was_trained_on_are_refused(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    published(registry, tmp_path, "v1", provenance=origin(rows_file))
    with pytest.raises(ConfigError, match="the candidate was trained on this file"):
        promote(registry, "v1", f"data.path={rows_file}")


def test_labels_that_the_candidate_has_never_seen_are_refused_before_anything_is_measured(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(registry, tmp_path, "v1")
    monkeypatch.setattr("pigeonhole.promotion.promote.measure", lambda *_: pytest.fail("it is measured"))
    path = tmp_path / "other.csv"
    path.write_text("text,label\nmy roof,roofing\n")
    with pytest.raises(DataError, match=r"unseen.*roofing"):
        promote(registry, "v1", f"data.path={path}")


def test_labels_that_production_has_never_seen_hold_the_candidate(registry: Registry, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2", {**QUEUES, "roof": "roofing"})
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nmy roof,roofing\nmy invoice,billing\n")
    with pytest.raises(GateError, match=r"HOLD: version v1 cannot be measured .* 'roofing'"):
        promote(registry, "v2", f"data.path={path}")
    noted = registry.alias("keywords", "production").history[-1]
    assert (noted.action, noted.refused, noted.version) == ("hold", "v2", "v1")


def test_a_move_by_somebody_else_in_between_is_not_overwritten(
    registry: Registry, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN))
    for version in ("v2", "v3"):
        published(registry, tmp_path, version)
    measure = "pigeonhole.promotion.promote.score_metrics"

    def interrupt(*arguments: Any) -> dict[str, Any]:
        registry.set_alias("keywords", "production", "v3", "a colleague", expected="v1")
        return {"n": 144}

    monkeypatch.setattr(measure, interrupt)
    with pytest.raises(RegistryError, match="somebody moved it"):
        promote(registry, "v2", f"data.path={rows_file}")
    assert registry.alias("keywords", "production").version == "v3"


def test_a_registry_that_can_only_be_read_is_told_before_anything_is_measured(
    registry: Registry, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2")

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pigeonhole.storage._replace", refuse)
    assert call(run, ["candidate=v2", f"registry={registry.url}", f"data.path={rows_file}"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"registry={registry.url}: cannot be written (Read-only file system)" in said.err
    assert promote(registry, "v1")["reasons"] == ["is production already"]  # nothing is to be written for that


def test_limits_come_from_the_command_line(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    published(registry, tmp_path, "v1", weight=2.0)
    with pytest.raises(GateError, match="calibration"):
        promote(registry, "v1", f"data.path={rows_file}", "gate.ece_ceiling=0.01")
    with pytest.raises(GateError, match=r"the model has 0\.0 MB; 0\.0001 are allowed"):
        promote(registry, "v1", f"data.path={rows_file}", "gate.ece_ceiling=1", "gate.size_mb=0.0001")
    with pytest.raises(ConfigError, match=r"gate\.margin"):
        promote(registry, "v1", f"data.path={rows_file}", "gate.margin=2")


def test_a_candidate_that_is_not_there_is_named_with_what_is(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="candidate: a value is missing"):
        run([f"registry={registry.url}"])
    with pytest.raises(RegistryError, match="'v9'; the latest are none"):
        promote(registry, "v9")
    published(registry, tmp_path, "v1")
    with pytest.raises(RegistryError, match="'v9'; the latest are keywords v1"):
        promote(registry, "v9")
    with pytest.raises(RegistryError, match="name=other"):
        promote(registry, str(tmp_path / "v1"), "name=other")


def test_of_many_versions_the_latest_are_named(registry: Registry, tmp_path: Path) -> None:
    for version in ("v1", "v2", "v3", "v4"):
        published(registry, tmp_path, version)
    with pytest.raises(RegistryError, match=r"'v9'; the latest are keywords v2, keywords v3, keywords v4$"):
        promote(registry, "v9")


def test_slices_are_also_those_that_the_candidates_run_defined(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1", provenance=origin(rows_file)))
    mistaken = {**QUEUES, "charge": "delivery"}
    published(registry, tmp_path, "v2", mistaken, provenance=origin(rows_file, slices="charges=charge"))
    with pytest.raises(GateError) as caught:
        promote(registry, "v2")
    assert isinstance(caught.value.result, dict)
    (said,) = (check["reason"] for check in caught.value.result["checks"] if "rows of charges" in check["reason"])
    assert said.startswith("accuracy -1.000")


def test_out_of_scope_texts_are_those_that_the_candidate_was_measured_on(rows_file: Path, tmp_path: Path) -> None:
    outside = [f"the weather of day {number}" for number in range(20)]
    path = tmp_path / "outside.csv"
    path.write_text("text,label\n" + "".join(f"{text},none\n" for text in outside))
    bundle = keyword_bundle(tmp_path / "v1", "v1", provenance=origin(rows_file, out_of_scope_path=str(path)))
    config = DataConfig(path=str(rows_file), out_of_scope_path=str(path))
    assert set(choose_probes(ProbesConfig(), bundle).out_of_scope) == set(read_out_of_scope(config).test) < set(outside)


def test_a_version_of_two_models_needs_the_name_of_one(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    bundle = published(registry, tmp_path, "v1")
    twin = Path(registry.version_url("twin", "v1"))
    twin.parent.mkdir(parents=True)
    twin.symlink_to(bundle.folder)
    with pytest.raises(RegistryError, match="is there for keywords, twin; write name=NAME"):
        promote(registry, "v1", f"data.path={rows_file}")
    assert promote(registry, "v1", f"data.path={rows_file}", "model=keywords")["moved"]


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(["--help"])
    assert left.value.code == 0
    assert "gate.recall_floor" in capsys.readouterr().out


def test_behaviour_latency_slices_and_probes_are_measured_on_both(registry: Registry, rows_file: Path, tmp_path: Path) -> None:
    in_production(registry, published(registry, tmp_path, "v1", MISTAKEN))
    published(registry, tmp_path, "v2")
    minimum, foreign = tmp_path / "minimum.csv", tmp_path / "foreign.csv"
    minimum.write_text("text,label\nmy invoice,billing\na courier came,delivery\nno login,account\n")
    foreign.write_text("text,label\nthe weather is fine,none\nmy invoice of the heart,none\n")
    probes = [f"probes.minimum={minimum}", f"probes.out_of_scope={foreign}"]
    found = promote(registry, "v2", f"data.path={rows_file}", *probes)
    said = {check["reason"].split(":")[0]: check for check in found["checks"]}
    assert said["minimum functionality"]["reason"].startswith("minimum functionality: 3 of 3 passed")
    assert {"upper case", "a typo", "politeness", "two texts of one label"} <= set(said)
    reasons = {check["name"]: check["reason"] for check in found["checks"]}
    assert reasons["out_of_scope"].startswith("1 of 2 out-of-scope texts are not accepted, +0.000")
    assert "production" in reasons["latency"]
    assert reasons["slices"] == "no slice of 2 lost more than 0.05"


def test_the_probes_of_tickets_are_those_of_its_labels_only(sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = open_bundle(str(sealed_bundle))
    assert choose_probes(ProbesConfig(), tiny) == Probes([], [])
    labels = ("account_access", "billing", "cancellation", "delivery", "feedback", "refund", "sales", "technical_fault")
    tickets = dataclasses.replace(tiny, manifest=msgspec.structs.replace(tiny.manifest, labels=labels))
    found = choose_probes(ProbesConfig(), tickets)
    assert (len(found.minimum), len(found.out_of_scope)) == (24, 102)
    several = msgspec.structs.replace(tickets.manifest, task="multi_label")
    assert choose_probes(ProbesConfig(), dataclasses.replace(tiny, manifest=several)) == Probes([], [])


def test_the_columns_of_a_file_are_those_that_were_named(registry: Registry, tmp_path: Path) -> None:
    published(registry, tmp_path, "v1")
    path = tmp_path / "other.csv"
    path.write_text("message,queue\n" + "".join(f"{text},{label}\n" for text, label in keyword_rows()))
    assert promote(registry, "v1", f"data.path={path}", "data.text=message", "data.label=queue")["moved"]


def test_the_registry_is_that_of_the_environment_where_none_is_named(
    registry: Registry, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(registry, tmp_path, "v1")
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", registry.url)
    assert run(["candidate=v1", f"data.path={rows_file}", "gate.behaviour_floor=0"])["moved"]


def test_people_are_told_each_check_each_note_and_the_verdict(
    registry: Registry, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(registry, tmp_path, "v1")
    found = promote(registry, "v1", f"data.path={rows_file}")
    said = capsys.readouterr().err
    assert f"keywords v1 against no production version, {rows_file}\n" in said
    assert len(found["notes"]) == 1
    assert all(told in said for told in (*found["notes"], *(check["reason"] for check in found["checks"])))
    assert said.endswith("\nPROMOTE\n")


def test_threads_are_those_of_both_models_and_the_seed_is_that_of_all_intervals(
    registry: Registry, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_production(registry, published(registry, tmp_path, "v1"))
    published(registry, tmp_path, "v2", MISTAKEN)
    opened: list[int] = []
    open_classifier = Classifier.open

    def count(bundle: Bundle, *, threads: int) -> Classifier:
        opened.append(threads)
        return open_classifier(bundle, threads=threads)

    monkeypatch.setattr(Classifier, "open", count)

    def verdict(seed: int) -> tuple[dict[str, Any], list[str]]:
        with pytest.raises(GateError) as caught:
            promote(registry, "v2", f"data.path={rows_file}", f"seed={seed}", "threads=1")
        assert isinstance(caught.value.result, dict)
        reasons = [check["reason"] for check in caught.value.result["checks"]]
        return caught.value.result["test"], [told for told in reasons if told.startswith(("macro-F1", "a typo"))]

    test, (difference, typos) = verdict(seed=1)
    other_test, (other_difference, other_typos) = verdict(seed=2)
    assert opened == [1] * 4
    assert test["intervals"]["macro_f1"] != other_test["intervals"]["macro_f1"]
    assert difference != other_difference
    assert typos != other_typos


def test_rows_and_probes_of_a_multi_label_version_may_have_several_labels(registry: Registry, tmp_path: Path) -> None:
    plain = keyword_bundle(tmp_path / "v1", "v1", weight=6.0)
    thresholds = dict.fromkeys(plain.manifest.labels, 0.6)
    manifest = msgspec.structs.replace(plain.manifest, task="multi_label", accept_score=0.1, thresholds=thresholds)
    registry.publish(plain.folder, seal(plain.folder, manifest))
    rows, minimum = tmp_path / "rows.csv", tmp_path / "minimum.csv"
    texts = [*keyword_rows(), *((f"my invoice and my parcel {number}", "billing|delivery") for number in range(40))]
    rows.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    minimum.write_text("text,label\nmy invoice and my parcel,delivery|billing\n")
    found = promote(registry, "v1", f"data.path={rows}", f"probes.minimum={minimum}", "gate.ece_ceiling=1")
    assert (found["moved"], found["test"]["micro_f1"]) == (True, 1.0)
    assert any(check["reason"].startswith("minimum functionality: 1 of 1 passed") for check in found["checks"])
