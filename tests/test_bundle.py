import hashlib
import json
import os
import shutil
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import fsspec
import msgspec
import numpy as np
import pytest

from pigeonhole import bundle, storage
from pigeonhole.bundle import MANIFEST, Manifest, Precision, open_bundle, read_golden, read_manifest, seal
from pigeonhole.classifier import Classifier
from pigeonhole.errors import BundleError, StorageError

MODELS = ["model.int8.onnx", "model.int8.onnx.data", "model.onnx", "model.onnx.data"]
FILES = ["README.md", "golden.json", *MODELS, "reference.parquet", "tokenizer.json"]


def reseal(folder: Path, **changes: Any) -> None:
    """Seal a folder again with other manifest fields, as somebody with a broken exporter would."""
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    manifest.update(changes)
    manifest["seal"] = "0" * 64
    loose = msgspec.json.encode(manifest)
    (folder / MANIFEST).write_bytes(loose)
    digest = hashlib.sha256(loose).hexdigest()
    (folder / MANIFEST).write_bytes(loose.replace(b"0" * 64, digest.encode()))


def test_a_sealed_bundle_opens_and_lists_every_file(sealed_bundle: Path) -> None:
    opened = open_bundle(str(sealed_bundle))
    assert sorted(opened.manifest.files) == FILES
    assert opened.manifest.labels == ("account", "billing", "delivery")
    assert opened.manifest.files["model.onnx"].size_bytes == (sealed_bundle / "model.onnx").stat().st_size


def test_the_size_of_a_model_is_that_of_its_graph_and_of_the_weights_beside_it(sealed_bundle: Path) -> None:
    manifest = open_bundle(str(sealed_bundle)).manifest
    assert manifest.size_bytes("int8") == sum((sealed_bundle / name).stat().st_size for name in MODELS[:2])
    inside = msgspec.structs.replace(manifest, files={name: manifest.files[name] for name in FILES if not name.endswith(".data")})
    assert inside.size_bytes("fp32") == (sealed_bundle / "model.onnx").stat().st_size


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_changed_byte_is_refused_with_the_files_name(tiny_bundle: Path, name: str) -> None:
    data = bytearray((tiny_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_bundle(str(tiny_bundle))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(str(tiny_bundle))


@pytest.mark.parametrize(("task", "more"), [("multi_label", {}), ("single_label", {"accept_score": 0.5})])
def test_accept_score_is_there_for_several_labels_and_only_for_them(tiny_bundle: Path, task: str, more: dict[str, float]) -> None:
    reseal(tiny_bundle, task=task, **more)
    with pytest.raises(BundleError, match="accept_score has to be there where task is multi_label, and only there"):
        open_bundle(str(tiny_bundle))
    reseal(tiny_bundle, task="multi_label", accept_score=0.5)
    assert open_bundle(str(tiny_bundle)).manifest.accept_score == 0.5


def test_a_folder_without_a_manifest_says_what_a_bundle_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is missing; a bundle is the folder"):
        open_bundle(str(tmp_path))


def test_an_archive_is_refused_and_nothing_of_it_is_unpacked(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "tar", tiny_bundle)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=r"packed\.tar: this is a file, and a bundle is a folder; no archive is ever unpacked"):
        open_bundle(str(tmp_path / "packed.tar"))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_extra_file_is_refused_by_name(tiny_bundle: Path) -> None:
    (tiny_bundle / "config.json").write_text('{"auto_map": {"AutoModel": "evil.py"}}')
    with pytest.raises(BundleError, match=r"'config\.json' is not listed"):
        open_bundle(str(tiny_bundle))


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe in a folder, not Windows")
def test_a_folder_or_a_pipe_in_a_bundle_is_refused_by_name(tiny_bundle: Path) -> None:
    (tiny_bundle / "sub").mkdir()
    with pytest.raises(BundleError, match="'sub' is not listed"):
        open_bundle(str(tiny_bundle))
    (tiny_bundle / "sub").rmdir()
    os.mkfifo(tiny_bundle / "pipe")
    with pytest.raises(BundleError, match="'pipe' is not listed"):
        open_bundle(str(tiny_bundle))


def test_a_truncated_file_is_refused_with_both_sizes(tiny_bundle: Path) -> None:
    data = (tiny_bundle / "model.onnx").read_bytes()
    (tiny_bundle / "model.onnx").write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"model.onnx has {len(data) - 1} bytes where {len(data)} were sealed"):
        open_bundle(str(tiny_bundle))


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"), (b"<!DOCTYPE html><html>", "HTML page")],
)
def test_a_pointer_or_a_web_page_in_place_of_the_model_is_named(tiny_bundle: Path, content: bytes, hint: str) -> None:
    (tiny_bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=f"model.onnx.*{hint}"):
        open_bundle(str(tiny_bundle))


