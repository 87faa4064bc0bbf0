import logging
import threading
import time

import pytest

from pigeonhole.serving.poller import Poller


def test_it_looks_again_and_again_even_after_a_failure_until_it_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    looks: list[float] = []
    enough = threading.Event()

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) == 5:
            enough.set()
        if len(looks) == 2:
            raise RuntimeError("once")

    poller = Poller("watch", look, 0.02)
    with caplog.at_level(logging.ERROR):
        poller.start()
        assert enough.wait(10)
    poller.stop()
    time.sleep(0.1)
    seen = len(looks)
    time.sleep(0.1)
    assert len(looks) == seen
    assert "watch: a look failed" in caplog.text
