import pytest

from pigeonhole.errors import ConfigError
from pigeonhole.scoring.config import MAX_CHARS, ScoreConfig
from pigeonhole.serving import schemas


def test_a_text_may_be_as_long_as_the_api_takes_it() -> None:
    assert MAX_CHARS == schemas.MAX_CHARS


@pytest.mark.parametrize("key", ["bundle", "input", "output"])
def test_the_three_urls_are_needed(key: str) -> None:
    urls = {"bundle": "b", "input": "i", "output": "o"}
    with pytest.raises(ConfigError, match=f"{key} is missing; write {key}=URL"):
        ScoreConfig(**{name: url for name, url in urls.items() if name != key})  # type: ignore[arg-type]
