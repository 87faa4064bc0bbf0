"""Writes what the code says of itself into docs/reference/: `uv run python docs/reference.py`.

commands.md from every command's --help, configuration.md from the dataclasses, environment.md from the services' settings,
http.md from the OpenAPI document, telemetry.md from what the services expose. Made at each build, not committed.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pigeonhole.bundle import Manifest, Windowing
from pigeonhole.drift.service import Telemetry as DriftTelemetry
from pigeonhole.drift.settings import Settings as DriftSettings
from pigeonhole.environment import variables
from pigeonhole.options import settings_of
from pigeonhole.prediction_log import Backlog
from pigeonhole.serving.settings import Settings as ServeSettings
from pigeonhole.serving.telemetry import Telemetry as ServeTelemetry
from pigeonhole.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
OPENAPI = ROOT / "tests" / "serving" / "openapi.json"  # a test holds the service to it
SECTIONS = {
    "": "The run",
    "data": "Rows",
    "model": "Encoder",
    "trainer": "Fitting",
    "tfidf": "TF-IDF, where model=tfidf",
    "export": "What is sealed",
    "decision": "What is accepted, and what is out of scope",
    "tracking": "Who is told",
    "serve": "What the bundle asks of its server",
}


def main() -> None:
    pages = {
        "commands": commands(),
        "configuration": configuration(),
        "environment": environment(),
        "http": http(json.loads(OPENAPI.read_text(encoding="utf-8"))),
        "telemetry": telemetry(),
    }
    for name, page in pages.items():
        (PAGES / f"{name}.md").write_text(page, encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:], ""])


def commands() -> str:
    """The --help of every command that the package installs."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    parts = ["# Commands", "Each prints one JSON object on stdout; see [exit codes](exit-codes.md). `uv run NAME --help`:"]
    for name in scripts:
        script = shutil.which(name, path=str(Path(sys.executable).parent))
        if script is None:
            raise SystemExit(f"{name}: not installed; run uv sync")
        shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        parts += [f"## {name}", f"```text\n{shown.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Every key of `train` with its type, default, range and meaning."""
    parts = ["# Configuration of train", "`uv run train KEY=VALUE …`; the resolved configuration: `uv run train --cfg job`."]
    settings = list(settings_of(TrainConfig))
    for section, title in SECTIONS.items():
        inside = [found for found in settings if found.key.rpartition(".")[0] == section]
        rows = [(f"`{found.key}`", found.expected, f"`{found.default}`", found.help) for found in inside]
        parts += [f"## {title}", table(("key", "allowed", "default", "means"), rows)]
    told = {found.key for found in settings if found.key.rpartition(".")[0] in SECTIONS}
    if len(told) != len(settings):
        raise SystemExit(f"docs/reference.py has no section for {sorted({found.key for found in settings} - told)}")
    return "\n\n".join(parts)


def environment() -> str:
    parts = ["# Environment of the services", "An empty variable counts as one that is not set."]
    for name, schema in (("serve", ServeSettings), ("drift", DriftSettings)):
        rows = [
            (f"`{found.name}`", "" if field.default is None else f"`{field.default}`", found.help)
            for field, found in variables(schema)
        ]
        parts += [f"## {name}", table(("variable", "default", "means"), rows)]
    return "\n\n".join(parts)


def http(document: Mapping[str, Any]) -> str:
    """Routes with their bodies and answers, then every schema with its limits."""
    parts = ["# HTTP API of serve", "The service shows the same at `/docs` and `/openapi.json`."]
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            codes = [(code, answer["description"]) for code, answer in sorted(operation["responses"].items())]
            about = operation.get("description") or operation.get("summary", "")
            parts += [f"## {verb.upper()} {path}", about]
            if parameters := operation.get("parameters"):
                asked = [
                    (f"`{each['name']}`", each["in"], _shape(each["schema"]), _limits(each["schema"]),
                     each["schema"].get("default", ""), each.get("description", ""))
                    for each in parameters
                ]  # fmt: skip
                parts.append(table(("parameter", "in", "type", "limits", "default", "means"), asked))
            if body := operation.get("requestBody"):
                parts.append(f"Body: {', '.join(_shape(found['schema']) for found in body['content'].values())}.")
            parts.append(table(("code", "means"), codes))
    parts.append("## Schemas")
    for name, schema in document["components"]["schemas"].items():
        rows = [
            (f"`{field}`", _shape(found), _limits(found), _means(found)) for field, found in schema.get("properties", {}).items()
        ]
        parts += [f"### {name}", schema.get("description", ""), table(("field", "type", "limits", "means"), rows)]
    return "\n\n".join(parts)


def _shape(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if choices := _choices(schema):
        return " or ".join(map(_shape, choices))
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*schema.get("anyOf", []), *schema.get("oneOf", [])]


def _limits(schema: Mapping[str, Any]) -> str:
    """Its own, those of each choice and those of what is in a list, once each."""
    names = ("minLength", "maxLength", "minItems", "maxItems", "exclusiveMinimum", "minimum", "maximum", "enum", "pattern")
    own = [f"{name} {schema[name]}" for name in names if name in schema]
    inner = [_limits(choice) for choice in _choices(schema)]
    if each := _limits(schema["items"]) if "items" in schema else "":
        inner.append(f"each: {each}")
    return ", ".join(dict.fromkeys(found for found in [*own, *inner] if found))


def _means(schema: Mapping[str, Any]) -> str:
    """Its description, or that of the first of its choices that has one."""
    return str(schema.get("description") or next(filter(None, map(_means, _choices(schema))), ""))


def telemetry() -> str:
    manifest = Manifest(
        schema_version=1,
        name="model",
        version="version",
        created_at="2025-01-01T00:00:00+00:00",
        task="single_label",
        labels=("label",),
        max_length=128,
        windowing=Windowing(),
        temperature=1.0,
        thresholds={"label": 0.5},
        threshold_target=None,
        models={"fp32": "model.onnx"},
        served="fp32",
        parity={},
        metrics={},
        provenance={},
        files={},
    )
    services: dict[str, ServeTelemetry | DriftTelemetry] = {
        "serve": ServeTelemetry(manifest, lambda: Backlog(0, 0.0, 0)),
        "drift": DriftTelemetry(),
    }
    parts = ["# Metrics", "`GET /metrics` of each service, for Prometheus. Label values come from closed sets."]
    for name, service in services.items():
        families = text_string_to_metric_families(service.exposition().decode())
        told = [family for family in families if not family.name.endswith("_created")]
        rows = [(f"`{family.name}{'_total' * (family.type == 'counter')}`", family.type, family.documentation) for family in told]
        parts += [f"## {name}", table(("metric", "kind", "means"), rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
