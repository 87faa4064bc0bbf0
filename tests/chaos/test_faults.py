import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pigeonhole.chaos.bucket import Bucket, Objects
from pigeonhole.chaos.faults import Fault, FaultProxy


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    with Bucket(tmp_path / "bucket") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def upload(port: int, name: str) -> tuple[int, bytes]:
    """Raises OSError or HTTPException where there is no whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}&ifGenerationMatch=0", b"data")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "status", "written"),
    [
        ("429", 429, False),
        ("500", 500, False),
        ("503", 503, False),
        ("truncated", None, True),
        ("unheard", None, True),
        ("cut", None, False),
        ("refused", None, False),
    ],
)
def test_each_fault_is_what_it_says(fault: Fault, status: int | None, written: bool, bucket: Bucket) -> None:
    with FaultProxy(bucket.server_port, seed=0) as proxy:
        assert upload(proxy.server_port, "first")[0] == 200
        proxy.faults = (fault,)
        if status is None:
            with pytest.raises((OSError, http.client.HTTPException)):
                upload(proxy.server_port, "second")
        else:
            assert upload(proxy.server_port, "second")[0] == status
        proxy.faults = ()
        assert upload(proxy.server_port, "second")[0] == (412 if written else 200)
    assert proxy.met == {"none": 2, fault: 1}


def test_a_store_that_is_not_there_gives_no_answer(bucket: Bucket) -> None:
    with FaultProxy(1, seed=0) as proxy, pytest.raises((OSError, http.client.HTTPException)):
        upload(proxy.server_port, "first")


def test_a_bucket_comes_back_with_what_it_had(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    assert objects.write("a/b", b"1", 0) == 1
    assert objects.write("a/b", b"2", 0) is None
    assert objects.write("a/b", b"3", 1) == 2
    assert objects.write("gone", b"x", None) == 1
    assert objects.delete("gone")
    (tmp_path / "half.tmp").write_bytes(b"killed here")
    again = Objects(tmp_path)
    assert again.read("a/b") == b"3"
    assert again.generations == {"a/b": 2}
    assert not again.delete("gone")


def test_a_long_listing_comes_in_pages(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    for number in range(1200):
        objects.write(f"log/{number:04}", b"", None)
    first = objects.listing("log/", "", "")
    second = objects.listing("log/", "", first["nextPageToken"])
    assert [len(first["items"]), len(second["items"]), "nextPageToken" in second] == [1000, 200, False]
