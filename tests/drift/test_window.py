import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import tiny_rows
from tests.drift.conftest import NOON
from tests.keyword_bundle import keyword_bundle

from pigeonhole.bundle import Bundle, seal
from pigeonhole.drift.detectors import detect
from pigeonhole.drift.settings import Settings
from pigeonhole.drift.window import live_url, read_reference, read_sample
from pigeonhole.errors import BundleError, RegistryError
from pigeonhole.prediction_log import Record, new_id
from pigeonhole.prediction_log.record import encode_line, partition_of
from pigeonhole.registry import Registry

HOUR = timedelta(hours=1)
COUNTS = ("n_chars", "n_words", "n_tokens", "unknown_tokens")
TEXTS = [text for text, _ in tiny_rows()]


def test_the_reference_is_what_the_bundle_kept(bundle: Bundle) -> None:
    found = read_reference(bundle.url)
    table = pq.read_table(bundle.path("reference.parquet")).to_pydict()
    assert [found.labels[number] for number in found.rows.label_ids] == table["label"]
    assert found.rows.max_logits.tolist() == table["max_logit"]
    assert found.rows.scores.tolist() == table["score"]
    for name in COUNTS:
        assert getattr(found.rows, name).tolist() == table[name]
    assert found.accuracy == bundle.manifest.metrics["test"]["accuracy"]


def test_the_live_bundle_is_the_one_promoted_last_unless_one_is_named(settings: Settings, bundle: Bundle) -> None:
    assert live_url(settings).endswith(bundle.manifest.version)
    assert live_url(replace(settings, bundle="file:///elsewhere")) == "file:///elsewhere"


