"""The steps before training; the whole of it is what tests/loop/test_demo.py runs."""

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.conftest import tiny_rows, write_rows
from tests.training.fork_server import ForkServer

from pigeonhole.bundle import MANIFEST, Bundle, open_bundle, seal
from pigeonhole.configuration import compose
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.load import OutOfScope, read_out_of_scope
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.dataset.taxonomy import read_taxonomy
from pigeonhole.drift.review import is_drawn
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.errors import BundleError, ConfigError, GateError, RegistryError, RunError
from pigeonhole.loop.harvest import Harvest, harvest
from pigeonhole.loop.retrain import VERDICT, Rows, divide, learned_keys, new_folder, open_folder, run, split_arguments, write
from pigeonhole.prediction_log import Features, Feedback, LogWriter, Record, TextPolicy, new_id
from pigeonhole.registry import Registry
from pigeonhole.training.config import TrainConfig

NEW = [Row(f"a drone brought the thing number {number} to my neighbour", "delivery", 0) for number in range(40)]
Judge = Callable[..., None]


@pytest.fixture
def bundle(sealed_bundle: Path) -> Bundle:
    return open_bundle(str(sealed_bundle))


@pytest.fixture
def registry(bundle: Bundle, tmp_path: Path) -> Registry:
    found = Registry(str(tmp_path / "registry"))
    found.publish(bundle.folder, bundle.manifest)
    found.set_alias("tiny", "production", bundle.manifest.version, "first", expected=None)
    return found


@pytest.fixture
def judge(bundle: Bundle, tmp_path: Path) -> Judge:
    """Write predictions of the version into the log, and what was said of them (one word or several)."""

    def write(
        judged: Sequence[tuple[Row, str, Sequence[str]]],
        policy: TextPolicy = "full",
        version: str = bundle.manifest.version,
        source: str = "person",
        score: float = 0.9,
        model: str = "tiny",
    ) -> None:
        log = str(tmp_path / "log")
        at = datetime.now(UTC) - timedelta(minutes=10)
        with LogWriter(log, "predictions") as predictions, LogWriter(log, "feedback") as feedback:
            for row, said, words in judged:
                record = Record(
                    prediction_id=new_id(),
                    at=at,
                    request_id="r",
                    model=model,
                    version=version,
                    text={"full": row.text, "redact": row.text, "hash": "hmac-sha256:00", "none": None}[policy],
                    text_policy=policy,
                    features=Features(n_chars=1, n_words=1, n_tokens=3, unknown_tokens=0, truncated=False, max_logit=1.0),
                    label=said,
                    score=score,
                    probabilities={said: score},
                    decision="accept",
                    latency_ms=1.0,
                )
                predictions.append([record])
                asked = source != "review" or is_drawn(record, AUDIT_SHARE)  # nobody sees what the queue does not draw
                for number, word in enumerate(words if asked else []):
                    later = at + timedelta(seconds=number + 1)
                    feedback.append(
                        [Feedback(feedback_id=new_id(), at=later, prediction_id=record.prediction_id, label=word, source=source)]
                    )

    return write


def reap(tmp_path: Path, bundle: Bundle) -> Harvest:
    end = datetime.now(UTC)
    manifest = bundle.manifest
    return harvest(str(tmp_path / "log"), end - timedelta(hours=1), end, manifest.name, manifest.version, manifest.labels)


def test_the_latest_word_counts_and_labels_its_text(judge: Judge, tmp_path: Path, bundle: Bundle) -> None:
    judge([(NEW[0], "billing", ["account", "delivery"]), (NEW[1], "delivery", ["delivery"]), (NEW[2], "billing", [])])
    found = reap(tmp_path, bundle)
    assert (found.judged, found.right) == (2, 1)
    assert {(row.text, row.label) for row in found.rows} == {(NEW[0].text, "delivery"), (NEW[1].text, "delivery")}


def test_of_two_words_on_one_text_the_later_one_is_learned_whichever_is_read_first(
    judge: Judge, tmp_path: Path, bundle: Bundle
) -> None:
    judge([(NEW[0], "billing", ["account", "delivery"])])
    judge([(NEW[0], "billing", ["account"])])
    assert [row.label for row in reap(tmp_path, bundle).rows] == ["delivery"]


