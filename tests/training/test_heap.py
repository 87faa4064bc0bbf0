import subprocess
import sys

import pytest

FAULTS_OF_100_PIECES = """
import resource
from pigeonhole.training.heap import keep_freed_memory
{call}
bytearray(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytearray(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator: needs Linux")
def test_memory_that_was_freed_is_not_fetched_from_the_system_again() -> None:
    faults = [
        int(
            subprocess.run([sys.executable, "-c", FAULTS_OF_100_PIECES.format(call=call)], capture_output=True, check=True).stdout
        )
        for call in ("", "keep_freed_memory()")
    ]
    assert faults[1] < 0.1 * faults[0]
