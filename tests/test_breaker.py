"""Circuit breakers: what keeps its callers waiting, a store above all, is left alone for a moment at a time."""

import pytest
from support import SECRET, Site

from sessiontree import Handler, StoreUnavailable, with_clock, with_outage, with_store
from sessiontree.breaker import PAUSE, SLOW, Breaker
from sessiontree.handlers.breaker import MOST_FAILURES, StoreBreaker, breaker_of
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


class Watched:
    """A breaker by a clock of its own, and what it was asked to call."""

    def __init__(self, waits=SLOW):
        self.now = 0.0
        self.waits = waits
        self.calls = 0
        self.is_down = True
        self.breaker = StoreBreaker()
        self.breaker._seconds = lambda: self.now

    def _verb(self, argument):
        self.calls += 1
        if self.is_down:
            self.now += self.waits
            raise StoreUnavailable("It does not answer.")
        return argument

    def ask(self):
        try:
            return self.breaker.call(self._verb, "answer")
        except StoreUnavailable:
            return None


def test_after_a_few_time_outs_nobody_asks_for_a_moment_and_then_one_does():
    w = Watched()
    assert [w.ask() for _ in range(10)] == [None] * 10
    assert w.calls == MOST_FAILURES
    w.now += PAUSE - 0.001
    assert (w.ask(), w.calls) == (None, MOST_FAILURES)
    w.now += 0.001
    assert [w.ask() for _ in range(5)] == [None] * 5
    assert w.calls == MOST_FAILURES + 1
    w.now += PAUSE
    w.is_down = False
    assert [w.ask() for _ in range(3)] == ["answer"] * 3


def test_a_store_that_refuses_at_once_is_always_asked():
    w = Watched(waits=SLOW / 2)
    for _ in range(50):
        w.ask()
    assert w.calls == 50


def test_one_answer_in_between_closes_it():
    w = Watched()
    for _ in range(MOST_FAILURES - 1):
        w.ask()
    w.is_down = False
    w.ask()
    w.is_down = True
    for _ in range(MOST_FAILURES - 1):
        w.ask()
    w.is_down = False
    assert w.ask() == "answer"


def test_only_one_of_many_goes_first_after_a_pause():
    w = Watched()
    for _ in range(MOST_FAILURES):
        w.ask()
    w.now += PAUSE
    before, inner = w.calls, []

    def verb(argument):
        w.calls += 1
        inner.append(w.ask())
        return argument

    assert w.breaker.call(verb, 1) == 1
    assert (w.calls - before, inner) == (1, [None])


def test_other_errors_are_none_of_its_business():
    w = Watched()

    def verb():
        w.now += 10
        raise ValueError("the store answered")

    for _ in range(10):
        with pytest.raises(ValueError, match="answered"):
            w.breaker.call(verb)
    w.is_down = False
    assert w.ask() == "answer"


def test_there_is_one_for_each_store_and_requests_that_can_go_on_use_it():
    clock = FakeClock()
    store = FaultyStore(MemoryStore(clock=clock))
    handler = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_outage("anonymous"))
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    breaker = breaker_of(handler.store)
    assert breaker is breaker_of(handler.store)
    assert breaker is not breaker_of(MemoryStore())
    ticks = iter(range(10_000))
    breaker._seconds = lambda: next(ticks) * SLOW
    store.down()
    store.calls.clear()
    for _ in range(10):
        assert s.visit(dict) == {}
        assert (s.answer.code, s.answer.cookies) == (200, [])
    assert len(store.calls) < 10
    store.up()
    breaker._seconds = lambda: 1e6
    assert s.visit(dict) == {"n": 1}


def began(breaker, clock, waits):
    """Begin a call, and let it take so long."""
    at = breaker.begin()
    clock.advance(waits)
    return at


def test_it_opens_at_as_many_slow_calls_as_it_is_told():
    for most in (1, 2, 5):
        clock = FakeClock()
        breaker = Breaker(most, clock)
        for _ in range(most):
            assert breaker.count(began(breaker, clock, 0.5))
        assert breaker.begin() is None
        breaker.close()
        assert breaker.begin() is not None


def test_what_fails_at_once_neither_opens_nor_closes_it():
    clock = FakeClock()
    breaker = Breaker(1, clock)
    for _ in range(5):
        assert not breaker.count(began(breaker, clock, 0))
    breaker.count(began(breaker, clock, 0.5))
    clock.advance(PAUSE)
    assert not breaker.count(began(breaker, clock, 0))
    assert breaker.begin() is None


def test_it_can_be_opened_for_longer_and_a_slow_call_shortens_that_for_nobody():
    clock = FakeClock()
    breaker = Breaker(3, clock)
    at = breaker.begin()
    breaker.open(10)
    clock.advance(PAUSE)
    assert breaker.count(at)
    clock.advance(9 - 0.5)
    assert breaker.begin() is None
    clock.advance(0.5)
    assert breaker.begin() is not None
    assert breaker.begin() is None, "One tries."
