"""The one place that knows version numbers."""

from typing import Final

#: agentkit's own version (semantic versioning).
VERSION: Final = "0.1.0"

#: Version of the conversation between CLI, nodes, zygotes and agents of one cluster. Nodes that differ refuse each other;
#: a differing VERSION is only a warning.
CONTROL_VERSION: Final = 1
