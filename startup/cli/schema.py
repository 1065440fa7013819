"""Print the JSON Schema of startup_config.yaml, with a description of every key.

Editors that know JSON Schema complete and check the file with it. For the YAML language server:

    agentkit schema > startup_config.schema.json
    # yaml-language-server: $schema=startup_config.schema.json      (first line of the file)
"""

from __future__ import annotations

import argparse
import json
import sys

from startup.cli import exits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing besides what every command takes: the output is JSON with and without --json."""
    del parser


def run(arguments: argparse.Namespace) -> int:
    """Always 0."""
    del arguments
    from startup.spec.model import FileModel

    sys.stdout.write(json.dumps(FileModel.model_json_schema(by_alias=True), indent=2) + "\n")
    return exits.DONE
