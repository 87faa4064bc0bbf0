import gc
import subprocess
import sys

import pytest

from pigeonhole.serving.settle import THRESHOLDS, settle

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


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is asked of Linux")
def test_code_of_libraries_is_given_back_and_still_runs() -> None:
    ran = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True, timeout=60)
    assert int(ran.stdout) > 5_000