def test_one_text_in_two_spellings_is_one_row(judge: Judge, tmp_path: Path, bundle: Bundle) -> None:
    judge([(NEW[0], "billing", ["delivery"]), (Row(f" {NEW[0].text.upper()}", "delivery", 0), "billing", ["delivery"])])
    found = reap(tmp_path, bundle)
    assert (found.judged, len(found.rows)) == (2, 1)


def test_answers_to_the_review_queue_are_weighed_back_to_all_predictions(judge: Judge, tmp_path: Path, bundle: Bundle) -> None:
    judge([(NEW[0], "delivery", ["delivery"])] * 1500, source="review")
    judge([(NEW[1], "billing", ["delivery"])] * 60, source="review", score=0.1)
    judge([(NEW[2], "delivery", ["delivery"])] * 40, source="review", score=0.1)
    found = reap(tmp_path, bundle)
    assert found.right / found.judged < 0.8  # of what the queue shows, which is mostly what the version is not sure of
    assert found.accuracy.low < 1540 / 1600 < found.accuracy.high
    assert found.accuracy.estimate > 0.9


@pytest.mark.parametrize("policy", ["hash", "none"])
def test_texts_that_the_log_does_not_keep_are_judged_and_not_learned(
    judge: Judge, tmp_path: Path, bundle: Bundle, policy: TextPolicy
) -> None:
    judge([(row, "billing", ["delivery"]) for row in NEW[:3]], policy)
    found = reap(tmp_path, bundle)
    assert (found.judged, found.without_text, found.rows) == (3, 3, [])


def test_other_versions_and_foreign_labels_are_left_out(judge: Judge, tmp_path: Path, bundle: Bundle) -> None:
    judge([(NEW[0], "billing", ["delivery"])], version="another")
    judge([(NEW[0], "billing", ["delivery"])], model="another")
    judge([(NEW[1], "billing", ["zebra"])])
    found = reap(tmp_path, bundle)
    assert (found.judged, found.unknown_labels) == (0, 1)


def test_words_and_rows_get_the_labels_of_a_changed_taxonomy(judge: Judge, tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "labels.yaml").write_text("rename: {delivery: shipping}\nretire: [account]\nadd: [drone]\n")
    taxonomy = read_taxonomy(str(tmp_path / "labels.yaml"))
    judge([(NEW[0], "billing", ["delivery"]), (NEW[1], "billing", ["account"]), (NEW[2], "billing", ["drone"])])
    judge([(NEW[3], "billing", ["zebra"])])
    end, manifest = datetime.now(UTC), bundle.manifest
    asked = str(tmp_path / "log"), end - timedelta(hours=1), end, manifest.name, manifest.version, manifest.labels
    found = harvest(*asked, taxonomy)
    assert {(row.text, row.label) for row in found.rows} == {(NEW[0].text, "shipping"), (NEW[2].text, "drone")}
    assert (found.judged, found.right, found.unknown_labels) == (2, 0, 1)
    rows = divide(bundle, found, 0.4, taxonomy)
    assert {row.label for row in (*rows.train, *rows.validation, *rows.frozen)} <= {"shipping", "billing", "drone"}


def test_no_text_is_on_two_sides_and_old_rows_stay_on_theirs(bundle: Bundle) -> None:
    known = [Row(text.upper(), label, 0) for text, label in tiny_rows()[:20]]
    rows = divide(bundle, Harvest([*NEW, *known], 60, 30, 0, 0), set_aside=0.4)
    texts = [{normalise(row.text) for row in part} for part in (rows.train, rows.validation, rows.frozen)]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 190
    assert (rows.learned, rows.set_aside) == (24, 16)
    assert rows.reference == rows.frozen  # 16 rows would be too few


