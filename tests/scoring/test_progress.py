import pytest

from pigeonhole.scoring.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_time_left_and_cost_count_from_the_first_shards_beginning() -> None:
    clock = Clock()
    progress = Progress(10_000, 4_000, core_usd_per_hour=3.6, clock=clock)
    assert progress.rows_per_second == 0
    assert "unknown" in progress.line()
    clock.now += 60  # the start of the actors
    progress.add(1_000, 10, took_s=10)
    assert progress.rows_per_second == 100
    assert progress.line() == ("5,000 of 10,000 rows, 10 bad, 100 rows/s, 5,000 left (0:00:50), 0.0100 USD so far, 0.0600 in all")


def test_it_tells_every_five_seconds_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(100, 0, 0.0, clock)
    told = []
    for seconds in (1, 1, 4, 1, 0):
        clock.now += seconds
        progress.add(20, 0, took_s=1.0)
        told.append(capsys.readouterr().err.count("\n"))
    assert told == [0, 0, 1, 0, 1]