def test_an_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="uv run train"):
        live_url(Settings(registry=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no reference.parquet"),
        (b"not parquet", "cannot be read"),
        ("score", "has no column embedding, label, max_logit"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(
    tiny_bundle: Path, bundle: Bundle, content: bytes | str | None, said: str
) -> None:
    path = tiny_bundle / "reference.parquet"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pq.write_table(pa.table({content: [0.5]}), path)
    seal(tiny_bundle, bundle.manifest)
    with pytest.raises(BundleError, match=said):
        read_reference(str(tiny_bundle))


def test_a_reference_that_was_changed_after_it_was_sealed_is_refused(tiny_bundle: Path) -> None:
    path = tiny_bundle / "reference.parquet"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="not what was sealed"):
        read_reference(str(tiny_bundle))


def test_a_sample_holds_the_features_of_the_window_alone(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    inside, outside = records_of(TEXTS[:40]), records_of(TEXTS[40:60], NOON + HOUR)
    write_log([*inside, *outside])
    found = read_sample(settings.log, NOON, NOON + HOUR, read_reference(bundle.url))
    assert found.found == 40
    assert sorted(found.rows.scores.tolist()) == sorted(record.score for record in inside)
    assert sorted(found.rows.n_chars.tolist()) == sorted(len(text) for text in TEXTS[:40])
    assert sorted(found.rows.max_logits.tolist()) == sorted(record.features.max_logit for record in inside)
    for name in COUNTS:
        assert sorted(getattr(found.rows, name).tolist()) == sorted(getattr(record.features, name) for record in inside)


def test_other_versions_and_unknown_labels_are_counted_and_never_mixed_in(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    older = records_of(TEXTS[:5], version="20250101-000000-00000000")
    foreign = records_of(TEXTS[:2], model="another")
    strange = records_of(TEXTS[:3], label="a label of nobody")
    write_log([*older, *foreign, *strange, *records_of(TEXTS[:30])])
    found = read_sample(settings.log, NOON, NOON + HOUR, read_reference(bundle.url))
    assert (found.found, len(found.rows), found.other_versions, found.unknown_labels) == (30, 30, 7, 3)


def test_a_large_window_is_sampled_evenly(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    write_log(records_of(TEXTS))
    reference = read_reference(bundle.url)
    samples = [read_sample(settings.log, NOON, NOON + HOUR, reference, seed, most=50) for seed in range(20)]
    assert {(each.found, len(each.rows)) for each in samples} == {(150, 50)}
    everything = read_sample(settings.log, NOON, NOON + HOUR, reference).rows
    means = [each.rows.n_chars.mean() for each in samples]
    error = everything.n_chars.std() / np.sqrt(50 * 20)
    assert np.mean(means) == pytest.approx(everything.n_chars.mean(), abs=4 * error)


def test_early_and_late_records_of_a_large_window_are_as_likely_to_be_sampled(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    """Each has a number of characters of its own. In 300 samples of 5 out of 50 it is there 30 times, plus or minus 5."""
    [one] = records_of(TEXTS[:1])
    features = [msgspec.structs.replace(one.features, n_chars=number) for number in range(50)]
    write_log(
        [
            msgspec.structs.replace(one, prediction_id=new_id(), at=NOON + timedelta(seconds=number), features=each)
            for number, each in enumerate(features)
        ]
    )
    reference = read_reference(bundle.url)
    taken = np.zeros(50)
    for seed in range(300):
        taken[read_sample(settings.log, NOON, NOON + HOUR, reference, seed, most=5).rows.n_chars] += 1
    for part in (taken[:5], taken[5:25], taken[25:45], taken[45:]):
        assert part.mean() == pytest.approx(30, abs=4 * 5 / np.sqrt(len(part)))


def test_an_empty_log_gives_an_empty_sample(settings: Settings, bundle: Bundle) -> None:
    found = read_sample(settings.log, NOON, NOON + HOUR, read_reference(bundle.url))
    assert (found.found, len(found.rows)) == (0, 0)


def test_whatever_is_wrong_in_the_log_the_numbers_are_those_of_the_sound_records(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]]
) -> None:
    """Broken objects of both kinds, torn and doubled lines, other schemas, another hour's, tomorrow's, another version's."""
    sound = records_of(TEXTS[:40])
    lines = [encode_line(record) for record in sound]
    tomorrow = encode_line(records_of(["x"], datetime.now(UTC) + timedelta(days=1))[0])
    body = encode_line(records_of(["x"])[0]).rpartition(b',"crc32"')[0]
    schemas = [body.replace(b'"schema_version":1', b'"schema_version":%d' % version) for version in (0, 2, -1)]
    objects = {
        "good.jsonl.gz": gzip.compress(b"".join(lines)),
        "torn.jsonl.gz": gzip.compress(b"".join([lines[0][:90], b"\n", lines[1].replace(b'"score"', b'"scare"')])),
        "half.jsonl.gz": gzip.compress(b"".join(lines))[:-200],
        "nothing.jsonl.gz": b"",
        "nonsense.parquet": b"PAR1 and then nothing",
        "schemas.jsonl.gz": gzip.compress(b"".join(b'%b,"crc32":"%08x"}\n' % (each, zlib.crc32(each)) for each in schemas)),
        "misplaced.jsonl.gz": gzip.compress(tomorrow + encode_line(records_of(["x"], NOON + HOUR)[0])),
        "another.jsonl.gz": gzip.compress(encode_line(records_of(["x"], version="another")[0])),
    }
    folder = Path(settings.log) / "predictions" / partition_of(NOON)
    folder.mkdir(parents=True)
    for name, data in objects.items():
        (folder / name).write_bytes(data)
    for table, name in ((pa.table({"line": ["text"]}), "text"), (pa.table({"row": [b"x"]}), "row")):
        pq.write_table(table, folder / f"{name}.parquet")
    pq.write_table(pa.table({"line": pa.array([lines[2].strip(), None], pa.binary())}), folder / "null.parquet")
    found = read_sample(settings.log, NOON, NOON + HOUR, read_reference(bundle.url))
    assert found.found == 40
    assert sorted(found.rows.scores.tolist()) == sorted(record.score for record in sound)
    counts = found.counts
    assert (found.other_versions, counts["unknown_versions"], counts["misplaced"], counts["damaged_objects"]) == (1, 3, 2, 5)
    assert counts["torn"] == 3
    assert counts["duplicates"] >= 1


def test_records_of_before_sketches_leave_the_embedding_detector_out(
    settings: Settings, bundle: Bundle, records_of: Callable[..., list[Record]], write_log: Callable[[list[Record]], None]
) -> None:
    made = records_of(TEXTS[:60])
    older = [
        msgspec.structs.replace(record, features=msgspec.structs.replace(record.features, sketch=sketch))
        for record, sketch in zip(made[:3], (None, [], [0.5] * 8), strict=True)
    ]
    write_log([*made[3:], *older])
    reference = read_reference(bundle.url)
    sample = read_sample(settings.log, NOON, NOON + HOUR, reference)
    assert np.isnan(sample.rows.sketches).all(axis=1).sum() == 3
    assert "embedding" not in {finding.detector for finding in detect(reference.rows, sample.rows)}
    assert np.isfinite(reference.rows.sketches).all()


def test_of_several_models_the_one_promoted_last_is_watched_unless_one_is_named(
    settings: Settings, bundle: Bundle, tmp_path: Path
) -> None:
    registry = Registry(settings.registry)
    other = keyword_bundle(tmp_path / "keywords", "v1")
    registry.publish(other.folder, other.manifest)
    registry.set_alias("keywords", "candidate", "v1", "trained", expected=None)
    assert live_url(settings).endswith(bundle.manifest.version)
    registry.set_alias("keywords", "production", "v1", "later", expected=None)
    assert live_url(settings) == registry.version_url("keywords", "v1")
    assert live_url(replace(settings, model=bundle.manifest.name)).endswith(bundle.manifest.version)
    registry.set_alias("keywords", "production", None, "withdrawn", expected="v1")
    assert live_url(settings).endswith(bundle.manifest.version)
