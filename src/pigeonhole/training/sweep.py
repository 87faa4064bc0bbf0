"""`uv run sweep sweep=learning_rates data.path=FILE …`: Optuna over the keys of `train`, in a study on this disk.

The same command goes on where a killed one stopped, in the middle of a trial too; given again beside itself it is one more worker
on the same study. A trial makes no bundle and registers nothing; where something is chosen, it looks at validation rows only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole import storage
from pigeonhole.command import command, with_help
from pigeonhole.configuration import help_text
from pigeonhole.errors import ConfigError
from pigeonhole.options import key_lines, read_options, setting, split_own
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.space import check_training, read_space

USAGE = """usage: sweep [sweep=NAME|FILE.yaml] [key=value …] [KEY OF train=value …]

Search for a better recipe: values of train's keys, compared on the validation rows. Or, with sweep=seeds, one recipe with
several seeds: mean and spread. The same command goes on after a kill, and is one more worker beside itself.

uv run sweep sweep=learning_rates data.path=my.csv data.text=message data.label=queue
uv run sweep sweep=seeds trials=10 experiment=fast
"""


@dataclass(frozen=True)
class SweepConfig:
    sweep: str = setting("learning_rates", "what to vary: a file of configs/sweep/, or a .yaml file of your own")
    trials: int | None = setting(
        None, "trials of the study, all workers together; unset: as the sweep's file says", ge=1, le=10_000
    )
    folder: str | None = setting(None, "study, trials and results; unset: sweeps/<the sweep's name>")
    split: str = setting(
        "validation",
        "rows to measure on; test: for a sweep of seeds alone, since what chooses must not see them",
        choices=["validation", "test"],
    )
    sampler_seed: int = setting(0, "the same seed, one worker: the same trials, stopped in between or not", ge=0, le=2**31)


@with_help(lambda: "\n".join([USAGE, *key_lines(SweepConfig), "", help_text(TrainConfig, "train")]))
def run(arguments: list[str]) -> dict[str, Any]:
    own, training = split_own(SweepConfig, arguments)
    config = read_options(SweepConfig, own)
    space = read_space(config.sweep, config.trials)
    if config.split == "test" and not space.of_seeds:
        raise ConfigError("split=test: a search would choose by the rows that measure its choice; it is for a sweep of seeds")
    for argument in training:
        key = argument.partition("=")[0]
        if key in ("out", "registry", "tracking") or key.startswith("tracking."):
            raise ConfigError(f"{argument}: the sweep itself says so; leave {key} out")
    check_training(space, training)
    folder = _folder(config.folder or f"sweeps/{Path(config.sweep).stem}")
    # torch and Optuna take seconds to import: neither --help nor a wrong key has to wait for them.
    from pigeonhole.training.study import search

    return search(space, training, folder, config.sampler_seed, config.split)


def _folder(url: str) -> Path:
    """Raises ConfigError for a place where no study can lie."""
    path = storage.local_path(url)
    if path is None:
        raise ConfigError(f"folder={url}: a study lies in a local folder; leave it out, or choose one")
    storage.require_writable("folder", url)
    return path.resolve()


main = command(run)

if __name__ == "__main__":
    main()