def test_many_rows_set_aside_are_what_traffic_is_compared_with(bundle: Bundle, tmp_path: Path) -> None:
    rows = divide(bundle, Harvest(NEW, 40, 10, 0, 0), set_aside=0.8)
    assert rows.reference == rows.frozen[-32:]
    assert {row.text for row in rows.reference} <= {row.text for row in NEW}
    written = dict(key.split("=", 1) for key in write(str(tmp_path), rows))
    assert [row.text for row in read_rows(DataConfig(path=written["reference_path"]))] == [row.text for row in rows.reference]


@pytest.mark.parametrize(("set_aside", "compared"), [(29, 40), (30, 30)])
def test_fewer_rows_than_a_reference_needs_are_compared_with_all_frozen_ones(set_aside: int, compared: int) -> None:
    rows = Rows(NEW, NEW, NEW, learned=1, set_aside=set_aside, outside=OutOfScope([], []))
    assert rows.reference == NEW[-compared:]


def test_a_successor_learns_what_is_out_of_scope_from_its_predecessors_texts_and_is_measured_on_the_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    outside = [f"the weather report of day {number} says rain" for number in range(8)]
    write_rows(tmp_path / "outside.csv", [(text, "none") for text in outside])
    origin = bundle.manifest.provenance
    told = {**origin["config"], "data.out_of_scope_path": str(tmp_path / "outside.csv"), "data.slices": "digits=\\d+ ; it's=it's"}
    manifest = msgspec.structs.replace(bundle.manifest, provenance={**origin, "config": told})
    production = Bundle(bundle.url, bundle.folder, manifest)
    judged = [*NEW, *(Row(text, "delivery", 0) for text in outside)]
    rows = divide(production, Harvest(judged, 48, 0, 0, 0), set_aside=0.4)
    assert not set(outside) & {row.text for row in (*rows.train, *rows.frozen)}
    config = compose(TrainConfig, "train", [*learned_keys(production), *write(str(tmp_path / "rows"), rows)])
    assert config.data.slices == told["data.slices"]
    found = read_out_of_scope(config.data)
    assert sorted([*found.fitted, *found.test]) == sorted(outside)
    assert (found.fitted, found.test) == (rows.outside.fitted, rows.outside.test)


def test_a_successor_is_trained_as_its_predecessor_was(bundle: Bundle) -> None:
    keys = dict(key.split("=", 1) for key in learned_keys(bundle))
    assert (keys["trainer.epochs"], keys["trainer.freeze_word_embeddings"], keys["model.revision"]) == ("20", "false", "null")
    assert "data.trigger_words" in keys
    assert not {"data.path", "data.test", "out", "registry", "name"} & set(keys)


def test_a_choice_of_a_group_or_an_experiment_replaces_what_production_was_trained_with(bundle: Bundle, tmp_path: Path) -> None:
    def composed(*training: str) -> TrainConfig:
        rows = divide(bundle, Harvest(NEW, 40, 10, 0, 0), set_aside=0.4)
        keys = [*learned_keys(bundle, training), *write(str(tmp_path / "rows"), rows), *training]
        return compose(TrainConfig, "train", keys)

    default, before = compose(TrainConfig, "train", []), composed()
    other = composed("model=minilm")
    assert (other.model, other.trainer) == (default.model, before.trainer) != (before.model, default.trainer)
    recipe = composed("experiment=banking77", "trainer.epochs=4")
    assert (recipe.trainer.batch_size, recipe.trainer.epochs, recipe.trainer.threads) == (64, 4, before.trainer.threads)
    assert (recipe.data.text, recipe.data.label) == ("text", "label")  # of the files that the loop has written


def refused(registry: Registry, tmp_path: Path, *more: str) -> dict[str, Any]:
    with pytest.raises(GateError) as caught:
        run(
            [
                f"registry={registry.url}",
                f"log={tmp_path / 'log'}",
                f"rows={tmp_path / 'rows'}",
                f"run={tmp_path / 'runs'}",
                *more,
            ]
        )
    assert not (tmp_path / "runs").exists()
    result = caught.value.result
    assert isinstance(result, dict)
    return result


def test_too_few_judged_predictions_decide_nothing(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(row, "billing", ["delivery"]) for row in NEW[:30]])
    found = refused(registry, tmp_path)
    assert (found["decision"], found["reason"]) == ("WAIT", "30 predictions are judged, 50 are needed")


