import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.training.test_trainer import RECIPE, fresh_model, needs_room_for, rows

from pigeonhole.training import trainer
from pigeonhole.training.model import TextClassifier
from pigeonhole.training.workers import Workers


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def classifier(threads: int = 2, dropout: bool = False) -> TextClassifier:
    """A fresh one, and the number of threads that it will be trained with."""
    model = fresh_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    torch.set_num_threads(threads)
    return model


def curve(model: TextClassifier, folder: Path, criterion: trainer.Criterion = torch.nn.functional.cross_entropy) -> list[float]:
    folder.mkdir()
    history = trainer.train(model, rows(48), rows(24, seed=1), RECIPE, folder, "run", lambda history: None, criterion)
    return [epoch.loss for epoch in history]


def test_two_workers_take_the_same_steps_as_one_and_all_texts_once(tmp_path: Path) -> None:
    two = curve(classifier(), tmp_path / "two")
    assert two == pytest.approx(curve(classifier(threads=1), tmp_path / "one"), abs=1e-5)


def test_two_workers_give_the_same_weights_again_bit_for_bit_with_dropout_of_their_own(tmp_path: Path) -> None:
    models = [classifier(dropout=True) for _ in range(3)]
    assert Workers(models[0], compiled=False).count == 2
    curves = [curve(model, tmp_path / str(number)) for number, model in enumerate(models)]
    assert curves[0] == curves[1] == curves[2]
    first, *others = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())
    assert curves[0] != pytest.approx(curve(classifier(), tmp_path / "all"), abs=1e-5)


def test_a_worker_without_memory_halves_the_parts_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = curve(classifier(), tmp_path / "room")
    assert curve(classifier(), tmp_path / "tight", needs_room_for(2)) == pytest.approx(expected, abs=1e-5)
    assert "out of memory; from here on 4 texts at a time" in capsys.readouterr().err


def test_a_failure_in_a_worker_is_the_runs_failure(tmp_path: Path) -> None:
    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        curve(classifier(), tmp_path / "run", criterion)


def test_the_threads_end_with_the_training(tmp_path: Path) -> None:
    at_work: set[str] = set()

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        at_work.update(workers())
        return torch.nn.functional.cross_entropy(logits, label_ids)

    curve(classifier(), tmp_path / "run", criterion)
    assert at_work == {"worker_0", "worker_1"}
    assert not workers()


def workers() -> list[str]:
    """Threads of this name alone: others of this process, a server's, come and go."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("worker_")]


def test_a_compiled_model_has_one_worker() -> None:
    assert Workers(classifier(), compiled=True).count == 1
