"""A second look at few failures: `python -m tests.again STATUS`, where STATUS is what pytest ended with.

The whole suite starts some thousand processes on few cores, beside each other. What fails there and passes alone is a test that waits
for too little, or a fault that needs load to show: it is named, so that somebody looks at it, but does not refuse a change that it has
nothing to do with. What fails again fails. So does everything when there are more than `FEW`, and when pytest did not get through.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

#: More failures than these are no accident.
FEW: Final = 3
_SOME_FAILED: Final = 1  # pytest.ExitCode.TESTS_FAILED
_FAILURES: Final = Path(".pytest_cache/v/cache/lastfailed")


def worth_another_look(status: int, failures: list[str]) -> bool:
    return status == _SOME_FAILED and 0 < len(failures) <= FEW and all("::" in name for name in failures)


def main(status: int) -> int:
    failures = list(json.loads(_FAILURES.read_text())) if _FAILURES.exists() else []
    if not worth_another_look(status, failures):
        return status
    command = [sys.executable, "-m", "pytest", "-n", "0", *failures]
    again = subprocess.run(command, check=False).returncode
    if again == 0:
        sys.stdout.write("failed beside others, passed alone, and want looking at:\n  " + "\n  ".join(failures) + "\n")
    return again


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