def test_where_nothing_was_judged_there_is_no_accuracy(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(NEW[0], "billing", [])])
    found = refused(registry, tmp_path)
    assert (found["judged"], found["live_accuracy"], found["interval"]) == (0, None, [0.0, 1.0])


def test_predictions_before_the_window_do_not_count(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(row, "billing", ["delivery"]) for row in NEW[:30]])
    assert [refused(registry, tmp_path, f"window_hours={hours}")["judged"] for hours in (0.1, 0.5)] == [0, 30]


def test_answers_are_weighed_by_the_chance_that_the_drift_service_asked(
    judge: Judge, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge([(NEW[0], "delivery", ["delivery"])] * 1500, source="review")
    judge([(NEW[1], "billing", ["delivery"])] * 100, source="review", score=0.1)
    found = [refused(registry, tmp_path, "least_judged=5000", *more) for more in ([], ["audit_share=1"])]
    monkeypatch.setenv("PIGEONHOLE_AUDIT_SHARE", "1")
    found += [refused(registry, tmp_path, "least_judged=5000", *more) for more in ([], [f"audit_share={AUDIT_SHARE}"])]
    assert (found[0], found[1]) == (found[3], found[2])
    assert found[0]["live_accuracy"] > 0.8 > 0.5 > found[1]["live_accuracy"]


def test_asked_for_it_trains_a_version_that_is_as_good_as_it_was(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(Row(text, label, 0), label, [label]) for text, label in tiny_rows()])
    found = refused(registry, tmp_path, "least_judged=40", "always=true")
    assert "0 of the judged texts are new to production" in found["reason"]  # and not that it is as good as it was


def test_a_changed_taxonomy_asks_no_feedback(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(NEW[0], "billing", ["delivery"])])
    (tmp_path / "labels.yaml").write_text("rename: {delivery: shipping}\n")
    (tmp_path / "file").touch()
    places = [f"registry={registry.url}", f"log={tmp_path / 'log'}", f"rows={tmp_path / 'rows'}", f"run={tmp_path / 'file'}"]
    with pytest.raises(ConfigError, match=rf"out={tmp_path}/file/.*: cannot be written"):  # the training has begun
        run([*places, f"taxonomy={tmp_path / 'labels.yaml'}"])


def test_nothing_to_judge_by_what_was_learned_trains_nothing(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(Row(text, label, 0), "billing", [label]) for text, label in tiny_rows()] + [(NEW[0], "billing", ["delivery"])])
    found = refused(registry, tmp_path, "least_judged=40", "set_aside=0.0001")
    assert "1 of the judged texts are new to production" in found["reason"]


def test_a_version_that_is_as_good_as_it_was_is_left_alone(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(row, "delivery", ["delivery"]) for row in NEW])
    assert "not below the" in refused(registry, tmp_path, "least_judged=40")["reason"]


def test_a_fall_that_so_few_test_rows_cannot_show_for_certain_trains_nothing(
    judge: Judge, registry: Registry, tmp_path: Path, bundle: Bundle
) -> None:
    test = bundle.manifest.metrics["test"]
    wrong = round(40 * (1 - test["accuracy"])) + 3
    judge([(row, "billing" if number < wrong else "delivery", ["delivery"]) for number, row in enumerate(NEW)])
    found = refused(registry, tmp_path, "least_judged=40")
    assert found["interval"][1] < test["accuracy"]  # below the figure of the test, but not below what that figure may be
    assert found["fall"][1] <= 0 < found["fall"][0]


def test_judged_texts_that_production_has_had_already_teach_nothing(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(Row(text, label, 0), "billing", [label]) for text, label in tiny_rows()])
    found = refused(registry, tmp_path, "least_judged=40")
    assert (found["decision"], found["fall"][1] > 0) == ("WAIT", True)
    assert "0 of the judged texts are new to production" in found["reason"]


def test_labels_without_texts_are_no_material(judge: Judge, registry: Registry, tmp_path: Path) -> None:
    judge([(row, "billing", ["delivery"]) for row in NEW], "none")
    assert "0 judged texts are in the log" in refused(registry, tmp_path, "least_judged=40")["reason"]


