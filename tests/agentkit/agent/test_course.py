"""One call's course, by hand: whom it tries, how long it waits, what it ends with."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit.agent.course import Course
from agentkit.agent.routes import Board
from agentkit.directory.base import AgentRecord
from agentkit.errors import (
    BadRequest,
    CallError,
    ConfigError,
    DeadlineExceeded,
    Draining,
    HandlerError,
    Overloaded,
    PeerLost,
    TooLarge,
    Unreachable,
    from_wire,
)
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.policy import USUAL_CALLS, CallPolicies, CallPolicy, FilePolicy


def record(slot: int = 0, phase: str = "ready", incarnation: int = 1, **facts: Any) -> AgentRecord:
    return AgentRecord(
        id=AgentId.parse(f"m/A#{slot}"), incarnation=Incarnation(incarnation), phase=phase, endpoints={"inbox-local": "tcp://h:1"},
        **facts,
    )  # fmt: skip


def told(code: str, retry_safe: bool = False, **details: Any) -> CallError:
    return from_wire(code, "because", retry_safe, details)


class Desk:
    """A caller without sockets, whose clock the test moves."""

    def __init__(
        self, *records: AgentRecord, policy: CallPolicy = USUAL_CALLS, policies: dict[str, CallPolicy] | None = None
    ) -> None:
        self.board = Board(lambda _: 0, CallPolicies(policy, policies), draw=lambda: 0.5)
        self.records = records or (record(),)
        self.now_s = 1000.0

    def course(self, method: str = "m", **options: Any) -> Course:
        return Course(self.board, "A", method, self.now_s, **options)

    def choose(self, course: Course, **arguments: Any) -> int:
        return course.choose(self.board.route("A", self.records), arguments, self.now_s).id.slot

    def ends(self, error: CallError, after_s: float = 0.0, **options: Any) -> list[float]:
        """The waits of a call whose every try ends by `error` `after_s` later."""
        course, waits = self.course(**options), []
        while True:
            try:
                self.choose(course)
            except Unreachable:
                return [*waits, -1.0]
            self.now_s += after_s
            wait = course.failed(error, self.now_s, object())
            if wait is None:
                return waits
            waits.append(wait)
            self.now_s += wait

    def fail(self, times: int, error: CallError | None = None) -> None:
        for _ in range(times):
            course = self.course(attempts=1)
            self.choose(course)
            course.failed(error or PeerLost(), self.now_s, object())

    def answers(self) -> int:
        course = self.course()
        slot = self.choose(course)
        course.answered()
        return slot


def test_a_call_is_tried_three_times_with_growing_waits() -> None:
    desk = Desk()
    assert desk.ends(Unreachable(), timeout=60) == [1.0, 2.0]
    assert desk.board.retries == {"A": 2}


def test_waits_that_the_deadline_does_not_allow_are_not_begun() -> None:
    assert Desk().ends(Unreachable(), timeout=2.5) == [1.0]
    assert Desk().ends(Unreachable(), timeout=0.5) == []
    assert Desk().ends(Unreachable(), timeout=60, outer_at_s=1000.5) == []


def test_what_may_have_run_is_tried_again_only_where_the_method_says_that_it_is_idempotent() -> None:
    assert Desk().ends(PeerLost(), timeout=60) == []
    desk = Desk(record(traits={"m": {"idempotent": True}}))
    lost = PeerLost()
    assert desk.ends(lost, timeout=60) == [1.0, 2.0]
    assert lost.retry_safe
    assert desk.ends(PeerLost(), timeout=60, method="other") == []


@pytest.mark.parametrize(
    "error", [told("handler_error"), told("bad_request"), told("not_found"), TooLarge(), told("unreachable")]
)
def test_answers_are_answers(error: CallError) -> None:
    assert Desk(record(traits={"m": {"idempotent": True}})).ends(error, timeout=60) == []


def test_tries_are_settable_for_a_call_a_method_a_peer_and_all() -> None:
    assert Desk().ends(Unreachable(), timeout=60, attempts=1) == []
    assert Desk(policy=CallPolicy(attempts=2)).ends(Unreachable(), timeout=60) == [1.0]
    assert Desk(policies={"A": CallPolicy(attempts=1)}).ends(Unreachable(), timeout=60) == []
    assert Desk(policies={"A.m": CallPolicy(attempts=1)}).ends(Unreachable(), timeout=60) == []
    assert Desk(policies={"A.n": CallPolicy(attempts=1)}).ends(Unreachable(), timeout=60) == [1.0, 2.0]


def test_another_instance_is_asked_at_once() -> None:
    desk = Desk(record(0), record(1))
    course = desk.course(timeout=60)
    first = desk.choose(course)
    assert course.failed(Unreachable(), desk.now_s) == 0.0
    assert desk.choose(course) == 1 - first
    assert course.failed(Unreachable(), desk.now_s) == 2.0, "both are gone: wait"


def test_the_overloaded_is_given_the_time_it_asks_for() -> None:
    desk = Desk(record(0), record(1))
    course = desk.course(timeout=60)
    first = desk.choose(course)
    assert course.failed(told("overloaded", True, retry_after_ms=80), desk.now_s) == pytest.approx(0.1)
    assert desk.choose(course) == 1 - first


def test_retries_stop_when_the_budget_is_spent() -> None:
    desk = Desk(policy=CallPolicy(breaker_failures=10**6))
    tries = sum(1 + len(desk.ends(Unreachable(), timeout=60)) for _ in range(1000))
    assert 1100 <= tries <= 1111
    assert desk.board.refused_retries["A"] > 0


def test_moves_are_neither_tries_nor_paid_for() -> None:
    desk = Desk(policy=CallPolicy(attempts=1, retry_reserve=0))
    course = desk.course(timeout=60)
    pauses = []
    for _ in range(8):
        desk.choose(course)
        pauses.append(course.failed(Draining(), desk.now_s))
    assert pauses == pytest.approx([0.00075 * 2**n for n in range(6)] + [0.0375] * 2)
    assert (desk.board.moves, desk.board.retries) == ({"A": 8}, {})
    assert course.expected == 0, "who sent it away is not asked for by number again"


def test_a_call_that_is_sent_away_goes_to_another_instance_at_once_and_does_not_run_in_circles() -> None:
    desk = Desk(record(0), record(1))
    course = desk.course(timeout=60)
    first = desk.choose(course)
    assert course.failed(Draining(), desk.now_s) == 0.0
    assert desk.choose(course) == 1 - first
    assert course.failed(Draining(), desk.now_s) == pytest.approx(0.00075)


def test_a_handler_that_says_draining_is_not_run_again() -> None:
    desk = Desk()
    course = desk.course(timeout=60)
    desk.choose(course)
    assert course.failed(told("draining", False), desk.now_s) is None


def test_on_the_move_when_time_is_up_is_deadline_exceeded_and_did_not_run() -> None:
    desk = Desk()
    course = desk.course(timeout=0.5)
    desk.choose(course)
    with pytest.raises(DeadlineExceeded, match="time is up") as caught:
        course.failed(Draining("A is stopping"), desk.now_s + 0.5)
    assert caught.value.retry_safe


def test_the_methods_own_deadline_counts_unless_the_caller_names_one() -> None:
    desk = Desk(record(timeouts_s={"m": 60.0}))
    course = desk.course()
    assert course.at_s == 1005.0
    desk.choose(course)
    assert course.at_s == 1060.0
    desk.now_s += 10
    desk.choose(course)
    assert course.at_s == 1060.0, "another try prolongs nothing"
    course = desk.course(timeout=2.0)
    desk.choose(course)
    assert course.at_s == 1012.0
    course = desk.course(outer_at_s=1011.0)
    desk.choose(course)
    assert course.at_s == 1011.0


def test_a_key_chooses_the_instance() -> None:
    traits = {"m": {"balance": "hash", "key": "user_id"}}
    desk = Desk(*(record(slot, traits=traits) for slot in range(4)))
    slots = {user: {desk.choose(desk.course(), user_id=user) for _ in range(5)} for user in range(40)}
    assert all(len(found) == 1 for found in slots.values())
    assert len(set.union(*slots.values())) == 4
    by_call = {desk.choose(desk.course("other", key=user)) for user in range(40) for _ in range(2)}
    assert len(by_call) == 4
    assert len({desk.choose(desk.course(), x=1) for _ in range(8)}) > 1, (
        "without the argument there is nothing to go by"
    )


def test_a_way_to_balance_can_be_named_for_a_call() -> None:
    desk = Desk(record(0), record(1))
    assert [desk.choose(desk.course(balance="round_robin")) for _ in range(4)] in ([0, 1, 0, 1], [1, 0, 1, 0])
    with pytest.raises(ConfigError, match="one of two_choices"):
        desk.course(balance="random")


def test_traits_that_make_no_sense_are_as_good_as_none() -> None:
    desk = Desk(record(0, traits={"m": {"balance": 7, "key": None, "idempotent": 0}}), record(1))
    assert desk.choose(desk.course()) in (0, 1)


# -- breakers ---------------------------------------------------------------------------------------------------------


def test_after_five_failures_in_a_row_it_fails_at_once_for_30_s() -> None:
    opened = []
    desk = Desk()
    desk.board.on_open = lambda *facts: opened.append(facts)
    desk.fail(5)
    assert opened == [("m/A", "peer_lost: peer_lost", 5)]
    with pytest.raises(Unreachable, match=r"tried again in 30\.0 s") as caught:
        desk.answers()
    assert (caught.value.retry_safe, caught.value.details) == (True, {"breaker": "open", "retry_after_ms": 30000})
    assert desk.board.open_breakers() == {"m/A": 1.0}
    desk.now_s += 30
    probe = desk.course()
    desk.choose(probe)
    with pytest.raises(Unreachable):
        desk.answers()
    probe.answered()
    assert desk.answers() == 0
    assert desk.board.breakers == {}


def test_an_answer_in_between_starts_the_count_again() -> None:
    desk = Desk()
    for _ in range(3):
        desk.fail(4)
        desk.answers()
    for answer in (told("handler_error"), told("bad_request"), told("overloaded", True), told("not_found")):
        desk.fail(4)
        desk.fail(1, answer)
    assert desk.answers() == 0


def test_what_says_nothing_of_the_instance_neither_counts_nor_heals() -> None:
    desk = Desk()
    desk.fail(4)
    desk.fail(50, TooLarge())
    desk.fail(50, told("unreachable"))
    desk.fail(4)
    assert desk.answers() == 0
    desk.fail(4)
    desk.fail(1, BadRequest("does not travel"))
    desk.fail(1)
    with pytest.raises(Unreachable):
        desk.answers()


def test_calls_go_past_an_open_breaker_while_another_instance_is_well() -> None:
    desk = Desk(record(0), record(1))
    while len(desk.board.breakers) < 1 or not any(desk.board.open_breakers().values()):
        course = desk.course(attempts=1)
        if desk.choose(course) == 0:
            course.failed(PeerLost(), desk.now_s, object())
        else:
            course.answered()
    assert {desk.answers() for _ in range(20)} == {1}
    desk.now_s += 30
    assert 0 in {desk.answers() for _ in range(20)}, "it was probed, and is well again"


def test_a_new_life_begins_with_a_closed_breaker() -> None:
    desk = Desk()
    desk.fail(5)
    desk.records = (record(incarnation=2),)
    assert desk.answers() == 0


def test_a_call_that_was_cut_short_by_its_callers_deadline_says_nothing() -> None:
    desk = Desk()
    for _ in range(20):
        course = desk.course(timeout=10, outer_at_s=desk.now_s + 1)
        desk.choose(course)
        course.failed(DeadlineExceeded(), desk.now_s + 1)
    assert desk.answers() == 0
    for _ in range(5):
        course = desk.course(timeout=10, outer_at_s=desk.now_s + 9)
        desk.choose(course)
        course.failed(DeadlineExceeded(), desk.now_s + 9)
    with pytest.raises(Unreachable):
        desk.answers()


def test_a_deadline_that_a_handler_tells_of_early_is_somebody_elses() -> None:
    desk = Desk()
    desk.fail(20, told("deadline_exceeded"))
    assert desk.answers() == 0
    for _ in range(5):
        course = desk.course(timeout=1)
        desk.choose(course)
        desk.now_s += 0.99
        course.failed(told("deadline_exceeded"), desk.now_s)
    with pytest.raises(Unreachable):
        desk.answers()


def test_a_retry_that_the_breaker_would_refuse_is_not_waited_for() -> None:
    desk = Desk()
    desk.fail(4)
    assert desk.ends(Unreachable(), timeout=60) == []


def test_a_probe_that_is_cancelled_lets_the_next_one_go() -> None:
    desk = Desk()
    desk.fail(5)
    desk.now_s += 30
    probe = desk.course()
    desk.choose(probe)
    probe.dropped()
    assert desk.answers() == 0


def test_nobody_to_try_is_told_at_once() -> None:
    desk = Desk(record(phase="failed"))
    course = desk.course(timeout=60)
    with pytest.raises(Unreachable) as caught:
        desk.choose(course)
    assert course.failed(caught.value, desk.now_s) is None
    assert course.failed(HandlerError(), desk.now_s) is None


def test_a_wrong_policy_is_refused_where_it_is_written() -> None:
    for wrong in ({"attempts": 0}, {"retry_jitter": 2}, {"balance": "best"}, {"breaker_rest_s": -1}, {"attempts": "3"}):
        with pytest.raises(ConfigError, match=r"CallPolicy\("):
            CallPolicy(**wrong)  # type: ignore[arg-type]


def test_overloaded_is_retried_only_where_the_peer_itself_said_so() -> None:
    assert Desk().ends(Overloaded(details={"retry_after_ms": 100}), timeout=60) == pytest.approx([0.125, 0.25])
    assert Desk().ends(told("overloaded", False), timeout=60) == []


def _terms(traits: dict[str, Any], file: dict[str, Any], **own: Any) -> Any:
    policies = CallPolicies(CallPolicy(**own), file=FilePolicy.read(file))
    told = record(traits={"m": traits} if traits else {}, timeouts_s={"m": 7.0})
    return Board(lambda _: 0, policies).route("A", (told,)).terms("m")


def test_what_a_caller_says_of_a_method_goes_before_what_the_method_says_and_that_before_what_is_said_of_its_agent() -> (
    None
):
    hashed = {"balance": "hash", "key": "user"}
    assert _terms({}, {"to": {"A": {"timeout_s": 1.0}}}).timeout_s == 7.0
    assert _terms({}, {"to": {"A.m": {"timeout_s": 1.0}}}).timeout_s == 1.0
    assert _terms(hashed, {}, balance="round_robin")[2:4] == ("hash", "user")
    assert _terms(hashed, {"to": {"A.m": {"balance": "round_robin"}}})[2:4] == ("round_robin", "")
    assert _terms(hashed, {"to": {"A.m": {"balance": "hash", "key": "other"}}})[2:4] == ("hash", "other")
    assert _terms({}, {"calls": {"balance": "hash", "key": "user"}})[2:4] == ("hash", "user")


def test_a_callers_own_deadline_counts_where_the_method_tells_none() -> None:
    policies = CallPolicies(file=FilePolicy.read({"calls": {"timeout_s": 2.0}}))
    assert Board(lambda _: 0, policies).route("A", (record(),)).terms("unknown").timeout_s == 2.0
