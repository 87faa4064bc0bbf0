"""DVC with a bucket: push, status and pull over Cloud Storage's own API, of which chaos/bucket.py is as much as they meet."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.exceptions import CheckoutError
from dvc.repo import Repo

from pigeonhole.chaos.bucket import Bucket
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.materialise import materialise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with Bucket(tmp_path / "bucket") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def clone(folder: Path, bucket: Bucket | None) -> Repo:
    """A clone with the repository's data.dvc and DVC settings; with a bucket, that is its remote."""
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    shutil.copy(ROOT / "data.dvc", folder / "data.dvc")
    repo = Repo.init(str(folder), no_scm=True, force=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    with repo.config.edit("local") as config:
        config["core"] = {"no_scm": True}
        if bucket:
            address = f"http://127.0.0.1:{bucket.server_port}"
            remote = {"url": "gs://bucket/dvc", "endpointurl": address, "allow_anonymous_login": True, "verify": True}
            config["remote"] = {"gcs": remote}
            config["core"]["remote"] = "gcs"
    return Repo(str(folder))


def pushed(folder: Path, bucket: Bucket | None) -> Repo:
    repo = clone(folder, bucket)
    materialise(str(folder / "data"))
    repo.commit()  # refuses bytes that are not those of data.dvc
    assert repo.push() == 4  # three files and their list
    return repo


def test_data_pushed_by_one_clone_are_pulled_by_another_and_are_what_train_reads(bucket: Bucket, tmp_path: Path) -> None:
    here, there = pushed(tmp_path / "here", bucket), clone(tmp_path / "there", bucket)
    assert [name.split("/")[:3] for name in bucket.objects.generations] == [["dvc", "files", "md5"]] * 4
    assert here.status(cloud=True) == {}
    assert there.status(cloud=True) != {}
    there.pull()
    assert there.status(cloud=True) == {}
    recorded = yaml.safe_load((ROOT / "data.dvc").read_text(encoding="utf-8"))["outs"][0]["md5"]
    assert f"dvc/files/md5/{recorded[:2]}/{recorded[2:]}" in bucket.objects.generations
    pulled = load_dataset(DataConfig(path=str(tmp_path / "there/data/tickets.csv")))
    assert pulled.sha256 == load_dataset(DataConfig()).sha256


def test_without_a_bucket_the_remote_of_the_settings_as_committed_takes_the_data_and_gives_them_back(tmp_path: Path) -> None:
    pushed(tmp_path, None)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / ".dvc/cache")
    Repo(str(tmp_path)).pull()
    assert load_dataset(DataConfig(path=str(tmp_path / "data/tickets.csv"))).sha256 == load_dataset(DataConfig()).sha256


def test_nothing_is_sent_twice(bucket: Bucket, tmp_path: Path) -> None:
    here = pushed(tmp_path / "here", bucket)
    before = dict(bucket.objects.generations)
    assert here.push() == 0
    assert bucket.objects.generations == before


def test_bytes_that_changed_in_the_bucket_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    pushed(tmp_path / "here", bucket)
    there = clone(tmp_path / "there", bucket)
    objects = bucket.objects
    name = next(name for name in objects.generations if b"lost" in objects.read(name))
    objects.write(name, objects.read(name).replace(b"lost", b"found"), None)
    with pytest.raises(CheckoutError):
        there.pull()
