import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scoring.conftest import write_csv

from pigeonhole.bundle import open_bundle
from pigeonhole.errors import BundleError, NotFoundError, RunError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.engine import Cluster, Job, Scorer, local_cores, read_block, without_files
from pigeonhole.scoring.plan import Shard, make_plan, make_shards
from pigeonhole.scoring.source import Wanted, scan


@pytest.fixture
def job(config: ScoreConfig, tmp_path: Path) -> Job:
    write_csv(tmp_path / "in.csv", ["text", "where is my parcel", " ", "the invoice is wrong"])
    source = scan([config.input], Wanted("text", None, 8192))
    plan = make_plan(config, open_bundle(config.bundle), source)
    return Job(config.output, config.bundle, plan, source)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor has a process of its own to set variables in."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")


def test_a_shard_goes_through_a_reader_and_an_actor_to_its_receipt(job: Job) -> None:
    [shard] = make_shards(job.source, 100)
    lean = dataclasses.replace(job, source=without_files(job.source))
    receipt, seconds = Scorer(lean).score(0, read_block(lean, shard))
    assert (receipt.shard, receipt.rows, receipt.bad) == (0, 2, 1)
    assert seconds > 0
    assert Path(job.output, "part-000000.parquet").stat().st_size == receipt.size_bytes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(None, 1) as cluster:
        yield cluster


def test_what_a_reader_meets_reaches_the_driver_as_it_is(job: Job, cluster: Cluster, tmp_path: Path) -> None:
    shards = make_shards(job.source, 100)
    (tmp_path / "in.csv").unlink()
    with pytest.raises(NotFoundError, match="there is no such file"):
        list(cluster.score(job, shards))


def test_no_more_shards_are_read_ahead_than_one_an_actor(job: Job, cluster: Cluster) -> None:
    """The rest of the input waits on disk until an answer has come back."""
    taken: list[int] = []

    def counted() -> Iterator[Shard]:
        for shard in make_shards(job.source, 1):
            taken.append(shard.number)
            yield shard

    receipts = cluster.score(job, counted())
    first, _ = next(receipts)
    assert taken == [0, 1]
    assert sorted([first.shard, *(receipt.shard for receipt, _ in receipts)]) == [0, 1, 2]


def test_an_actor_never_writes_over_other_bytes(job: Job) -> None:
    [shard] = make_shards(job.source, 100)
    Path(job.output).mkdir()
    Path(job.output, "part-000000.parquet").write_bytes(b"other")
    with pytest.raises(RunError, match="other bytes"):
        Scorer(job).score(0, read_block(job, shard))


def test_an_actor_refuses_another_bundle_than_the_plans(job: Job) -> None:
    other = msgspec.structs.replace(job.plan.bundle, seal="0" * 64)
    with pytest.raises(BundleError, match="another bundle"):
        Scorer(dataclasses.replace(job, plan=msgspec.structs.replace(job.plan, bundle=other))).score(
            0, read_block(job, make_shards(job.source, 100)[0])
        )


def test_ray_is_imported_late_and_without_any_of_trainings_libraries() -> None:
    program = (
        "import sys, pigeonhole.scoring.score; "
        "heavy = {'ray', 'pandas', 'torch', 'transformers', 'datasets', 'hydra', 'omegaconf'} & set(sys.modules); print(heavy)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_a_machine_that_knows_no_affinity_has_an_actor_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has none."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert local_cores() == os.cpu_count()


def test_a_machine_that_lends_some_cores_has_an_actor_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert local_cores() == 3