def test_a_link_out_of_the_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.move(tiny_bundle / "model.onnx", tmp_path / "elsewhere.onnx")
    (tiny_bundle / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx is not an ordinary file"):
        open_bundle(str(tiny_bundle))
    shutil.move(tiny_bundle / MANIFEST, tmp_path / MANIFEST)
    shutil.move(tmp_path / "elsewhere.onnx", tiny_bundle / "model.onnx")
    (tiny_bundle / MANIFEST).symlink_to(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match=r"manifest\.json is not an ordinary file"):
        open_bundle(str(tiny_bundle))


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_a_file_as_large_as_a_disk_is_refused_by_its_size_alone(
    tiny_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole takes no room on the disk; its zeros take minutes to hash, and all memory to hold."""
    read, digest = Path.read_bytes, bundle._digest
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it is read") if path.name == name else read(path))
    monkeypatch.setattr(bundle, "_digest", lambda path: pytest.fail("it is hashed") if path.name == name else digest(path))
    os.truncate(tiny_bundle / name, 1 << 40)
    with pytest.raises((BundleError, StorageError), match=rf"{name}.*has 1,?099,?511,?627,?776 bytes"):
        open_bundle(str(tiny_bundle))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, r"max_length"),
        ({"temperature": 0}, r"temperature"),
        ({"temperature": -1.5}, r"temperature"),
        ({"temperature": 1e-320}, r"temperature"),
        ({"vector_scaling": {"scale": [1e308, 1, 1], "bias": [0, 0, 0]}}, r"vector_scaling"),
        ({"labels": ["a", "a", "b"]}, r"labels \['a'\] stand more than once"),
        ({"labels": ["caf\u00e9", "cafe\u0301", "b"]}, r"labels \['caf.'\] stand more than once"),
        ({"labels": ["a", " ", "b"]}, r"labels holds one of spaces alone"),
        ({"labels": ["one"]}, r"labels"),
        ({"labels": ["one", ""]}, r"labels"),
        ({"thresholds": {"account": 0.5}}, r"thresholds must name each label once"),
        ({"thresholds": {"account": 1.5, "billing": 0.5, "delivery": 0.5}}, r"thresholds"),
        ({"schema_version": 0}, r"schema_version"),
        ({"schema_version": 2}, r"schema_version 2, a newer Pigeonhole sealed it; this one reads up to 1: install the version"),
        ({"schema_version": 2, "surprise": 1}, r"schema_version 2, a newer Pigeonhole"),
        ({"files": {"../evil": {"sha256": "0" * 64, "size_bytes": 1}}}, r"key|pattern|files"),
        ({"served": "int4"}, r"served"),
        ({"models": {"fp32": "model.onnx"}}, r"served is int8, models has"),
        ({"models": {"fp32": "other.onnx", "int8": "model.int8.onnx"}}, r"files does not list \['other.onnx'\]"),
        ({"surprise": 1}, r"surprise"),
    ],
)
def test_a_manifest_that_means_nothing_is_refused(tiny_bundle: Path, changes: dict[str, Any], message: str) -> None:
    reseal(tiny_bundle, **changes)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*({message})"):
        open_bundle(str(tiny_bundle))


def test_a_manifest_that_is_nested_without_end_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / MANIFEST).write_bytes(b'{"metrics":' + b'{"a":' * 100_000)
    with pytest.raises(BundleError, match=r"manifest\.json: (maximum recursion depth|Input data was truncated)"):
        open_bundle(str(tiny_bundle))


def test_not_a_number_is_no_threshold(tiny_bundle: Path) -> None:
    text = (tiny_bundle / MANIFEST).read_text()
    (tiny_bundle / MANIFEST).write_text(text.replace('"temperature": ', '"temperature": NaN, "was": ', 1))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(str(tiny_bundle))


def test_a_version_1_bundle_of_today_opens_tomorrow(tiny_bundle: Path) -> None:
    fields = json.loads((tiny_bundle / MANIFEST).read_text())
    assert fields["schema_version"] == 1
    assert set(fields) == set(Manifest.__struct_fields__)


def test_sealing_again_gives_a_bundle_that_opens(tiny_bundle: Path) -> None:
    manifest = open_bundle(str(tiny_bundle)).manifest
    sealed = seal(tiny_bundle, msgspec.structs.replace(manifest, temperature=2.5))
    assert open_bundle(str(tiny_bundle)).manifest == sealed
    assert sealed.temperature == 2.5


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'[{"text": "a", "logits": {"fp32": [1.0]}}]',
        b'[{"text": "' + b"a" * 10_001 + b'", "logits": {"fp32": [1, 2, 3]}}]',
        b"[" + b'{"text": "a", "logits": {"fp32": [1, 2, 3]}},' * 100 + b'{"text": "a", "logits": {"fp32": [1, 2, 3]}}]',
    ],
    ids=["none", "no list", "few logits", "a long text", "many"],
)
def test_golden_answers_of_another_shape_are_refused(tiny_bundle: Path, content: bytes) -> None:
    (tiny_bundle / "golden.json").write_bytes(content)
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    seal(tiny_bundle, manifest)
    with pytest.raises(BundleError, match=r"golden\.json"):
        read_golden(open_bundle(str(tiny_bundle)))


def test_a_remote_bundle_is_copied_whole_before_it_is_verified(sealed_bundle: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed_bundle), "/models/tiny", recursive=True)
    opened = open_bundle("memory://models/tiny")
    assert sorted(path.name for path in opened.folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert (opened.folder / "model.onnx").read_bytes() == (sealed_bundle / "model.onnx").read_bytes()


@pytest.mark.parametrize(("models", "left"), [("served", "model.onnx"), ("int8", "model.onnx"), ("fp32", "model.int8.onnx")])
def test_of_a_remote_bundle_only_the_model_that_is_asked_for_is_copied(
    sealed_bundle: Path, models: Literal["served", "int8", "fp32"], left: str
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed_bundle), f"/some/{models}", recursive=True)
    memory.pipe_file(f"/some/{models}/{left}.data", b"nobody reads this")
    opened = open_bundle(f"memory://some/{models}", models)
    left_out = {left, f"{left}.data"}
    assert sorted(path.name for path in opened.folder.iterdir()) == sorted({*FILES, MANIFEST} - left_out)
    asked: Precision = "int8" if models == "served" else models
    found, expected = (Classifier.open(each, asked) for each in (opened, open_bundle(str(sealed_bundle))))
    assert np.array_equal(found.predict(["a parcel"])[0].logits, expected.predict(["a parcel"])[0].logits)
    memory.rm_file(f"/some/{models}/{left}")
    with pytest.raises(BundleError, match=f"{left} is missing"):
        open_bundle(f"memory://some/{models}", models)


def test_a_model_that_two_precisions_share_is_copied(sealed_bundle: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed_bundle), "/some/shared", recursive=True)
    manifest = read_manifest(str(sealed_bundle))
    shared = msgspec.structs.replace(manifest, models={"fp32": "model.onnx", "int8": "model.onnx"})
    assert (bundle._complete("memory://some/shared", None, shared, "served") / "model.onnx").exists()


def test_a_file_of_a_remote_bundle_that_is_larger_than_it_was_sealed_is_not_fetched(
    sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed_bundle), "/some/larger", recursive=True)
    memory.pipe_file("/some/larger/model.onnx", b"0" * 1_000_000)
    fetched: list[str] = []
    monkeypatch.setattr(storage, "download", lambda url, path: fetched.append(url))
    with pytest.raises(BundleError, match=r"model\.onnx has 1000000 bytes where \d+ were sealed$"):
        open_bundle("memory://some/larger", "fp32")
    assert fetched == []


def test_a_bundle_is_read_from_a_web_server_whose_list_of_files_tells_no_sizes(sealed_bundle: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(sealed_bundle))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            opened = open_bundle(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert (opened.folder / "model.onnx").read_bytes() == (sealed_bundle / "model.onnx").read_bytes()


@pytest.mark.parametrize("wrong", ["changed", "gone"])
def test_the_copy_of_a_remote_bundle_that_is_refused_does_not_stay_on_the_disk(
    sealed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed_bundle), f"/refused/{wrong}", recursive=True)
    memory.pipe_file(f"/refused/{wrong}/model.onnx", b"zebra")
    download = storage.download

    def away(url: str, path: Path) -> None:
        if url.endswith("tokenizer.json"):
            raise StorageError(f"{url}: away")
        download(url, path)

    if wrong == "gone":
        monkeypatch.setattr(storage, "download", away)
    with pytest.raises(StorageError if wrong == "gone" else BundleError):
        open_bundle(f"memory://refused/{wrong}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("created_at", ["", "yesterday", "2026-13-01T12:00:00Z", "2026-03-01T12:00:00"])
def test_a_bundle_that_was_made_at_no_time_is_refused(tiny_bundle: Path, created_at: str) -> None:
    reseal(tiny_bundle, created_at=created_at)
    with pytest.raises(BundleError, match=r"created_at is .*, expected a time with its zone such as 2026-03-01T12:00:00\+00:00"):
        open_bundle(str(tiny_bundle))


def test_a_path_that_the_system_does_not_look_at_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        open_bundle(str(tmp_path / ("x" * 300)))


def test_a_file_that_this_account_may_not_read_is_told_in_a_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:  # root, as which tests may run, reads whatever its mode
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pigeonhole.bundle._digest", denied)
    with pytest.raises(BundleError, match=r"cannot be read \(Permission denied\); check its permissions"):
        open_bundle(str(tiny_bundle))
