"""Typed configuration: Hydra composes `configs/<name>.yaml` over a dataclass whose fields carry their help and their range.

Every mistake (unknown key, wrong type, NaN, out of range) is one line that names the key, the value and what is allowed, before
any work begins. Classes never see the result as a whole: a command hands each of them flat arguments.
"""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pigeonhole.errors import ConfigError
from pigeonhole.options import Setting, check_ranges, key_lines, nearest, settings_of

T = TypeVar("T")
PACKAGE_LINE = "# @package _global_"
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
DEEPEST = 50


def compose(schema: type[T], name: str, arguments: Sequence[str]) -> T:
    """The configuration that `configs/<name>.yaml` and the command line give, checked.

    `--help` and `--cfg job` print and leave with exit 0; `--config-dir FOLDER` adds a folder of your own YAML files.
    Raises ConfigError.
    """
    arguments = list(arguments)
    if "--help" in arguments or "-h" in arguments:
        print(help_text(schema, name), flush=True)
        raise SystemExit(0)
    shown = _take_option(arguments, "--cfg")
    if shown not in (None, "job"):
        raise ConfigError(f"--cfg {shown}: expected --cfg job")
    folder = _take_option(arguments, "--config-dir")
    settings = {found.key: found for found in settings_of(schema)}
    own = _own_files(folder) if folder is not None else {}
    for argument in arguments:
        _check_key(argument, settings)
        _check_choice(argument, own)
    config = _compose(schema, name, arguments, folder, settings)
    check_ranges(config)
    if shown is not None:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def to_yaml(config: object) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def parse_yaml(content: str) -> object:
    """The values of a YAML text. Raises ValueError, one line for a user, for code, an alias or a key that stands twice."""
    try:
        bomb = _bomb_in(content)
        if bomb is None:
            return yaml.load(content, Loader=_EveryKeyOnce)  # noqa: S506  it is a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except ValueError as error:  # a number of more digits than Python reads, a month 13
        raise ValueError(f"a value cannot be read: {str(error).partition(':')[0]}") from error
    raise ValueError(bomb)


def _bomb_in(content: str) -> str | None:
    """What a parser would not end with: nine lines of aliases stand for 9**9 values, n open brackets take the square of n."""
    depth = 0
    for token in yaml.scan(content, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            return "holds a YAML alias (*name); write the values out"
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:
            return "is nested too deeply"
    return None


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not keep: it takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"found duplicate key {key.value}", problem_mark=key.start_mark)
                seen.add(key.value)
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def config_folder() -> Path:
    """`configs/` of the checkout, or the copy that an installed wheel carries."""
    checkout = Path(__file__).parents[2] / "configs"
    return checkout if checkout.is_dir() else Path(__file__).parent / "configs"


