"""`python -m startup COMMAND` is `agentkit COMMAND`."""

from __future__ import annotations

import sys

from startup.cli.main import main

sys.exit(main())
