"""`uv run import-model`: a classifier that somebody else trained becomes a bundle. Checked before torch is imported."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting
from pigeonhole.training.pretrained import SCRATCH, TFIDF, locate


@dataclass(frozen=True)
class ImportOptions:
    model: str | None = setting(None, "a save_pretrained folder, its file:// URL, or a hub id OWNER/NAME; safetensors only")
    revision: str | None = setting(None, "commit or tag on the hub")
    name: str | None = setting(None, "the model's name in the registry; unset: the last part of model")
    data: str | None = setting(None, "labelled rows to measure on; without them nothing is measured and fp32 is served")
    text: str | None = setting(None, "column with the text; unset: text, sentence or utterance")
    label: str | None = setting(None, "column with the label; unset: label, category or intent")
    label_separator: str = setting("|", "what stands between the labels of a row in CSV, for a multi-label model")
    max_length: int = setting(128, "tokens of a text that are read", ge=4, le=65_536)
    threshold: float = setting(0.5, "answers with a lower score are marked for review", ge=0, le=1)
    min_agreement: float = setting(0.99, "share of texts with one label in fp32 and int8; below it int8 is left out", ge=0, le=1)
    tolerance: float = setting(1e-4, "largest difference of logits, torch against fp32, before the import fails", gt=0, le=1)
    seed: int = setting(0, "of the intervals", ge=0, le=2**32 - 1)
    registry: str | None = setting(None, "URL of the registry; unset: PIGEONHOLE_REGISTRY, or registry")

    @property
    def chosen_name(self) -> str:
        """Raises ConfigError for one that no registry takes."""
        stem = re.sub(r"[^a-z0-9._-]+", "-", Path(self.model or "").name.lower()).strip("-._")
        chosen = self.name or stem
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", chosen):
            raise ConfigError(f"name={chosen}: expected lower-case letters, digits, '.', '_' and '-', at most 100")
        return chosen


USAGE = """usage: uv run import-model model=FOLDER_OR_HUB_ID [key=value ...] [--help]

Make a bundle of a sequence classifier in transformers' form (BERT and its relatives), as if `train` had made it, and register it.
No code of the model's own is run, and no pickle is read.
"""


@with_help(USAGE, ImportOptions)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(ImportOptions, arguments)
    if options.model is None:
        raise ConfigError("model=FOLDER_OR_HUB_ID is needed; see uv run import-model --help")
    if options.model in (SCRATCH, TFIDF):
        raise ConfigError(f"model={options.model}: is train's word for no model at all; of a folder write ./{options.model}")
    name = options.chosen_name
    locate(options.model, None, "model")
    # torch and transformers take ten seconds to import: neither --help nor a wrong key or folder has to wait for them.
    from pigeonhole.training.foreign import import_model

    return import_model(options, name)


main = command(run)

if __name__ == "__main__":
    main()
