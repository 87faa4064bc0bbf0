import pytest

from pigeonhole.environment import describe_variables
from pigeonhole.errors import ConfigError
from pigeonhole.serving.settings import Settings, read_settings, unknown_variables


def test_an_empty_environment_gives_the_defaults() -> None:
    assert read_settings({}) == read_settings({"PORT": "", "PIGEONHOLE_BUNDLE": "", "HOME": "/x"}) == Settings()
    assert (Settings().host, Settings().port, Settings().registry, Settings().log) == ("127.0.0.1", 8080, "registry", "log")


def test_every_variable_reaches_its_setting() -> None:
    environment = {
        "HOST": "::",
        "PORT": "9000",
        "PIGEONHOLE_BUNDLE": "gs://b/x",
        "PIGEONHOLE_REGISTRY": "gs://b/registry",
        "PIGEONHOLE_MODEL": "tickets",
        "PIGEONHOLE_POLL_S": "0.5",
        "PIGEONHOLE_LOG": "gs://b/log",
        "PIGEONHOLE_SPOOL": "/spool",
        "PIGEONHOLE_DURABILITY": "host",
        "PIGEONHOLE_STRICT": "yes",
        "PIGEONHOLE_SPOOL_MB": "64",
        "PIGEONHOLE_SPOOL_FULL": "drop",
        "PIGEONHOLE_TEXT": "hash",
        "PIGEONHOLE_TEXT_KEY": "secret",
        "PIGEONHOLE_SAMPLE": "0.25",
        "PIGEONHOLE_THREADS": "2",
        "PIGEONHOLE_MAX_WAITING": "512",
        "PIGEONHOLE_DEADLINE_S": "2.5",
    }
    settings = read_settings(environment)
    assert settings == Settings(
        "::",
        9000,
        "gs://b/x",
        "gs://b/registry",
        "tickets",
        0.5,
        "gs://b/log",
        "/spool",
        "host",
        "yes",
        64,
        "drop",
        "hash",
        "secret",
        0.25,
        2,
        512,
        2.5,
    )
    assert "secret" not in repr(settings)
    assert unknown_variables(environment) == []
    assert all(name in describe_variables(Settings) for name in environment)


def test_strict_is_remote_whatever_the_durability_says() -> None:
    assert Settings().level == "process"
    assert Settings(durability="none", strict="yes").level == "remote"


@pytest.mark.parametrize("value", ["abc", "0", "70000", "-1", "8080.0", "\uff18\uff10", " 8080", "1e3", "9" * 20])
def test_a_port_that_is_none_is_refused_with_its_name_its_value_and_the_range(value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings({"PORT": value})
    assert str(refused.value) == f"PORT={value!r}: allowed is a whole number from 1 to 65535"
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PIGEONHOLE_DURABILITY", "disk", "none | process | host | remote"),
        ("PIGEONHOLE_TEXT", "half", "full | redact | hash | none"),
        ("PIGEONHOLE_THREADS", "0", "a whole number from 1 to 256"),
        ("PIGEONHOLE_MAX_WAITING", "255", "a whole number from 256 to 1000000"),
        ("PIGEONHOLE_DEADLINE_S", "nan", "seconds from 0.1 to 300"),
        ("PIGEONHOLE_DEADLINE_S", "301", "seconds from 0.1 to 300"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings({name: value})
    assert str(refused.value) == f"{name}={value!r}: allowed is {allowed}"


def test_where_vertex_ai_names_something_it_is_meant() -> None:
    environment = {
        "PORT": "9000",
        "AIP_HTTP_PORT": "8081",
        "AIP_STORAGE_URI": "gs://b/artifact",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/7/deployedModels/8:predict",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/7/deployedModels/8",
    }
    settings = read_settings(environment)
    assert (settings.port, settings.bundle) == (8081, "gs://b/artifact")
    assert (settings.predict_route, settings.health_route) == (environment["AIP_PREDICT_ROUTE"], environment["AIP_HEALTH_ROUTE"])
    assert read_settings({"PIGEONHOLE_BUNDLE": "x", "AIP_STORAGE_URI": ""}).bundle == "x"
    assert all(name in describe_variables(Settings) for name in environment)
    with pytest.raises(ConfigError, match="AIP_HTTP_PORT='x': allowed is a whole number"):
        read_settings({"AIP_HTTP_PORT": "x"})
    with pytest.raises(ConfigError, match=r"AIP_PREDICT_ROUTE='/\{x\}': allowed is a path such as /predict"):
        read_settings({"AIP_PREDICT_ROUTE": "/{x}"})


def test_hashing_texts_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="PIGEONHOLE_TEXT=hash needs a secret in PIGEONHOLE_TEXT_KEY"):
        read_settings({"PIGEONHOLE_TEXT": "hash"})


def test_misspelt_variables_are_named() -> None:
    environment = {"PIGEONHOLE_LOGS": "gs://b/log", "PIGEONHOLE_LOG": "x", "PIGEONHOLE_TRACEBACK": "1", "PATH": "/bin"}
    assert unknown_variables(environment) == ["PIGEONHOLE_LOGS"]
