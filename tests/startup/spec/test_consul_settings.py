"""What a fleet file says of Consul, beyond its address."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from startup.spec.cluster_model import ConsulModel


def test_leaders_of_a_machine_that_is_gone_are_waited_for_as_long_as_the_file_says() -> None:
    assert ConsulModel().leader_ttl == 15.0
    assert ConsulModel(leader_ttl="20s").leader_ttl == 20.0  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="leader_ttl"):
        ConsulModel(leader_ttl="5s")  # type: ignore[arg-type]  # Consul takes no less than 10 s


@pytest.mark.parametrize("prefix", ["/conf", "conf/", ""])
def test_a_prefix_of_keys_has_no_slash_at_its_ends(prefix: str) -> None:
    with pytest.raises(ValidationError, match="config_prefix"):
        ConsulModel(config_prefix=prefix)
    assert ConsulModel(config_prefix="agentkit/c/conf").config_prefix == "agentkit/c/conf"
    assert ConsulModel().config_prefix is None
