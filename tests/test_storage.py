import errno
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.conftest import gs_at

from pigeonhole import storage
from pigeonhole.chaos.bucket import Bucket
from pigeonhole.chaos.faults import FaultProxy
from pigeonhole.errors import ConfigError, NotFoundError, StorageError
from pigeonhole.registry import Registry


@pytest.fixture(params=["file", "path", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "gs":
        return storage.join(request.getfixturevalue("bucket"), tmp_path.name)
    return f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def test_what_is_written_is_read_back(root: str) -> None:
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    storage.write(url, b"one\0")
    storage.write(url, b"two\0")
    assert storage.exists(url)
    assert storage.read(url) == b"two\0"
    with storage.open_read(url) as stream:
        assert (stream.readline(2), stream.read()) == (b"tw", b"o\0")


def test_of_a_file_no_more_is_read_than_is_asked_for(root: str) -> None:
    url = storage.join(root, "large.bin")
    storage.write(url, b"12345")
    assert storage.read(url, most=5) == storage.read(url) == b"12345"
    with pytest.raises(StorageError, match=r"large\.bin: has (more than 4|5) bytes"):
        storage.read(url, most=4)


def test_a_file_that_a_bucket_takes_in_pieces_is_created_once(bucket: str, tmp_path: Path) -> None:
    """Above 50 MiB: the weights of a bundle in fp32."""
    url = storage.join(bucket, tmp_path.name, "weights")
    data = b"begin" + bytes(51 << 20) + b"end"
    assert storage.create(url, data)
    assert not storage.create(url, data[:-3] + b"ing")
    assert storage.read(url) == data
    storage.write(url, data[5:])
    assert storage.read(url) == data[5:]


def test_a_file_is_copied_here_into_a_folder_that_is_made_for_it(root: str, tmp_path: Path) -> None:
    url, here = storage.join(root, "large.bin"), tmp_path / "here" / "large.bin"
    storage.write(url, bytes(300_000) + b"end")
    storage.download(url, here)
    assert here.read_bytes() == bytes(300_000) + b"end"
    with pytest.raises(NotFoundError, match="nothing: there is no such file"):
        storage.download(storage.join(root, "nothing"), tmp_path / "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
@pytest.mark.parametrize("write", [storage.write, storage.create], ids=["write", "create"])
def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it(
    write: Callable[[str, bytes], object], tmp_path: Path
) -> None:
    """A file size limit makes write(2) short, then fail, as a full disk does."""
    import resource

    storage.write(str(tmp_path / "kept"), b"old")
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, no_limit[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            write(str(tmp_path / "kept"), bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"


def test_a_missing_file_is_named(root: str) -> None:
    url = storage.join(root, "nothing")
    with pytest.raises(NotFoundError, match="nothing: there is no such file"):
        storage.read(url)


def test_create_never_overwrites(root: str) -> None:
    url = storage.join(root, "once")
    assert storage.create(url, b"first")
    assert not storage.create(url, b"second")
    assert storage.read(url) == b"first"
    assert storage.list_files(root) == ["once"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP])
def test_a_disk_without_hard_links_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"once: this disk has no hard links.*; choose a folder on another disk"):
        storage.create(str(tmp_path / "once"), b"first")
    assert not list(tmp_path.iterdir())


def test_swap_writes_only_over_the_version_that_was_read(root: str) -> None:
    url = storage.join(root, "alias.json")
    assert storage.read_versioned(url) == (b"", storage.ABSENT)
    assert storage.swap(url, b"1", storage.ABSENT)
    assert not storage.swap(url, b"2", storage.ABSENT)
    data, version = storage.read_versioned(url)
    assert data == b"1"
    assert storage.swap(url, b"2", version)
    assert not storage.swap(url, b"3", version)
    assert storage.read(url) == b"2"


@pytest.mark.parametrize(
    "change", [storage.create, lambda url, data: storage.swap(url, data, storage.ABSENT)], ids=["create", "swap"]
)
def test_of_sixteen_writers_at_once_one_wins(root: str, change: Callable[[str, bytes], bool]) -> None:
    url = storage.join(root, "race")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: change(url, b"%d" % number), range(16)))
    assert won.count(True) == 1
    assert storage.read(url) == b"%d" % won.index(True)


def test_a_swap_whose_answer_was_lost_is_no_defeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bucket(tmp_path / "bucket") as server, FaultProxy(server.server_port, seed=0) as proxy, gs_at(proxy.server_port):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url, version = "gs://bucket/alias.json", storage.ABSENT
        for data in (b"1", b"2"):
            monkeypatch.setattr(proxy, "next_fault", iter(("unheard", *[None] * 20)).__next__)
            assert storage.swap(url, data, version)
            found, version = storage.read_versioned(url)
            assert found == data
        assert not storage.swap(url, b"3", "1")
        server.shutdown()


def test_files_and_folders_are_listed_below_a_folder(root: str) -> None:
    for name in ("models/b/1.txt", "models/a/2.txt", "models/top.txt"):
        storage.write(storage.join(root, name), b"x")
    assert storage.list_files(storage.join(root, "models")) == ["a/2.txt", "b/1.txt", "top.txt"]
    assert storage.list_folders(storage.join(root, "models")) == ["a", "b"]
    assert storage.list_files(storage.join(root, "none")) == []
    assert storage.list_folders(storage.join(root, "none")) == []


def test_a_pattern_stands_for_the_files_that_fit_it_and_for_no_folder(root: str) -> None:
    names = ("a.csv", "b.txt", "folder.csv/c.csv")
    first, _, inner = (storage.to_url(storage.join(root, name)) for name in names)
    for name in names:
        storage.write(storage.join(root, name), b"x")
    assert storage.expand(storage.join(root, "*.csv")) == [first]
    assert storage.expand(storage.join(root, "**", "*.csv")) == [first, inner]


def test_what_another_process_writes_into_a_bucket_is_seen(bucket: str, tmp_path: Path) -> None:
    """fsspec keeps listings, and forgets them only where it wrote itself."""
    root = storage.join(bucket, tmp_path.name)
    filesystem = storage._filesystem(bucket)

    def put(name: str) -> None:
        place, path = f"{filesystem._location}/upload/storage/v1/b/bucket/o", f"{tmp_path.name}/{name}"
        filesystem.call("POST", place, uploadType="media", name=path, data=b"x")

    put("a/1")
    assert storage.list_folders(root) == ["a"]
    put("b/1")
    assert storage.list_folders(root) == ["a", "b"]
    assert storage.list_folders(f"{root}/b") == []
    _, version = storage.read_versioned(f"{root}/b/1")
    put("b/1")
    assert storage.read_versioned(f"{root}/b/1")[1] != version


def test_the_placeholder_of_a_folder_in_a_bucket_is_neither_a_file_nor_a_folder_in_it(bucket: str) -> None:
    """An empty object whose name ends with a slash, as the cloud's own pages make it for a new folder."""
    filesystem = storage._filesystem(bucket)
    for name in ("made/", "made/by-hand/"):
        filesystem.call("POST", f"{filesystem._location}/upload/storage/v1/b/bucket/o", uploadType="media", name=name, data=b"")
    storage.write(f"{bucket}/made/by-hand/a.txt", b"a")
    assert storage.list_files(f"{bucket}/made") == ["by-hand/a.txt"]
    assert storage.list_files(f"{bucket}/made/by-hand") == ["a.txt"]
    assert storage.list_folders(f"{bucket}/made") == ["by-hand"]
    assert storage.expand(f"{bucket}/made") == [f"{bucket}/made/by-hand/a.txt"]


def test_delete_takes_a_file_away(root: str) -> None:
    url = storage.join(root, "gone")
    storage.write(url, b"x")
    storage.delete(url)
    assert not storage.exists(url)
    with pytest.raises(NotFoundError):
        storage.delete(url)


def test_a_written_file_may_be_read_by_another_user_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    storage.write(str(tmp_path / "shared"), b"x")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_folder_in_place_of_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder, a file is needed"):
        storage.read(str(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices, not Windows")
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(StorageError, match="is a pipe or a device, a file is needed"):
            storage.read(path)
        with pytest.raises(StorageError, match="is a pipe or a device"), storage.open_read(path):
            pass
    with pytest.raises(StorageError, match="is a pipe or a device"):
        storage.download(str(tmp_path / "pipe"), tmp_path / "copy")


@pytest.mark.parametrize("host", ["nowhere.invalid", "127.0.0.1:9"])
def test_a_host_that_cannot_be_reached_is_no_file_that_is_not_there(host: str) -> None:
    with pytest.raises(StorageError, match=rf"^http://{host}/rows\.csv: (?!there is no such file)"):
        storage.open_read(f"http://{host}/rows.csv").__enter__()


@pytest.mark.parametrize("url", ["http://", "https:///rows.csv", "http://.example/rows.csv", "http://[::1/rows.csv"])
def test_an_address_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"expected https?://HOST/PATH"):
        storage.read(url)


def test_a_path_that_cannot_be_is_named_in_the_systems_own_words() -> None:
    with pytest.raises(StorageError, match="/dev/full/x: Not a directory"):
        storage.read("/dev/full/x")


def test_what_a_bucket_refuses_is_said_in_its_own_words(bucket: str) -> None:
    url = storage.join(bucket, "locked")
    storage.write(url, b"x")
    with pytest.raises(StorageError, match="gs://bucket/locked: no role for you, 401"):
        storage.read(url)


def test_an_error_of_the_reader_is_not_taken_for_one_of_the_store(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    storage.write(url, b"x")
    with pytest.raises(ZeroDivisionError), storage.open_read(url):
        raise ZeroDivisionError


def test_a_store_without_generations_cannot_hold_aliases() -> None:
    storage.write("memory://alias", b"x")
    with pytest.raises(StorageError, match="aliases need gs:// or file://"):
        storage.read_versioned("memory://alias")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="zebra:// cannot be used here"):
        storage.read("zebra://a/b")


def test_a_store_whose_client_is_not_installed_is_refused_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    storage.forget_clients()
    with pytest.raises(StorageError, match="gs:// cannot be used here: fsspec is not installed; uv sync --group store"):
        storage.read("gs://bucket/file")
    storage.forget_clients()


def test_a_package_url_is_a_path_inside_the_package() -> None:
    path = storage.local_path("package://pigeonhole/dataset/tickets/tickets.csv")
    assert path == Path(storage.__file__).parent / "dataset/tickets/tickets.csv"
    assert storage.read("package://pigeonhole/dataset/tickets/tickets.csv").startswith(b"text,label\n")


@pytest.mark.parametrize("url", ["package://pigeonhole/../secret", "package://a.b/c", "package:///c"])
def test_a_package_url_stays_inside_its_package(url: str) -> None:
    with pytest.raises(StorageError, match="expected package://MODULE/PATH"):
        storage.read(url)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(NotFoundError, match="the Python package zebra is not installed here"):
        storage.read("package://zebra/x")


def test_a_url_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.to_url("a/b") == f"file://{tmp_path}/a/b"
    assert storage.to_url("gs://bucket/a") == "gs://bucket/a"
    Path("circle").symlink_to("circle")
    with pytest.raises(StorageError, match="Too many levels of symbolic links"):
        storage.read(storage.join(storage.to_url("circle"), "manifest.json"))


def test_a_folder_that_cannot_be_written_is_told_without_the_name_that_was_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as raised:
        storage.require_writable("out", str(tmp_path / "file" / "run"))
    assert str(raised.value).startswith(f"out={tmp_path}/file/run: cannot be written (")
    assert ".writable" not in str(raised.value)


def test_two_at_one_time_may_ask_whether_a_folder_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    written = storage.write

    def meanwhile(url: str, data: bytes) -> None:
        written(url, data)
        if not asked:
            asked.append(url)
            storage.require_writable("out", str(tmp_path))

    monkeypatch.setattr(storage, "write", meanwhile)
    storage.require_writable("out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_url_that_is_empty_is_not_the_root_of_this_machine() -> None:
    """`registry=$REGISTRY`, where that is not set: in a container everything would go to /models."""
    with pytest.raises(ConfigError, match=r"registry=: cannot be written .*an empty URL names no folder"):
        storage.require_writable("registry", "")
    assert storage.join("/", "models") == "/models"


@pytest.mark.parametrize("url", ["gs://", "gs:///", "file://"])
def test_a_url_that_names_no_place_is_refused_and_no_folder_of_that_name_is_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"registry={url}: cannot be written .*names no bucket or folder"):
        storage.require_writable("registry", url)
    with pytest.raises(StorageError, match=f"^{url}: names no bucket or folder; expected "):
        Registry(url)
    with pytest.raises(StorageError, match=f"^{url}: (names no bucket; expected gs://BUCKET/PATH|is a folder)"):
        storage.read(url)
    assert list(tmp_path.iterdir()) == []