@pytest.mark.parametrize("argument", ["data.path=x.csv", "out=x", "reference_path=x"])
def test_what_the_loop_decides_itself_cannot_be_given(argument: str) -> None:
    with pytest.raises(ConfigError, match="retrain itself says"):
        split_arguments([argument])


def test_arguments_go_to_retrain_itself_to_train_and_to_the_gate() -> None:
    own, training, gating = (
        ["always=true"],
        ["data.slices=a=b", "seed=3", "model=tiny"],
        ["gate.margin=0", "probes.minimum=x.csv"],
    )
    assert split_arguments([*gating, *training, *own]) == (own, training, gating)


def test_a_version_that_nothing_was_measured_on_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "unmeasured"
    shutil.copytree(bundle.folder, folder)
    (folder / MANIFEST).unlink()
    manifest = seal(folder, msgspec.structs.replace(bundle.manifest, metrics={}))
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(folder, manifest)
    registry.set_alias("tiny", "production", manifest.version, "imported", expected=None)
    with pytest.raises(BundleError, match="nothing was measured on it"):
        run([f"registry={registry.url}"])


def test_a_log_that_is_not_there_is_told_and_is_no_want_of_feedback(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*there is no log here"):
        run([f"registry={registry.url}", f"log={tmp_path / 'nowhere'}"])


def test_of_several_models_one_has_to_be_named(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "registry/models/other").mkdir()
    with pytest.raises(RegistryError, match="write name=NAME; models here: other, tiny"):
        run([f"registry={registry.url}"])


def test_two_runs_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    folders = [new_folder(str(tmp_path), now) for _ in range(3)]
    assert [Path(folder).name for folder in folders] == ["20260301-120000", "20260301-120000-2", "20260301-120000-3"]


def test_a_stopped_run_is_gone_on_with_and_one_that_got_its_verdict_is_not(tmp_path: Path) -> None:
    def opened(fingerprint: str) -> str:
        return Path(open_folder(str(tmp_path), fingerprint, datetime(2026, 3, 1, 12, tzinfo=UTC))).name

    assert [opened(name) for name in ("aa", "bb", "aa")] == ["20260301-120000", "20260301-120000-2", "20260301-120000"]
    (tmp_path / "20260301-120000" / VERDICT).touch()
    assert [opened(name) for name in ("aa", "aa", "bb")] == ["20260301-120000-3", "20260301-120000-3", "20260301-120000-2"]


def test_with_other_feedback_a_stopped_run_is_not_gone_on_with(
    judge: Judge, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []

    def stop(keys: list[str]) -> None:
        places.append(next(key for key in keys if key.startswith("out=")))
        config = compose(TrainConfig, "train", keys)
        assert (config.name, config.registry, config.trainer.epochs) == ("tiny", registry.url, 3)
        raise RunError("stopped")

    monkeypatch.setattr("pigeonhole.training.train.run", stop)
    given = [f"registry={registry.url}", f"log={tmp_path / 'log'}", f"rows={tmp_path / 'rows'}", "least_judged=30"]
    given.append("trainer.epochs=3")  # production had 20
    for part in (NEW[:30], [], NEW[30:]):
        judge([(row, "billing", ["delivery"]) for row in part])
        with pytest.raises(RunError, match="stopped"):
            run(given)
    assert places[0] == places[1] != places[2]


def test_a_machine_that_is_lost_before_the_verdict_costs_no_second_version(
    judge: Judge, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, Any]] = []

    def train(keys: list[str]) -> dict[str, Any]:
        trained.append({"version": f"version-{len(trained)}"})  # the run's own folder goes with its machine
        return trained[-1]

    monkeypatch.setattr("pigeonhole.training.train.run", train)
    judge([(row, "billing", ["delivery"]) for row in NEW])
    for _ in range(2):
        with pytest.raises(RegistryError, match="has no version 'version-0'"):
            run([f"registry={registry.url}", f"log={tmp_path / 'log'}", f"rows={tmp_path / 'rows'}", "least_judged=40"])
    assert len(trained) == 1


def test_what_the_gate_says_of_the_trained_version_ends_the_run_and_is_kept_beside_its_rows(
    judge: Judge, registry: Registry, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "second"))
    (folder / MANIFEST).unlink()
    first, second = bundle.manifest, seal(folder, msgspec.structs.replace(bundle.manifest, version="20990101-000000-0a1b2c3d"))
    registry.publish(folder, second)
    judge([(row, "billing", ["delivery"]) for row in NEW])
    given = [f"registry={registry.url}", f"log={tmp_path / 'log'}", f"rows={tmp_path / 'rows'}", "least_judged=40"]
    monkeypatch.setattr("pigeonhole.training.train.run", lambda _: {"version": second.version})
    with pytest.raises(GateError, match="REJECT: the model has") as caught:
        run([*given, "gate.size_mb=0.001"])
    monkeypatch.setattr("pigeonhole.training.train.run", lambda _: {"version": first.version})  # production, which passes
    results = [caught.value.result, run(given)]
    told = [msgspec.json.decode(path.read_bytes()) for path in sorted((tmp_path / "rows").glob(f"*/{VERDICT}"))]
    assert told == results
    assert [(verdict["decision"], verdict["candidate"]) for verdict in told] == [
        ("GATE", second.version),
        ("PROMOTED", first.version),
    ]
    assert told[0]["rows"] == {"train": 90 + 24, "validation": 30, "frozen": 30 + 16, "learned": 24, "set_aside": 16}
    assert {row.text for row in read_rows(DataConfig(path=told[0]["frozen"]))} & {row.text for row in NEW}
    assert all(verdict["seconds"]["total"] > 0 for verdict in told)


