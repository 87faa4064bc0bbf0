import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from tests.scoring.conftest import write_csv

from pigeonhole.bundle import open_bundle
from pigeonhole.errors import BundleError, RunError, UserError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.engine import Job, Scorer, _receipt, read_block, without_files
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


def item(shard: Shard) -> pa.Table:
    return pa.table({"shard": [msgspec.json.encode(shard)]})


def test_a_shard_goes_through_a_reader_and_an_actor_to_its_receipt(job: Job) -> None:
    [shard] = make_shards(job.source, 100)
    lean = dataclasses.replace(job, source=without_files(job.source))
    outcome = Scorer(lean)(read_block(lean, item(shard)))
    receipt = _receipt(outcome.to_pylist()[0])
    assert (receipt.shard, receipt.rows, receipt.bad) == (0, 2, 1)
    assert Path(job.output, "part-000000.parquet").stat().st_size == receipt.size_bytes


def test_what_a_reader_meets_reaches_the_driver_with_its_exit_code(job: Job, tmp_path: Path) -> None:
    [shard] = make_shards(job.source, 100)
    (tmp_path / "in.csv").unlink()
    outcome = Scorer(job)(read_block(job, item(shard)))
    with pytest.raises(UserError, match="there is no such file"):
        _receipt(outcome.to_pylist()[0])


def test_what_an_actor_meets_reaches_the_driver_with_its_exit_code(job: Job) -> None:
    [shard] = make_shards(job.source, 100)
    Path(job.output).mkdir()
    Path(job.output, "part-000000.parquet").write_bytes(b"other")
    outcome = Scorer(job)(read_block(job, item(shard)))
    with pytest.raises(RunError, match="other bytes"):
        _receipt(outcome.to_pylist()[0])


def test_an_actor_refuses_another_bundle_than_the_plans(job: Job) -> None:
    other = msgspec.structs.replace(job.plan.bundle, seal="0" * 64)
    with pytest.raises(BundleError, match="another bundle"):
        Scorer(dataclasses.replace(job, plan=msgspec.structs.replace(job.plan, bundle=other)))


def test_ray_is_imported_late_and_without_any_of_trainings_libraries() -> None:
    program = (
        "import sys, pigeonhole.scoring.score; "
        "heavy = {'ray', 'pandas', 'torch', 'transformers', 'datasets', 'hydra', 'omegaconf'} & set(sys.modules); print(heavy)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
