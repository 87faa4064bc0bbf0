import sys
from collections.abc import Iterator

import pytest
from tests.training.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    if sys.platform != "linux":
        pytest.skip("needs Linux: torch goes on after a fork there alone")
    with ForkServer() as server:
        yield server
