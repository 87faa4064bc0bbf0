"""What `score` can be told."""

from dataclasses import dataclass

from pigeonhole.bundle import Precision
from pigeonhole.classifier import BATCH_TOKENS
from pigeonhole.errors import ConfigError
from pigeonhole.options import setting

MAX_CHARS = 8192  # what the API takes


@dataclass(frozen=True)
class ScoreConfig:
    bundle: str = setting("", "URL of the bundle that answers; needed")
    input: str = setting("", "URL, path or glob of Parquet, CSV or JSONL files, or a folder of them; needed")
    output: str = setting("", "URL of a new folder of Parquet parts, or of CSV or JSONL if it ends with .csv or .jsonl; needed")
    text: str = setting("text", "column with the text")
    id: str | None = setting(None, "column that names a row in the error files")
    top_k: int = setting(0, "add the column top_k: this many of the likeliest labels with their scores", ge=0, le=10_000)
    probabilities: bool = setting(False, "add the column probabilities, in the order of the bundle's labels")
    embedding: bool = setting(False, "add the column embedding")
    precision: Precision | None = setting(  # noqa: RUF009  it makes a field
        None, "model of the bundle; unset: the one that is served", choices=("fp32", "int8")
    )
    log: str | None = setting(None, "URL of a prediction log to write a record a row to; adds the column prediction_id")
    log_text: str = setting("full", "what the log keeps of a text", choices=("full", "none"))
    actors: int = setting(0, "model sessions, a core each; 0: as many as there are cores", ge=0, le=10_000)
    batch_tokens: int = setting(BATCH_TOKENS, "tokens of one forward pass", ge=16, le=65_536)
    shard_rows: int = setting(
        0, "rows of one output part; 0: 2,048 to 8,192 by the size of the input, fewer of long rows", ge=0, le=1_000_000
    )
    max_chars: int = setting(MAX_CHARS, "a text with more characters than this is a bad row", ge=1, le=100_000)
    max_bad_share: float = setting(0.1, "more bad rows than this share of the input stop the job with exit code 3", ge=0, le=1)
    ray_address: str | None = setting(None, "a Ray cluster, `auto` for the one that this machine is part of; unset: this machine")
    core_hour_usd: float = setting(0.05, "price of a core for an hour, for the estimate of what the job costs", ge=0, le=1000)

    def __post_init__(self) -> None:
        for key in ("bundle", "input", "output"):
            if not getattr(self, key):
                raise ConfigError(f"{key} is missing; write {key}=URL (all keys: uv run score --help)")
