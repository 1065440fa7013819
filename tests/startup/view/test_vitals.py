from __future__ import annotations

from typing import Any

import pytest

from startup.view.vitals import budget


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, ""),
        ({"budget_mb": 2048.0, "used_mb": None, "short": ""}, ""),
        ({"budget_mb": 2048.0, "used_mb": 1843.2, "short": ""}, ", memory 1.8 of 2.0 GiB budget"),
        ({"budget_mb": 60.0, "used_mb": 48.31, "short": ""}, ", memory 48 of 60 MiB budget"),
        (
            {"budget_mb": 60.0, "used_mb": 70.0, "short": "A 70 MiB (why)"},
            ", memory 70 of 60 MiB budget, nobody else can sleep: A 70 MiB (why)",
        ),
    ],
)
def test_what_is_used_of_a_budget_is_told_with_who_keeps_it_from_being_kept(facts: Any, said: str) -> None:
    assert budget(facts) == said