PROGRAM = Path(__file__).parent / "programs/retraining.py"
MOMENTS = (
    "frozen.csv$",  # feedback is read, some of the rows are written
    "checkpoint/",
    "versions/.*/manifest.json$",  # sealed, and all but published
    "metrics.json$",
    "production.json$",  # the gate has said yes
)


class World:
    """A registry and a log of its own, in which `retrain` runs as a process."""

    def __init__(self, server: ForkServer, origin: Path, folder: Path) -> None:
        self._server, self._folder = server, folder
        for name in ("registry", "log"):
            shutil.copytree(origin / name, folder / name)
        self.registry = Registry(str(folder / "registry"))

    def retrain(self, kill_at: str = "") -> int:
        places = (f"{name}={self._folder / place}" for name, place in PLACES.items())
        given = [*places, "least_judged=40", "gate.behaviour_floor=0"]
        return self._server.wait(self._server.start(PROGRAM, self._folder / "said", *given, KILL_AT=kill_at))

    @property
    def said(self) -> str:
        return (self._folder / "said").read_text()

    @property
    def history(self) -> list[tuple[str, str | None]]:
        return [(change.action, change.version) for change in self.registry.alias("tiny", "production").history]


PLACES = {"registry": "registry", "log": "log", "rows": "rows", "run": "runs"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL, not Windows")
def test_a_retraining_killed_in_each_of_its_phases_ends_as_one_that_nobody_disturbed(
    judge: Judge, registry: Registry, bundle: Bundle, tmp_path: Path
) -> None:
    judge([(row, "billing", ["delivery"]) for row in NEW])
    with ForkServer() as server:
        calm, killed = (World(server, tmp_path, tmp_path / name) for name in ("calm", "killed"))
        assert calm.retrain() == 0, calm.said
        for moment in MOMENTS:
            assert killed.retrain(moment) == -signal.SIGKILL, f"{moment}:\n{killed.said}"
        assert killed.retrain() == 0, killed.said
    first = bundle.manifest.version
    (second,) = set(killed.registry.versions("tiny")) - {first}
    assert killed.history == [("set", first), ("promote", second)]
    found, expected = (
        open_bundle(world.registry.version_url("tiny", world.history[-1][1] or "")).manifest for world in (killed, calm)
    )
    assert found.files["model.onnx"] == expected.files["model.onnx"]
    assert found.metrics["test"] == expected.metrics["test"]
