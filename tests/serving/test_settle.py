import gc
import subprocess
import sys

import pytest

from pigeonhole.serving.settle import THRESHOLDS, read_only, settle

LIBRARIES = """
import numpy, onnxruntime, tokenizers
from pathlib import Path
from pigeonhole.serving.settle import give_back

def mapped_kb():
    return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0])

before = mapped_kb()
give_back()
after = mapped_kb()
assert numpy.linalg.inv(numpy.eye(2)).tolist() == [[1, 0], [0, 1]]
print(before - after)
"""


def test_what_was_loaded_is_no_more_work_for_the_garbage_collector() -> None:
    usual = gc.get_threshold()
    gc.disable()
    kept: list[list[int]] = [[] for _ in range(1000)]
    try:
        settle()
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
        assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: it says what is mapped")
def test_what_a_start_read_of_libraries_is_given_back_and_still_runs() -> None:
    ran = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True, timeout=60)
    assert int(ran.stdout) > 20_000


def mapping(start: int, end: int, access: str, file: str = "/lib/a.so", changed_kb: int = 0) -> list[str]:
    inode = 7 if file else 0
    return [f"{start:x}-{end:x} {access} 00000000 fe:00 {inode}      {file}", "Rss:    64 kB", f"Anonymous:    {changed_kb} kB"]


def test_only_what_lies_below_a_librarys_writable_part_is_let_go() -> None:
    loaded = [*mapping(0x1000, 0x2000, "r--p"), *mapping(0x2000, 0x5000, "r-xp"), *mapping(0x5000, 0x6000, "rw-p", changed_kb=4)]
    assert read_only(loaded) == [(0x1000, 0x2000), (0x2000, 0x5000)]
    # what the loader is still at: the writable part may come in the place of what is read-only now
    assert read_only([*mapping(0x1000, 0x6000, "r--p")]) == []
    assert read_only([*mapping(0x1000, 0x2000, "r--p"), *mapping(0x2000, 0x6000, "r-xp")]) == []
    beside = [*mapping(0x7000, 0x9000, "r--p", "/lib/b.so"), *mapping(0x9000, 0xA000, "rw-p", "/lib/c.so")]
    assert read_only([*loaded, *mapping(0x6000, 0x7000, "r--p"), *beside]) == [(0x1000, 0x2000), (0x2000, 0x5000)]


def test_pages_that_somebody_changed_stay() -> None:
    code = [*mapping(0x1000, 0x2000, "r--p"), *mapping(0x2000, 0x5000, "r-xp", changed_kb=4)]
    moved = mapping(0x5000, 0x6000, "r--p", changed_kb=4)  # the table of addresses, closed after it was filled
    assert read_only([*code, *moved, *mapping(0x6000, 0x7000, "rw-p")]) == [(0x1000, 0x2000)]
    nameless = [*mapping(0x7000, 0x8000, "r--p", ""), *mapping(0x8000, 0x9000, "rw-p", "")]
    assert read_only(nameless) == []
