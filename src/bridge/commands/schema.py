"""`bridge schema`: JSON Schema for editors and Helm."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from bridge.commands.terminal import NoConfigOption
from bridge.schema import config_schema, rules_schema


def schema(
    what: Annotated[Literal["config", "rules"], typer.Argument(help="Of bridge.yaml, or of rule files.")] = (
        "config"
    ),
    _config: NoConfigOption = None,
) -> None:
    """Print the JSON Schema of bridge.yaml or of rule files.

    Point your editor's YAML plug-in at it.
    """
    print(json.dumps(config_schema() if what == "config" else rules_schema(), indent=2))
