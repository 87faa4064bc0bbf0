"""`uv run train`: the configuration is composed and checked, then the corridor begins."""

from typing import Any

from pigeonhole.command import command
from pigeonhole.configuration import compose
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.pretrained import locate


def run(arguments: list[str]) -> dict[str, Any]:
    config = compose(TrainConfig, "train", arguments)
    from pigeonhole.dataset.check import require_there  # a sixth of a second that --help does without

    require_there(config.data)
    locate(config.model.pretrained, None)
    # torch and transformers take ten seconds to import: neither --help nor a wrong key, path or name has to wait for them.
    from pigeonhole.training.corridor import train

    return train(config)


main = command(run, together=True)

if __name__ == "__main__":
    main()
