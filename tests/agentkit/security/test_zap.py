"""ZeroMQ's question about a new connection, and our answer."""

from __future__ import annotations

import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from agentkit.security.roles import Holder
from agentkit.security.zap import answer

PUBLIC = zmq.curve_keypair()[0]


def question(public: bytes = PUBLIC, mechanism: bytes = b"CURVE") -> list[bytes]:
    return [b"1.0", b"7", b"agentkit-1", b"10.0.0.1", b"", mechanism, z85.decode(public)]


def only_ours(domain: str, public: str) -> Holder | None:
    return Holder("ops", "operator") if (domain, public) == ("agentkit-1", PUBLIC.decode()) else None


def test_a_known_key_comes_in_and_is_told_apart_by_its_public_key() -> None:
    assert answer(question(), only_ours) == [b"1.0", b"7", b"200", b"OK", PUBLIC, b""]


def test_an_unknown_key_does_not_come_in() -> None:
    stranger, _ = zmq.curve_keypair()
    assert answer(question(stranger), only_ours)[2] == b"400"


def test_nobody_comes_in_by_another_mechanism() -> None:
    assert answer(question(mechanism=b"NULL"), only_ours)[2] == b"400"
    assert answer(question(mechanism=b"PLAIN"), only_ours)[2] == b"400"


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_whatever_is_asked_gets_six_frames_and_no_entry_without_the_key(asked: list[bytes]) -> None:
    replied = answer(asked, only_ours)
    assert len(replied) == 6
    assert replied[2] == b"400"