def groups() -> dict[str, list[str]]:
    """Config groups and their choices, e.g. `{"model": ["minilm", "tiny"]}`."""
    folders = sorted(path for path in config_folder().iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def help_text(schema: type[Any], name: str) -> str:
    """What `--help` prints: what the command is for (the schema says it), its groups, each key with its default and range."""
    taken = _groups_of(name)
    choice = "[group=choice …] " if taken else ""
    lines = [
        f"usage: {name.replace('_', '-')} {choice}[key=value …] [--cfg job] [--config-dir FOLDER]",
        "",
        inspect.cleandoc(schema.__doc__ or ""),
        "",
    ]
    if taken:
        lines += ["groups:", *(f"  {group}={'|'.join(choices)}" for group, choices in groups().items() if group in taken), ""]
    return "\n".join([*lines, *key_lines(schema)])


def _groups_of(name: str) -> set[str]:
    defaults = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{name}.yaml").defaults)
    return {key for entry in cast(list[Any], defaults) if isinstance(entry, dict) for key in entry}


def _take_option(arguments: list[str], option: str) -> str | None:
    arguments[:] = [part for each in arguments for part in (each.split("=", 1) if each.startswith(f"{option}=") else [each])]
    if option not in arguments:
        return None
    place = arguments.index(option)
    if place + 1 == len(arguments):
        raise ConfigError(f"{option}: a value is missing")
    value = arguments[place + 1]
    del arguments[place : place + 2]
    if option in arguments:
        raise ConfigError(f"{option} is given twice")
    return value


def _check_key(argument: str, settings: dict[str, Setting]) -> None:
    key, equals, _ = argument.partition("=")
    key = key.lstrip("+~")
    if key in settings or (equals and key in groups()):
        if not equals:
            raise ConfigError(f"{key}: a value is missing, write {key}=VALUE ({settings[key].expected})")
        return
    if key in groups() and not equals and not any(known.startswith(key + ".") for known in settings):
        raise ConfigError(f"{key}: a choice is missing, write {key}=CHOICE ({', '.join(groups()[key])})")
    if any(known.startswith(key + ".") for known in settings):
        known = ", ".join(known for known in settings if known.startswith(key + "."))
        raise ConfigError(f"{argument}: {key} is a group of keys; set one of {known}")
    near = nearest(key, [*settings, *groups()])
    if argument in ("-m", "--multirun"):  # Hydra's own
        near = "several values are tried by uv run sweep; "
    raise ConfigError(f"{argument}: there is no key {key}; {near}allowed are the keys that --help lists")


def _check_choice(argument: str, own: dict[str, list[str]]) -> None:
    group, _, choice = argument.partition("=")
    choices = sorted({*groups().get(group, ()), *own.get(group, ())})
    if choices and choice not in choices:
        raise ConfigError(f"{argument}: there is no such {group}; {nearest(choice, choices)}allowed: {', '.join(choices)}")


def _own_files(folder: str) -> dict[str, list[str]]:
    """The choices that a user's folder adds to each group, each file checked."""
    try:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder")
    except OSError as error:
        raise ConfigError(f"--config-dir {folder}: {error.strerror}") from error
    files = {group: sorted(Path(folder, group).glob("*.yaml")) for group in groups()}
    for group, paths in files.items():
        for path in paths:
            _check_file(path, group)
    return {group: [path.stem for path in paths] for group, paths in files.items()}


def _check_file(path: Path, group: str) -> None:
    """What Hydra would hang on, fail at or misread: no text, no YAML of ours, no mapping."""
    try:
        content = path.read_text(encoding="utf-8")
        found = parse_yaml(content)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(found, dict | None):
        raise ConfigError(f"{path}: holds {type(found).__name__}; keys with values are needed")
    if found and not isinstance(found.get("defaults", []), list):
        raise ConfigError(f"{path}: defaults: expected a list, such as [override /model: minilm3]")
    if found and "hydra" in found:
        raise ConfigError(f"{path}: hydra's own keys are not to be set")
    if content.startswith("\ufeff"):
        raise ConfigError(f"{path}: begins with a byte-order mark; save it as UTF-8 without one")
    if group == "experiment" and not content.startswith(PACKAGE_LINE):
        raise ConfigError(f"{path}: the first line has to be {PACKAGE_LINE!r}: an experiment sets the keys of all groups")


def _compose(schema: type[T], name: str, arguments: list[str], folder: str | None, settings: dict[str, Setting]) -> T:
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    overrides = [_quoted(argument, settings) for argument in arguments]
    if folder is not None:
        overrides.append(f"hydra.searchpath=[{_in_quotes(f'file://{Path(folder).resolve()}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            composed = hydra_compose(config_name=name, overrides=overrides)
        return cast(T, OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_explain(error, settings, arguments)) from error
    except RecursionError as error:
        raise ConfigError(f"{' '.join(arguments)}: in their defaults, files name each other in a circle") from error


def _quoted(argument: str, settings: dict[str, Setting]) -> str:
    """Words for a key of type str need no quotes on our command line, whatever is in them (a URL, a path with = or spaces)."""
    key, _, value = argument.partition("=")
    found = settings.get(key.lstrip("+"))
    if found is None or not found.type.startswith("str") or value in ("", "null") or value.startswith(("'", '"', "${")):
        return argument
    return f"{key}={_in_quotes(value)}"


def _in_quotes(value: str) -> str:
    """As Hydra reads them: a backslash means itself unless it stands before a quote."""
    escaped = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value))
    return f"'{escaped}'"


def _explain(error: Exception, settings: dict[str, Setting], arguments: Sequence[str]) -> str:
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        if key in settings:
            return f"{key}: {str(cause).splitlines()[0]}; expected {settings[key].expected}"
        if key:
            return f"{key}: {str(cause).splitlines()[0]}; allowed are the keys that --help lists"
        cause = cause.__cause__
    told = re.search(r"^(.*)\n\s*full_key: (\S+)$", str(error), re.MULTILINE)  # of a file, Hydra keeps the text alone
    if told and told[2] in settings:
        return f"{told[2]}: {told[1].strip()}; expected {settings[told[2]].expected}"
    if told:
        return f"{told[2]}: {told[1].strip()}; {nearest(told[2], settings)}allowed are the keys that --help lists"
    for argument in arguments:  # Hydra's own words for one that it cannot read name neither its key nor what is allowed
        key = argument.partition("=")[0]
        unread = isinstance(error, OverrideParseException) and error.override == argument
        if key in settings and (unread or f"{argument}'" in str(error) or f": {argument}\n" in str(error)):
            return f"{argument}: is no single value; expected {settings[key].expected}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{' '.join(arguments)}: " + "; ".join(lines)
