"""A store behind a front that forgets, fails and is shared: never a lie that lasts, and in this process none at all."""

import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, NamedTuple
from weakref import ref

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler import Scenario, Scheduler
from support import OTHER_SECRET, SECRET, SOAK, Site, environ

from sessiontree import (
    ConfigError,
    Conflict,
    Handler,
    NoSession,
    NotImplementedByStore,
    SessionGone,
    StoreUnavailable,
    UsageError,
    server_only,
    with_cache,
    with_clock,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.clock import FOREVER
from sessiontree.records import FORM, Changes
from sessiontree.stores import follow
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, fields, fresh_handle, js, new
from sessiontree.stores.layered import LayeredStore, floors
from sessiontree.stores.layered import front as layered_front
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.protocol import Confirming, Pipelining, Reloading, fits
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore

STALENESS = 5
"""What the layers here promise, in seconds, which is what they promise unless told otherwise."""


class TickingClock(FakeClock):
    """A clock that goes on by a millisecond at every look, so that what comes later is later."""

    def now(self):
        self._now += 1
        return self._now


class Silent:
    """A store that announces nothing, as anyone may write one."""

    def __init__(self, store):
        self.inner = store

    def __getattr__(self, name):
        if name in {"listen", "announce"}:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def watch(self, on_change):
        raise NotImplementedByStore("There is no feed.")


@dataclass
class World:
    """A primary and a front that several processes share, each with connections of its own that may fail."""

    clock: FakeClock = field(default_factory=TickingClock)
    announces: bool = True

    def __post_init__(self):
        self.primary = MemoryStore(clock=self.clock)
        self.front = MemoryStore(clock=self.clock)

    def process(self, **options) -> LayeredStore:
        primary = FaultyStore(self.primary)
        return LayeredStore(primary if self.announces else Silent(primary), FaultyStore(self.front), **options)

    def rows(self):
        return self.front.scan(None, 1000).records

    def lose(self):
        """Let the front lose everything."""
        for row in self.rows():
            self.front.revoke(row.handle)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def here(world):
    return world.process()


@pytest.fixture
def there(world):
    return world.process()


def known_to_the_front(*layers, **more):
    """Begin a session of bob's whose record the front has, and return it."""
    record = new(layers[0], labels={"subject": "bob"}, **more)
    for layer in layers:
        assert layer.load(record.handle) is not None
    assert trips(layers[0], lambda: layers[0].load(record.handle)) == ["front.load"]
    return record


def trips(layer, action):
    """Return what the layer asked its two stores for meanwhile."""
    calls = {"primary": layer.primary.calls, "front": layer.front.calls}
    begun = {name: len(asked) for name, asked in calls.items()}
    action()
    return [f"{name}.{verb}" for name, asked in reversed(calls.items()) for verb, _ in asked[begun[name] :]]


def write(layer, record, **keys):
    return layer.apply(record.handle, PROOF, Changes(sets={key: (js(value), 0) for key, value in keys.items()}))


# -- the suite ---------------------------------------------------------------------------------------------


class View(FaultyStore):
    """A store object of its own on an engine that others have too: closing it closes it for nobody else."""

    def close(self):
        self.down(UsageError("This store is closed."))


class Ahead:
    """The clock of a front whose every look is a millisecond later, so that each change is older than what follows."""

    def __init__(self, clock):
        self.clock, self.looks = clock, 0

    def now(self):
        self.looks += 1
        return self.clock.now() + self.looks

    def __eq__(self, other):
        return self.clock == getattr(other, "clock", other)

    __hash__ = None


class Layers(StoreConformance):
    """Every case over two engines; ``reopen`` is another process, with both engines open a second time."""

    kinds = (MemoryStore, MemoryStore)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.paths = tmp_path / "primary.db", tmp_path / "front.db"
        self.engines = [None, None]
        self.ahead = None

    def opened(self, number, clock):
        if self.kinds[number] is SqliteStore:
            return SqliteStore(self.paths[number], clock=clock)
        if self.engines[number] is None:
            self.engines[number] = MemoryStore(clock=clock)
        return View(self.engines[number])

    def make_store(self, clock):
        self.ahead = self.ahead or Ahead(clock)
        return LayeredStore(self.opened(0, clock), self.opened(1, self.ahead), keys=SECRET)

    def reopen(self, store):
        return self.make_store(store.clock)


class TestMemoryBehindMemory(Layers):
    pass


class TestMemoryBehindSqlite(Layers):
    kinds = (MemoryStore, SqliteStore)


class TestSqliteBehindMemory(Layers):
    kinds = (SqliteStore, MemoryStore)


class TestSqliteBehindSqlite(Layers):
    kinds = (SqliteStore, SqliteStore)


class Troubled(View):
    """A front that loses one call, one answer and one time all it has, of every few calls."""

    def _call(self, verb, *arguments):
        number = 1 if verb == "close" else len(self.calls) + 1
        if not number % 7:
            for found in self.inner.scan(None, 1000).records:
                self.inner.revoke(found.handle)
        if not number % 3:
            self.fail()
        elif not number % 5:
            self.fail_after()
        return super()._call(verb, *arguments)


class TestBehindAFrontInTrouble(Layers):
    """In one process, for another one may see a change later then."""

    def opened(self, number, clock):
        store = super().opened(number, clock)
        return Troubled(store.inner) if number else store

    def reopen(self, store):
        return None


# -- what it is for ----------------------------------------------------------------------------------------


def test_what_the_front_knows_costs_the_primary_nothing(here, there):
    record = new(here)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load", "front.apply", "primary.load"]
    for layer in (here, there):
        assert trips(layer, lambda layer=layer: layer.load(record.handle)) == ["front.load"]
    assert here.load(record.handle) == record


def test_a_write_is_one_trip_to_the_primary_and_one_to_the_front(here):
    record = known_to_the_front(here)
    assert trips(here, lambda: write(here, record, a=1)) == ["front.apply", "primary.apply"]
    assert trips(here, lambda: here.revoke(record.handle)) == ["front.apply", "primary.revoke"]
    assert trips(here, lambda: new(here)) == ["front.create", "primary.create"]


def test_a_write_to_what_the_front_does_not_have_leaves_a_tombstone(world, here):
    record = known_to_the_front(here)
    world.lose()
    assert trips(here, lambda: write(here, record, a=1)) == ["front.apply", "front.create", "primary.apply"]


def test_many_are_looked_up_in_one_trip_to_each(here):
    known, unknown, absent = known_to_the_front(here), new(here), fresh_handle()
    asked = [unknown.handle, known.handle, absent, known.handle]
    assert trips(here, lambda: here.load_many(asked)) == [
        "front.load_many", "front.apply", "front.create", "primary.load_many",
    ]  # fmt: skip
    assert trips(here, lambda: here.load_many(asked)) == ["front.load_many"]
    assert list(here.load_many(asked).values()) == [unknown, known]


def test_a_partial_load_is_answered_from_a_whole_copy_and_never_kept(here):
    record = new(here, fields=fields(a=js(1), b=js(2)))
    assert trips(here, lambda: here.load(record.handle, ["a"])) == ["front.load", "primary.load"]
    here.load(record.handle)
    assert trips(here, lambda: here.load(record.handle, ["a"])) == ["front.load"]
    assert here.load(record.handle, ["a"]).contents(0) == {"a": (js(1), 0)}


def test_labels_are_looked_up_in_the_primary(here):
    record = known_to_the_front(here)
    asked = {
        "find": lambda: here.find("subject", "bob"),
        "count": lambda: here.count("subject", "bob"),
        "scan": here.scan,
    }
    for verb, action in asked.items():
        assert trips(here, action) == [f"primary.{verb}"]
    assert here.find("subject", "bob").records == [record]


def test_a_fresh_copy_is_served_while_the_primary_is_down_and_nothing_else_is(world, here):
    record, other = known_to_the_front(here), new(here)
    here.primary.down()
    assert here.load(record.handle) == record
    for call in (
        lambda: here.load(other.handle),
        lambda: here.load_many([record.handle, other.handle]),
        lambda: here.find("subject", "bob"),
        here.scan,
    ):
        with pytest.raises(StoreUnavailable):
            call()
    world.clock.advance(STALENESS)
    with pytest.raises(StoreUnavailable):
        here.load(record.handle)


class Able(MemoryStore):
    """Has every verb that a store may have, and says which were asked for."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked = []

    def apply_many(self, writes):
        self.asked.append("apply_many")
        return [self.apply(*write) for write in writes]

    def reload(self, handle):
        self.asked.append("reload")
        return super().load(handle)

    def confirm(self):
        self.asked.append("confirm")


def test_the_optional_verbs_are_those_of_the_primary_and_reload(world):
    plain, able = MemoryStore(clock=world.clock), Able(clock=world.clock)
    for primary, verbs in ((plain, [Reloading]), (able, [Pipelining, Reloading, Confirming])):
        layer = LayeredStore(primary, MemoryStore(clock=world.clock))
        assert [verb for verb in (Pipelining, Reloading, Confirming) if fits(layer, verb)] == verbs
    record, heard = new(layer), []
    assert layer.load(record.handle) == record
    layer.listen(heard.append)
    assert layer.apply_many([(record.handle, PROOF, Changes(adds={"n": 1}))]) == [2]
    assert heard == [record.handle]
    assert layer.load(record.handle).version == 2
    layer.confirm()
    assert able.asked == ["apply_many", "confirm"]


@pytest.mark.parametrize("kind", [MemoryStore, Able])
def test_a_layer_that_nobody_holds_is_gone_at_once_and_its_connections_with_it(world, kind):
    layer = LayeredStore(kind(clock=world.clock), MemoryStore(clock=world.clock))
    assert fits(layer, Pipelining) == (kind is Able)
    gone = ref(layer)
    del layer
    assert gone() is None


def test_what_is_read_anew_is_read_anew_by_the_primary_too(world):
    """A primary may be a layered store as well."""
    base = MemoryStore(clock=world.clock)
    layer = LayeredStore(
        LayeredStore(base, MemoryStore(clock=world.clock)), MemoryStore(clock=world.clock), name="outer"
    )
    record = new(layer)
    assert layer.load(record.handle) == record
    base.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert layer.load(record.handle) == record, "Nobody has told of this."
    assert layer.reload(record.handle).version == 2


@pytest.mark.parametrize("kind", [MemoryStore, Able])
def test_a_dead_primary_is_asked_once_for_all_writes_of_a_request(world, kind):
    primary = FaultyStore(kind(clock=world.clock))
    visitor = Handler("visitor", SECRET, with_clock(world.clock), with_store(LayeredStore(primary, world.front)))
    site = Site(visitor, visitor.spawn("user"), visitor.spawn("job"))

    def write_all(*sessions):
        for session in sessions:
            session["n"] = 1

    site.visit(write_all)
    primary.calls.clear()

    def write_while_it_is_down(*sessions):
        for session in sessions:
            session["n"] += 1
        primary.down()

    site.visit(write_while_it_is_down)
    assert site.answer.code == 503
    verb = "apply_many" if kind is Able else "apply"
    assert [called for called, _ in primary.calls if called.startswith("apply")] == [verb]


# -- the faults of a layered store that was looked at ----------------------------------


def check_it_ends(world, here, there, is_over):
    """Check that a change is seen here at once and for ever, and there once ``max_staleness`` is over at the latest."""
    began = world.clock._now
    while world.clock._now < began + 2 * STALENESS * 1000:
        assert is_over(here)
        seen_there = is_over(there)
        assert seen_there or world.clock._now < began + STALENESS * 1000
        world.clock.advance(0.1)
    assert seen_there


def is_dead(handle):
    return lambda layer: layer.load(handle) is None and layer.load_many([handle]) == {}


@pytest.mark.parametrize("for_whom", ["the writer", "everybody"])
def test_l1_what_was_revoked_while_the_front_was_down_comes_back_for_nobody_for_longer_than_stated(
    world, here, there, for_whom
):
    record = known_to_the_front(here, there)
    down = [here] if for_whom == "the writer" else [here, there]
    for layer in down:
        layer.front.down()
    assert here.revoke(record.handle) is True
    for layer in down:
        layer.front.up()
    assert there.load(record.handle) == record, "This is the staleness that is stated."
    check_it_ends(world, here, there, is_dead(record.handle))


@pytest.mark.parametrize("announces", [True, False])
def test_l2_what_was_relabelled_while_the_front_was_down_is_read_anew(announces):
    world = World(announces=announces)
    here, there = world.process(), world.process()
    record = known_to_the_front(here, there)
    here.front.down()
    assert here.relabel("subject", "bob", "eve") == 1
    here.front.up()
    check_it_ends(world, here, there, lambda layer: layer.load(record.handle).label == {"subject": "eve"})


@pytest.mark.parametrize("announces", [True, False])
def test_l3_what_was_revoked_by_its_label_while_the_front_was_down_resolves_no_more(announces):
    world = World(announces=announces)
    here, there = world.process(), world.process()
    record = known_to_the_front(here, there)
    here.front.down()
    assert here.revoke_where("subject", "bob") == 1
    here.front.up()
    check_it_ends(world, here, there, is_dead(record.handle))


@pytest.mark.parametrize("rows", ["no row", "a tombstone", "a copy that is too old"])
@pytest.mark.parametrize("who", ["here", "there"])
def test_l4_a_fill_that_is_overtaken_by_a_revoke_is_refused(world, here, there, rows, who):
    reader, writer = {"here": (here, here), "there": (there, here)}[who]
    record = new(here)
    if rows == "no row":
        world.lose()
    elif rows == "a copy that is too old":
        here.load(record.handle)
        world.clock.advance(STALENESS)
    verb = "create" if rows == "no row" else "apply"
    reader.front.delay(1, lambda: writer.revoke(record.handle), verb=verb)
    assert reader.load(record.handle) == record, "It was live when the primary was asked."
    assert not reader.front._faults
    for layer in (here, there):
        assert layer.load(record.handle) is None


def test_l5_a_fill_that_is_overtaken_by_a_relabelling_is_refused(here, there):
    record = new(here, labels={"worker": "1"})
    there.front.delay(1, lambda: here.relabel("worker", "1", "2"), verb="apply")
    assert there.load(record.handle).label == {"worker": "1"}
    assert there.load(record.handle).label == here.load(record.handle).label == {"worker": "2"}


def test_l6_what_the_primary_did_not_take_is_nowhere(world, here, there):
    here.primary.down()
    with pytest.raises(StoreUnavailable):
        new(here, "a" * 32)
    with pytest.raises(StoreUnavailable):
        here.load("a" * 32)
    assert there.load("a" * 32) is None
    assert all("record" not in orjson.loads(row.fields) or not row_copy(row) for row in world.rows())


def row_copy(row):
    return orjson.loads(row.fields).get("record")


def test_l7_a_logout_that_the_primary_did_not_take_is_told_and_is_not_done(here, there):
    record = known_to_the_front(here, there)
    here.primary.down()
    with pytest.raises(StoreUnavailable):
        here.revoke(record.handle)
    with pytest.raises(StoreUnavailable):
        here.load(record.handle)
    here.primary.up()
    assert here.load(record.handle) == there.load(record.handle) == record
    assert here.revoke(record.handle) is True


def test_l7_a_logout_whose_answer_was_lost_is_seen_at_once(here, there):
    record = known_to_the_front(here, there)
    here.primary.fail_after(1, verb="revoke")
    with pytest.raises(StoreUnavailable):
        here.revoke(record.handle)
    assert here.load(record.handle) is there.load(record.handle) is None


def test_l8_no_reading_makes_a_session_live_longer(world, here):
    record = known_to_the_front(here, idle=world.clock._now + 60_000)
    while world.clock._now < record.idle - 1000:
        world.clock.advance(0.5)
        assert here.load(record.handle) is not None
    world.clock.advance((record.idle - world.clock._now) / 1000)
    assert here.load(record.handle) is None
    world.clock.advance(-30)
    assert here.load(record.handle) is None, "It came back when the clock was set back."


def test_l9_a_write_that_is_refused_ends_the_copy_here_too(world, here):
    record = known_to_the_front(here)
    world.primary.revoke(record.handle)  # past the layers, as a tool may do it
    assert here.load(record.handle) == record, "This is the staleness that is stated."
    with pytest.raises(SessionGone):
        here.apply(record.handle, PROOF, Changes(seen=FOREVER))
    assert here.load(record.handle) is None


def test_l10_what_is_absent_is_looked_up_in_the_primary_once_in_a_while(world, here, there):
    handle = fresh_handle()
    assert trips(here, lambda: here.load(handle)) == ["front.load", "front.create", "primary.load"]
    for layer in (here, there):
        assert trips(layer, lambda layer=layer: layer.load(handle)) == ["front.load"]
        assert trips(layer, lambda layer=layer: layer.load_many([handle])) == ["front.load_many"]
    world.clock.advance(STALENESS)
    assert "primary.load" in trips(here, lambda: here.load(handle))


def test_l10_a_session_that_begins_under_an_absent_handle_is_there_for_everybody(here, there):
    handle = fresh_handle()
    assert here.load(handle) is there.load(handle) is None
    record = new(here, handle)
    assert here.load(handle) == there.load(handle) == record


def test_l10_who_was_told_that_a_session_exists_already_finds_it(here, there):
    handle = fresh_handle()
    assert there.load(handle) is None
    here.front.down()
    record = new(here, handle)
    assert there.load(handle) is None, "This is the staleness that is stated."
    with pytest.raises(Conflict):
        new(there, handle, proof=OTHER_PROOF)
    assert there.load(handle) == record


# -- every interleaving ------------------------------------------------------------------------------------

MOST_PREEMPTIONS = 2 if SOAK == 1 else 4
HANDLE = "a" * 32


class Stopping:
    """A store that hands the baton on before every verb."""

    def __init__(self, store, scheduler, name):
        self._store, self._scheduler, self._name = store, scheduler, name

    def __getattr__(self, verb):
        value = getattr(self._store, verb)
        if not callable(value) or verb in {"listen", "close"}:
            return value

        def stopped(*arguments):
            self._scheduler.point(f"{self._name}.{verb}")
            return value(*arguments)

        return stopped


def seen(record):
    return None if record is None else (record.version, record.proof)


def changing(layer, changes):
    try:
        return int(layer.apply(HANDLE, PROOF, changes))
    except SessionGone:
        return "gone"


ACTS: dict[str, Callable[[Any, int], Any]] = {
    "read": lambda layer, number: seen(layer.load(HANDLE)),
    "read many": lambda layer, number: seen(layer.load_many([HANDLE, "b" * 32]).get(HANDLE)),
    "revoke": lambda layer, number: layer.revoke(HANDLE),
    "revoke where": lambda layer, number: layer.revoke_where("subject", "bob"),
    "relabel": lambda layer, number: layer.relabel("subject", "bob", "eve"),
    "apply": lambda layer, number: changing(layer, Changes(sets={"a": (js(number), 0)})),
    "renew": lambda layer, number: changing(layer, Changes(proof=OTHER_PROOF)),
}
READS = {"read", "read many"}
ENDS = {"revoke", "revoke where"}


class Act(NamedTuple):
    """What is done and by which process; nobody loses what the front has."""

    name: str
    by: int | None = None


LOSE = Act("lose")


def begun(world, start):
    """Leave the front as it may be when the operations begin."""
    writer = world.process()
    new(writer, HANDLE, labels={"subject": "bob"})
    if start == "copy":
        writer.load(HANDLE)
    elif start == "nothing":
        world.lose()
    elif start == "old copy":
        writer.load(HANDLE)
        world.clock.advance(STALENESS)


def may_be_seen(acts, run, before):
    """Return what a read may not be without: the versions and the end that certainly came before it."""
    changes = [number for number, act in enumerate(acts) if act.name in ACTS and act.name not in READS]
    done = [number for number in changes if run.results[number] not in {"gone", 0} and before(number)]
    ended = any(acts[number].name in ENDS for number in done)
    versions = [run.results[number] for number in done if acts[number].name in {"apply", "renew"}]
    return ended, max([1, *versions]) + any(acts[number].name == "relabel" for number in done) * (not versions)


def check_read(found, ended, version):
    assert found is None or (not ended and found[0] >= version), "a change that had returned was not seen"


def scenario_of(acts, start, scheduler):
    def made():
        world = World()
        begun(world, start)
        stores = Stopping(world.primary, scheduler, "primary"), Stopping(world.front, scheduler, "front")
        layers = [LayeredStore(*stores) for _ in range(2)]
        loses = LOSE in acts

        def operation(number, act):
            if act.by is not None:
                return ACTS[act.name](layers[act.by], number)
            scheduler.point("lose")
            return world.lose()

        def is_by(by, number):
            return acts[number].by == by

        def is_told(run, read, number):
            """Tell whether the read must see the change: its own process's always, another's if nothing is lost."""
            return run.is_before(number, read) and (not loses or is_by(acts[read].by, number))

        def check(run):
            for number, act in enumerate(acts):
                if act.name in READS:
                    check_read(run.results[number], *may_be_seen(acts, run, partial(is_told, run, number)))
            truth = seen(world.primary.load(HANDLE))
            for by, layer in enumerate(layers):
                found = [seen(layer.load(HANDLE)), seen(layer.load_many([HANDLE]).get(HANDLE))]
                if loses:
                    check_read(found[0], *may_be_seen(acts, run, partial(is_by, by)))
                else:
                    assert found == [truth, truth]
            world.clock.advance(STALENESS)
            assert [seen(layer.load(HANDLE)) for layer in layers] == [truth, truth]

        return Scenario([partial(operation, number, act) for number, act in enumerate(acts)], check)

    return made


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


STARTS = ["nothing", "tombstone", "copy", "old copy"]
CHANGES = ["revoke", "apply", "renew", "relabel", "revoke where"]


def told(acts, count):
    names = " | ".join(f"{act.name} {'' if act.by is None else 'AB'[act.by]}" for act in acts)
    sys.stdout.write(f"{names:45} {count:6} schedules\n")


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("read", "by", "change"), list(product(["read", "read many"], [0, 1], CHANGES)))
def test_every_interleaving_of_a_read_and_a_change_keeps_the_promises(scheduler, start, read, by, change):
    acts = [Act(read, by), Act(change, 0)]
    told(acts, scheduler.explore(scenario_of(acts, start, scheduler)))


THIRDS = [LOSE, Act("read", 0), Act("read", 1), Act("apply", 1), Act("revoke", 1)]


@pytest.mark.parametrize("start", STARTS if SOAK > 1 else ["nothing"])
@pytest.mark.parametrize("third", THIRDS, ids=lambda act: f"{act.name} {act.by}")
@pytest.mark.parametrize(("by", "change"), list(product([0, 1], CHANGES if SOAK > 1 else ["revoke", "apply"])))
def test_a_read_a_change_and_a_third_keep_the_promises_with_few_preemptions(scheduler, start, by, change, third):
    acts = [Act("read", by), Act(change, 0), third]
    told(acts, scheduler.explore(scenario_of(acts, start, scheduler), MOST_PREEMPTIONS))


# -- a front that forgets, fails and comes back, at random -------------------------------------------------


class History:
    """What the truth was and when, and from which of its states on each process has to see it."""

    def __init__(self, world, layers):
        self.world = world
        self.states = [(world.clock._now, None)]
        self.least = {id(layer): 0 for layer in layers}
        self.is_exact = True  # Until the front is in trouble.
        self.is_bounded = True  # Until the clock is set back.

    def changed(self, layer):
        """Note what a process changed, if it did."""
        state = seen(self.world.primary.load(HANDLE))
        if state != self.states[-1][1]:
            self.states.append((self.world.clock._now, state))
        self.least[id(layer)] = len(self.states) - 1

    def allowed_from(self, layer):
        """Return the earliest state that the process may see now."""
        if self.is_exact:
            return len(self.states) - 1
        current = 0
        if self.is_bounded:
            since = self.world.clock._now - STALENESS * 1000
            current = max(number for number, (at, _) in enumerate(self.states) if at <= since or not number)
        return max(current, self.least[id(layer)])

    def read(self, layer, load):
        earliest = self.allowed_from(layer)
        try:
            found = seen(load())
        except StoreUnavailable:
            assert layer.primary._down, "The front's failures are nobody's business."
            return
        assert found in [state for _, state in self.states[earliest:]]


class Play:
    """Two processes that do what they are told, and the history that judges what they read."""

    def __init__(self, announces):
        self.world = World(announces=announces)
        self.layers = [self.world.process(), self.world.process()]
        self.history = History(self.world, self.layers)

    def act(self, name, who, more):
        """Take one step; ``more`` is how long to wait, which verb's answer to lose, or what is done meanwhile."""
        layer = self.layers[who]
        if name in WRITES:
            with suppress(Conflict, StoreUnavailable):
                WRITES[name](layer, self.world)
            self.history.changed(layer)
        elif name.startswith("front"):
            self.history.is_exact = False
            TROUBLE[name](layer.front, self.world)
        elif name == "wait":
            self.world.clock.advance(more)
            self.history.is_bounded = self.history.is_bounded and more >= 0
        else:
            OTHERS[name](self, layer, more)

    def load_slowly(self, layer, more):
        """Let a load be overtaken, between what the primary says and its being kept."""
        layer.front.delay(2, lambda: [self.act(*each) for each in more])
        self.history.read(layer, lambda: layer.load(HANDLE))
        layer.front._faults.clear()


OTHERS: dict[str, Callable[[Play, Any, Any], object]] = {
    "load": lambda play, layer, _: play.history.read(layer, lambda: layer.load(HANDLE)),
    "load many": lambda play, layer, _: play.history.read(
        layer, lambda: layer.load_many([HANDLE, "b" * 32]).get(HANDLE)
    ),
    "load slowly": Play.load_slowly,
    "primary down": lambda play, layer, _: layer.primary.down(),
    "primary up": lambda play, layer, _: layer.primary.up(),
    "lose an answer": lambda play, layer, verb: layer.primary.fail_after(1, verb=verb),
}

TROUBLE: dict[str, Callable[[Any, World], object]] = {
    "front loses all": lambda front, world: world.lose(),
    "front fails once": lambda front, world: front.fail(1),
    "front loses an answer": lambda front, world: front.fail_after(1),
    "front corrupts": lambda front, world: front.corrupt(1),
    "front down": lambda front, world: front.down(),
    "front up": lambda front, world: front.up(),
}


def proof_now(world):
    record = world.primary.load(HANDLE)
    return PROOF if record is None else record.proof


WRITES: dict[str, Callable[[Any, World], object]] = {
    "create": lambda layer, world: new(layer, HANDLE, proof=os.urandom(32), labels={"subject": "bob"}),
    "apply": lambda layer, world: layer.apply(HANDLE, proof_now(world), Changes(adds={"n": 1})),
    "renew": lambda layer, world: layer.apply(HANDLE, proof_now(world), Changes(proof=os.urandom(32))),
    "revoke": lambda layer, world: layer.revoke(HANDLE),
    "relabel": lambda layer, world: layer.relabel("subject", "bob", "bob"),
}

whose = st.sampled_from([0, 1])
plain_steps = st.one_of(
    st.tuples(st.sampled_from(["load", "load many", *WRITES]), whose, st.none()),
    st.tuples(st.just("create"), whose, st.none()),
    st.tuples(st.just("lose an answer"), whose, st.sampled_from(["create", "apply", "revoke"])),
    st.tuples(st.sampled_from(["primary down", "primary up", "primary up"]), whose, st.none()),
    st.tuples(st.just("wait"), whose, st.sampled_from([0.001, 0.5, 2.0, 4.99, 5.0, 6.0, 60.0, -1.0, -60.0])),
)
trouble = st.tuples(st.sampled_from(list(TROUBLE)), whose, st.none())
slow_loads = st.tuples(st.just("load slowly"), whose, st.lists(plain_steps | trouble, max_size=3))


@settings(deadline=None, max_examples=150 * SOAK)
@given(st.lists(st.one_of(plain_steps, plain_steps, slow_loads), max_size=25), st.booleans())
def test_a_front_that_works_is_never_noticed(steps, announces):
    check_steps([step for step in steps if not is_trouble(step)], announces)


def is_trouble(step):
    name, _, more = step
    return name.startswith("front") or (isinstance(more, list) and any(map(is_trouble, more)))


@settings(deadline=None, max_examples=250 * SOAK)
@given(st.lists(st.one_of(plain_steps, plain_steps, slow_loads, trouble), max_size=40), st.booleans())
def test_a_front_in_trouble_is_noticed_here_never_and_elsewhere_for_no_longer_than_stated(steps, announces):
    check_steps(steps, announces)


def check_steps(steps, announces):
    play = Play(announces)
    logging.disable()
    try:
        for step in [("create", 0, None), *steps, ("load", 0, None), ("load", 1, None)]:
            play.act(*step)
    finally:
        logging.disable(logging.NOTSET)


# -- a front that fails ------------------------------------------------------------------------------------


def test_while_the_front_is_down_every_verb_is_answered_by_the_primary(here, caplog):
    record = known_to_the_front(here)
    here.front.down()
    assert here.load(record.handle) == record
    assert here.load_many([record.handle]) == {record.handle: record}
    assert write(here, record, a=1) == 2
    assert here.load(record.handle).version == 2
    assert here.relabel("subject", "bob", "eve") == 1
    assert here.sweep() == here.sweep_idle(60) == 0
    assert here.revoke(record.handle) is True
    assert here.load(record.handle) is None
    assert [entry.levelname for entry in caplog.records] == ["WARNING"], "It is said once."
    here.front.up()
    known_to_the_front(here)
    here.front.down()
    here.load(fresh_handle())
    assert len(caplog.records) == 2


@pytest.mark.parametrize("failure", [RuntimeError("what?"), UsageError("closed"), OSError(5, "EIO"), TypeError("None")])
def test_whatever_the_front_raises_is_a_miss(here, failure):
    record = known_to_the_front(here)
    here.front.down(failure)
    assert here.load(record.handle) == record
    assert here.load_many([record.handle]) == {record.handle: record}
    assert here.revoke(record.handle) is True


CALLS = {
    "load": lambda layer, record: layer.load(record.handle),
    "load_many": lambda layer, record: layer.load_many([record.handle, "b" * 32, "c" * 32]),
    "apply": lambda layer, record: write(layer, record, a=1),
    "create": lambda layer, record: new(layer),
    "revoke_where": lambda layer, record: layer.revoke_where("subject", "bob"),
    "sweep": lambda layer, record: layer.sweep(),
}


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("after", [0, 1])
def test_no_call_waits_for_a_front_that_is_down_more_than_once(here, verb, after):
    record = new(here, labels={"subject": "bob"})
    new(here, labels={"subject": "bob"})
    begun = len(here.front.calls)
    for number in range(1 + after, 9):
        here.front.fail(number)
    CALLS[verb](here, record)
    assert len(here.front.calls) - begun <= 1 + after


def times_out(world, layer, meanwhile=lambda: None):
    """Let the next call of the front end in a time-out."""

    def wait():
        meanwhile()
        world.clock.advance(0.5)
        raise StoreUnavailable("The front did not answer in time.")

    layer.front.delay(1, wait)


def test_a_front_that_was_slow_to_fail_is_left_alone_for_a_second_and_then_asked_by_one(world, here):
    record = known_to_the_front(here)
    times_out(world, here)
    for asked in (["front.load", "primary.load"], *[["primary.load"]] * 20):
        assert trips(here, lambda: here.load(record.handle)) == asked
    world.clock.advance(1)
    others = []
    times_out(world, here, lambda: others.extend(trips(here, lambda: here.load(record.handle))))
    here.load(record.handle)
    assert others == ["primary.load"], "While one tries, nobody else does."
    assert trips(here, lambda: here.load(record.handle)) == ["primary.load"]
    world.clock.advance(1)
    for _ in range(2):
        assert trips(here, lambda: here.load(record.handle)) == ["front.load"]


def test_a_front_that_refuses_at_once_is_always_asked(here):
    record = known_to_the_front(here)
    here.front.down()
    for _ in range(5):
        assert trips(here, lambda: here.load(record.handle)) == ["front.load", "primary.load"]


def test_a_drop_that_the_front_was_not_asked_for_counts_as_failed(world, here, there):
    record, other = known_to_the_front(here, there), known_to_the_front(here, there)
    times_out(world, here)
    here.load(other.handle)
    assert trips(here, lambda: here.revoke(record.handle)) == ["primary.revoke"]
    check_it_ends(world, here, there, is_dead(record.handle))


def test_a_handle_whose_drop_failed_is_read_from_the_primary_until_older_copies_are_too_old(world, here):
    record, other = known_to_the_front(here), known_to_the_front(here)
    here.front.fail(1)
    write(here, record, a=1)
    for _ in range(4):
        assert trips(here, lambda: here.load(record.handle)) == ["primary.load"]
        world.clock.advance(1)
    here.load(other.handle)
    assert trips(here, lambda: here.load(other.handle)) == ["front.load"]
    world.clock.advance(1)
    here.load(record.handle)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load"]


def test_of_many_changes_each_is_dropped_and_none_is_waited_for_twice(world, here, there):
    records = [known_to_the_front(here, there) for _ in range(30)]
    here.front.fail(11)
    assert here.revoke_where("subject", "bob") == 30
    assert sum(there.load(record.handle) is None for record in records) == 10
    check_it_ends(world, here, there, lambda layer: all(is_dead(record.handle)(layer) for record in records))


@pytest.fixture
def silent():
    """Two processes whose primary announces nothing."""
    world = World(announces=False)
    return world, world.process(), world.process()


def labelled_meanwhile(here, there, verb):
    """Return a session that gets the label of bob's when his are listed already, and is then read."""
    late = new(here)

    def label_it():
        there.apply(late.handle, PROOF, Changes(labels={"subject": "bob"}))
        assert there.load(late.handle).label == {"subject": "bob"}

    here.primary.inner.delay(1, label_it, verb=verb)
    return late


def test_what_is_labelled_while_all_of_the_label_are_revoked_is_gone_here_though_nobody_announces_it(silent):
    world, here, there = silent
    early, late = known_to_the_front(here, there), labelled_meanwhile(here, there, "revoke_where")
    assert here.revoke_where("subject", "bob") == 2
    for record in (early, late):
        check_it_ends(world, here, there, is_dead(record.handle))


def test_what_is_labelled_while_all_of_the_label_are_relabelled_is_read_anew_though_nobody_announces_it(silent):
    _, here, there = silent
    early, late = known_to_the_front(here, there), labelled_meanwhile(here, there, "relabel")
    assert here.relabel("subject", "bob", "eve") == 2
    for layer in (here, there):
        assert [layer.load(record.handle).label for record in (early, late)] == [{"subject": "eve"}] * 2


def test_all_pages_of_what_nobody_announces_are_dropped(silent):
    _, here, there = silent
    records = [known_to_the_front(here, there) for _ in range(250)]
    assert here.relabel("subject", "bob", "eve") == 250
    assert all(there.load(record.handle).label == {"subject": "eve"} for record in records)
    assert here.revoke_where("subject", "eve") == 250
    assert all(there.load(record.handle) is None for record in records)


@pytest.mark.parametrize("announces", [True, False])
def test_what_is_swept_for_being_idle_is_gone_here_at_once(announces):
    world = World(announces=announces)
    here, there = world.process(), world.process()
    record = new(here)
    world.clock.advance(100)
    for layer in (here, there):
        layer.load(record.handle)
    assert here.sweep_idle(60) == 1
    check_it_ends(world, here, there, is_dead(record.handle))
    if announces:
        assert there.load(record.handle) is None


def test_a_relabelling_that_fails_midway_is_dropped_as_far_as_it_came(here, there):
    record = known_to_the_front(here, there)
    here.primary.fail_after(1, verb="relabel")
    with pytest.raises(StoreUnavailable):
        here.relabel("subject", "bob", "eve")
    assert here.load(record.handle).label == there.load(record.handle).label == {"subject": "eve"}


# -- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0.001, 1, 60])
def test_a_copy_is_served_for_exactly_as_long_as_stated(staleness):
    world = World(clock=FakeClock())
    here = world.process(max_staleness=staleness)
    record = new(here)
    world.clock.advance(0.001)
    here.load(record.handle)
    world.clock.advance(staleness - 0.001)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load"]
    world.clock.advance(0.001)
    assert "primary.load" in trips(here, lambda: here.load(record.handle))


def test_age_counts_from_before_the_primary_was_asked(world, here):
    record = new(here)
    here.primary.delay(1, lambda: world.clock.advance(3))
    here.load(record.handle)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load"]
    world.clock.advance(2)
    assert "primary.load" in trips(here, lambda: here.load(record.handle))


def test_what_the_primary_took_too_long_for_is_not_kept(world, here):
    record = new(here)
    here.primary.delay(1, lambda: world.clock.advance(STALENESS))
    assert trips(here, lambda: here.load(record.handle)) == ["front.load", "primary.load"]


@pytest.mark.parametrize("back", [0.01, 1, 4, 3600])
def test_a_clock_that_is_set_back_makes_no_copy_young_again(world, here, back):
    record = known_to_the_front(here)
    world.clock.advance(STALENESS - 1)
    world.primary.revoke(record.handle)
    here.load(fresh_handle())
    world.clock.advance(-back)
    assert here.load(record.handle) is None
    world.clock.advance(back + STALENESS)
    known_to_the_front(here)


def test_a_copy_from_a_clock_that_is_ahead_is_no_use_yet(world, here, there):
    record = new(here)
    world.clock.advance(60)
    there.load(record.handle)
    world.clock.advance(-60)
    asked = trips(here, lambda: here.load(record.handle))
    assert asked == ["front.load", "front.apply", "primary.load"]


def test_a_tombstone_outlasts_every_fill_that_it_is_to_refuse(world, here, there):
    record = new(here)
    world.lose()

    def meanwhile():
        write(here, record, a=1)
        world.clock.advance(STALENESS - 0.02)

    there.front.delay(1, meanwhile, verb="create")
    assert there.load(record.handle).version == 1
    assert there.load(record.handle).version == 2


def test_a_fill_outlasts_every_fill_that_its_tombstone_was_to_refuse(world, here, there):
    """Where the row takes the life of its session, which the change made short, it would be gone too early."""
    record = new(here)
    world.lose()

    def meanwhile():
        here.apply(record.handle, PROOF, Changes(own=world.clock._now + 1000))
        here.load(record.handle)
        world.clock.advance(1)

    there.front.delay(1, meanwhile, verb="create")
    assert there.load(record.handle) is not None
    assert there.load(record.handle) is None


def test_a_copy_of_the_very_millisecond_of_a_change_is_not_served_here():
    world = World(clock=FakeClock())
    here, there = world.process(), world.process()
    record = new(here)
    world.lose()
    world.clock.advance(0.001)
    there.front.delay(1, lambda: (here.revoke(record.handle), world.lose()), verb="create")
    there.load(record.handle)
    world.clock.advance(0.001)
    assert there.load(record.handle) == record, "This is the staleness that is stated."
    assert here.load(record.handle) is None


def test_a_copy_is_kept_for_its_own_time_whenever_its_tombstone_was_made(world, here):
    record = new(here)
    world.clock.advance(2 * STALENESS - 1)
    here.load(record.handle)
    world.clock.advance(STALENESS - 1)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load"]


# -- floors ------------------------------------------------------------------------------------------------


def test_floors_are_forgotten_when_nothing_is_so_old_any_more(world, here):
    for _ in range(50):
        new(here)
        world.clock.advance(1)
    assert len(here._front._floors._by_handle) <= STALENESS + 1


def test_more_floors_than_there_may_be_become_one_for_all(world, here, there, monkeypatch):
    monkeypatch.setattr(floors, "MOST_FLOORS", 10)
    records = [known_to_the_front(here, there) for _ in range(30)]
    copies = {record.handle: row(world, record) for record in records}
    for record in records:
        here.revoke(record.handle)
        change(world, record.handle, **copies[record.handle])
    assert len(here._front._floors._by_handle) == 10
    assert all(here.load(record.handle) is None for record in records)
    world.lose()
    later = known_to_the_front(here)
    assert here.load(later.handle) == later


def test_a_forked_process_takes_no_lock_that_a_thread_of_its_parent_holds(here):
    record = known_to_the_front(here)
    with here._front._floors._lock:
        child = os.fork()
        if not child:
            os._exit(0 if here.revoke(record.handle) else 1)
    assert os.waitpid(child, 0)[1] == 0


# -- what lies in a front ----------------------------------------------------------------------------------


def test_what_lies_in_the_front_is_no_session_there(world, here):
    record = known_to_the_front(here)
    here.load(fresh_handle())
    assert len(world.rows()) == 2
    assert world.front.load(record.handle) is None
    assert world.front.find("subject", "bob").records == []
    assert world.front.count("subject", "bob") == 0
    assert world.front.relabel("subject", "bob", "eve") == world.front.revoke_where("subject", "bob") == 0
    assert {(row.path, row.labels) for row in world.rows()} == {("front/front", "")}


def test_a_front_may_have_sessions_of_its_own(world, here):
    mine = new(world.front, labels={"subject": "bob"})
    over = new(world.front, idle=world.clock._now + 1000)
    theirs = known_to_the_front(here)
    assert here.load(mine.handle) is None
    assert here.revoke_where("subject", "bob") == 1
    world.clock.advance(3000)
    here.sweep()
    here.sweep_idle(1)
    world.clock.advance(-3000)
    assert world.front.load(mine.handle) == mine
    assert world.front.load(over.handle) == over
    assert here.load(theirs.handle) is None


def test_what_is_outdated_goes_with_a_sweep(world, here):
    for _ in range(2500):
        here.load(fresh_handle())
    stays = new(here)
    world.clock.advance(3600 + 2 * STALENESS)
    assert here.load(stays.handle) == stays
    assert here.sweep(100) == 0, "These were no records of the primary."
    assert len(world.front) == 1
    assert trips(here, here.sweep) == ["front.sweep", "primary.sweep"]


def test_a_front_that_says_it_is_never_swept_ends_no_sweep(here, monkeypatch):
    monkeypatch.setattr(here.front, "sweep", lambda limit: limit)
    assert here.sweep() == 0


@pytest.mark.parametrize("handle", ["", "a.b", "../a", "a" * 65, "a\0", "é", "\ud800", "A b", "a-b"])
def test_strange_handles_are_the_primarys_alone(here, handle):
    assert trips(here, lambda: here.load(handle)) == ["primary.load"]
    assert trips(here, lambda: here.load_many([handle])) == ["primary.load_many"]
    assert trips(here, lambda: here.revoke(handle)) == ["primary.revoke"]


def test_names_keep_the_layers_of_two_primaries_apart(world):
    other = World(clock=world.clock)
    other.front = world.front
    shop, forum = world.process(name="shop"), other.process(name="forum")
    record = known_to_the_front(shop)
    assert forum.load(record.handle) is None
    assert shop.load(record.handle) == record


def test_a_record_that_the_front_cannot_take_is_read_from_the_primary(world, here):
    for layer in (here, world.process()):
        layer._front._store = FaultyStore(MemoryStore(clock=world.clock, largest=2000))
    small, large = new(here, fields=fields(a=js("x" * 1000))), new(here, fields=fields(a=js("x" * 1500)))
    for record, asked in ((small, []), (large, ["primary.load"])):
        here.load(record.handle)
        assert trips(here, lambda record=record: here.load(record.handle)) == asked
        assert here.load(record.handle) == record
    assert here.largest == here.primary.largest


@pytest.mark.parametrize("odd", [{"form": FORM + 1}, {"fields": b'{"cut off'}, {"agent": "x" * 70_000}])
def test_odd_records_are_as_the_primary_says(here, odd):
    record = new(here, **odd)
    for _ in range(3):
        if "form" in odd:
            with pytest.raises(StoreUnavailable):
                here.load(record.handle)
        else:
            assert here.load(record.handle) == record
            assert (here.load(record.handle, ["a"]) is None) == ("fields" in odd)


def test_a_copy_of_a_newer_release_is_the_primarys_to_judge(world, here):
    record = known_to_the_front(here)
    newer = bytes([FORM + 1]) + bytes(200)
    change(world, record.handle, record=encoded(newer))
    assert here.load(record.handle) == record


def change(world, handle, name="front", **values):
    """Put something into a row of the front, as whoever can write to it could."""
    sets = {key: (js(value), 0) for key, value in values.items()}
    world.front.apply(f"{handle}.{name}", layered_front.PROOF, Changes(sets=sets))


def encoded(raw):
    return layered_front.b2a_base64(raw, newline=False).decode()


GARBAGE = [None, "", 7, -1, 1e300, True, "*", "é", [], {}, {"$bytes": "AA=="}, "AA==", "x" * 3000]


@pytest.mark.parametrize("key", ["generation", "leased", "record", "signature"])
@pytest.mark.parametrize("value", GARBAGE, ids=ascii)
@pytest.mark.parametrize("keys", [None, SECRET], ids=["unsigned", "signed"])
def test_a_row_of_garbage_is_a_miss(world, key, value, keys):
    here = world.process(keys=keys)
    record = known_to_the_front(here)
    if (key, value, keys) == ("record", "", None):
        return  # Unsigned, that says that there is no such record.
    change(world, record.handle, **{key: value})
    assert here.load(record.handle) == here.load_many([record.handle])[record.handle] == record
    assert here.revoke(record.handle) is True
    assert here.load(record.handle) is None


def row(world, record, name="front"):
    return orjson.loads(world.front.load(f"{record.handle}.{name}").fields)


@pytest.fixture
def signing(world):
    return world.process(keys=[SECRET, OTHER_SECRET])


def test_ca_6_signed_copies_are_served_and_others_are_not(world, here, signing):
    record = known_to_the_front(signing)
    write(here, record, role="admin")
    here.load(record.handle)
    assert trips(here, lambda: here.load(record.handle)) == ["front.load"]
    assert trips(signing, lambda: signing.load(record.handle)) == ["front.load", "front.apply", "primary.load"]
    assert trips(signing, lambda: signing.load(record.handle)) == ["front.load"]


def test_ca_6_a_copy_that_was_changed_swapped_cut_or_put_back_is_a_miss(world, signing):
    mine, other = (known_to_the_front(signing, fields=fields(text=js("bob" * 2000))) for _ in range(2))
    good, strange = row(world, mine), row(world, other)
    raw = layered_front.a2b_base64(good["record"])
    tampered = [
        {"record": encoded(raw.replace(b"bob", b"eve"))},
        {"record": encoded(raw[:-20] + raw[-20:].replace(b"bob", b"eve"))},
        {"record": encoded(raw[:-1])},
        {"record": ""},
        {"leased": good["leased"] + 1},
        {"signature": strange["signature"]},
        {key: strange[key] for key in ("record", "leased", "signature")},
        {"signature": good["signature"].partition(".")[2]},
        {"signature": good["signature"].partition(".")[0] + "."},
    ]
    for values in tampered:
        change(world, mine.handle, **good)
        assert trips(signing, lambda: signing.load(mine.handle)) == ["front.load"]
        change(world, mine.handle, **good | values)
        assert "primary.load" in trips(signing, lambda: signing.load(mine.handle)), values
    world.clock.advance(STALENESS)
    signing.load(mine.handle)
    change(world, mine.handle, **good)
    assert "primary.load" in trips(signing, lambda: signing.load(mine.handle)), "It was put back when it was too old."


def test_ca_6_a_copy_in_another_layers_name_is_a_miss(world):
    shop, forum = (world.process(name=name, keys=SECRET) for name in ("shop", "forum"))
    record = known_to_the_front(shop)
    forum.load(record.handle)
    change(world, record.handle, "forum", **row(world, record, "shop"))
    assert "primary.load" in trips(forum, lambda: forum.load(record.handle))


def test_keys_are_rolled_without_a_miss(world, signing):
    old, unaware = world.process(keys=[OTHER_SECRET, SECRET]), world.process(keys=OTHER_SECRET)
    record = known_to_the_front(signing)
    assert trips(old, lambda: old.load(record.handle)) == ["front.load"]
    assert "primary.load" in trips(unaware, lambda: unaware.load(record.handle))
    assert trips(signing, lambda: signing.load(record.handle)) == ["front.load"]


# -- hearing of changes ------------------------------------------------------------------------------------


def test_who_listens_hears_of_each_change_and_reads_what_came_of_it(here):
    heard = []
    here.listen(lambda handle: heard.append((handle, seen(here.load(handle)))))
    record = new(here, labels={"subject": "bob"})
    for change in (
        lambda: write(here, record, a=1),
        lambda: here.relabel("subject", "bob", "eve"),
        lambda: here.revoke_where("subject", "eve"),
        lambda: here.revoke(record.handle),
    ):
        here.load(record.handle)
        assert trips(here, lambda: here.load(record.handle)) == ["front.load"]
        change()
    states = [(record.version, PROOF), (2, PROOF), (3, PROOF), None, None]
    assert heard == [(record.handle, state) for state in states]


def test_who_listens_is_told_that_any_may_have_changed_where_nobody_can_say():
    here = World(announces=False).process()
    heard = []
    here.listen(heard.append)
    here.sweep_idle(60)
    assert heard == [None]


@pytest.mark.parametrize("handle", ["its own", None])
def test_who_watches_reads_nothing_older_than_what_he_was_told_of(world, handle):
    told = []
    primary = Silent(FaultyStore(world.primary))
    primary.watch = lambda on_change: told.append(on_change) or told.clear
    here = LayeredStore(primary, FaultyStore(world.front))
    record = known_to_the_front(here.__class__(FaultyStore(world.primary), here.front))
    heard = []
    stop = here.watch(lambda handle: heard.append((handle, here.load(record.handle))))
    world.primary.revoke(record.handle)  # In another process, whose drop the front did not take.
    assert here.load(record.handle) == record
    changed = record.handle if handle else None
    told[0](changed)
    assert heard == [(changed, None)]
    assert here.load(record.handle) is None
    stop()
    assert told == []


def test_a_primary_without_a_feed_has_none_behind_a_front_either():
    here = World(announces=False).process()
    with pytest.raises(NotImplementedByStore):
        here.watch(print)
    with pytest.raises(UsageError):
        here.watch(None)


def test_a_cache_that_follows_drops_what_another_process_changed(world, here, there):
    cache = LocalCache(clock=world.clock)
    record = known_to_the_front(here, there)
    stop = follow(there, cache)
    cache.put(record.handle, record, cache.lease(record.handle))
    here.revoke(record.handle)
    assert cache.get(record.handle) is None
    stop()


# -- beginning and ending ----------------------------------------------------------------------------------


def test_contradictions_are_refused(world):
    primary, front = MemoryStore(clock=world.clock), MemoryStore(clock=world.clock)
    refused = [
        lambda: LayeredStore(primary, primary),
        lambda: LayeredStore(primary, MemoryStore(clock=FakeClock())),
        lambda: LayeredStore(primary, front, clock=FakeClock()),
        lambda: LayeredStore(primary, None),
        lambda: LayeredStore(LocalCache(clock=world.clock), front),
        lambda: LayeredStore(MemoryStore, front),
        *(lambda bad=bad: LayeredStore(primary, front, max_staleness=bad) for bad in (0, -1, True, "5", float("nan"))),
        *(lambda bad=bad: LayeredStore(primary, front, name=bad) for bad in ("", "A", "a.b", "-a", "a" * 33, None)),
        lambda: LayeredStore(primary, front, keys=b"short"),
    ]
    for call in refused:
        with pytest.raises(ConfigError):
            call()
    assert LayeredStore(primary, front, clock=world.clock).max_staleness == STALENESS
    LayeredStore(MemoryStore(), MemoryStore())


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs/stores.md").read_text()
    [example] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LayeredStore(" in block]
    scope: dict[str, Any] = {}
    exec(compile(example, "docs/stores.md", "exec"), scope)  # noqa: S102 - it is our own
    record = new(scope["store"])
    assert scope["store"].load(record.handle) == record
    scope["store"].close()


def test_closing_closes_both_and_tells_who_listens(world, here):
    heard = []
    here.listen(heard.append)
    record = known_to_the_front(here)
    heard.clear()
    here.front.fail(1, verb="close")
    here.close()
    for call in (lambda: here.load(record.handle), here.scan, lambda: here.revoke(record.handle)):
        with pytest.raises(UsageError):
            call()
    assert world.front.load(f"{record.handle}.front") is not None, "It could not be closed, and is not read any more."
    here.close()
    assert heard == [None]


# -- many threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loses", [False, True])
def test_threads_of_two_processes_read_nothing_older_than_what_was_confirmed(loses, tmp_path):
    """Each process has one writer, which counts up; readers must find at least what was confirmed when they began."""
    primary, fronts = SqliteStore(tmp_path / "p.db"), [SqliteStore(tmp_path / "f.db") for _ in range(2)]
    layers = [LayeredStore(primary, front) for front in fronts]
    records = [new(layer) for layer in layers]
    confirmed, wrong, barrier = [0, 0], [], Barrier(6 if loses else 5)

    def write_on(number):
        barrier.wait()
        for _ in range(60 * SOAK):
            version = layers[number].apply(records[number].handle, PROOF, Changes(adds={"n": 1}))
            confirmed[number] = version.sums["n"]

    def read_on(by, number):
        barrier.wait()
        for _ in range(100 * SOAK):
            least = confirmed[number]
            found = layers[by].load(records[number].handle).contents(0).get("n", (b"0", 0))[0]
            if int(found) < least:
                wrong.append((by, number, found, least))

    def lose_on():
        barrier.wait()
        for _ in range(60 * SOAK):
            for each in fronts[0].scan().records:
                fronts[0].revoke(each.handle)

    reads = [(0, 0), (1, 1), (0, 0)] if loses else [(0, 0), (1, 0), (0, 1)]
    jobs = [partial(write_on, 0), partial(write_on, 1), *(partial(read_on, *pair) for pair in reads)]
    threads = [Thread(target=job) for job in [*jobs, *([lose_on] if loses else [])]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert confirmed == [60 * SOAK] * 2
    for store in (primary, *fronts):
        store.close()


# -- whole requests ----------------------------------------------------------------------------------------


@pytest.fixture(params=["without a cache", "with a cache"])
def nodes(request, world):
    """Two processes, each with a handler on a layered store, and its stores."""

    def made():
        layers = world.process(keys=SECRET)
        options = [with_cache(LocalCache(clock=world.clock))] if request.param == "with a cache" else []
        return Handler("visitor", SECRET, with_clock(world.clock), with_store(layers), *options)

    return Site(made()), Site(made())


def count_on(session):
    session["n"] = session.get("n", 0) + 1
    return session["n"]


def sent_to(node, browser, action):
    """Let a browser's next request go to this process."""
    browser.app = node.app
    return node.visit(action, browser)


def test_a_user_goes_from_process_to_process_and_sees_each_of_his_writes(nodes):
    browser = nodes[0].browser
    for number in range(1, 20):
        assert sent_to(nodes[number % 2], browser, count_on) == number
        assert sent_to(nodes[(number + 1) % 2], browser, dict) == {"n": number}


@pytest.mark.parametrize("end", ["revoke", "regenerate", "renew"])
def test_after_a_logout_no_process_knows_the_cookie(nodes, end):
    browser = nodes[0].browser
    nodes[0].visit(count_on, browser)
    cookie = browser.jar.header()
    for node in nodes:
        assert node.visit(dict, node.another_browser(), HTTP_COOKIE=cookie) == {"n": 1}
    nodes[0].visit(lambda session: getattr(session, end)(), browser)
    assert nodes[0].visit(dict, nodes[0].another_browser(), HTTP_COOKIE=cookie) == {}
    nodes[0].handler.config.clock.advance(STALENESS)
    assert nodes[1].visit(dict, nodes[1].another_browser(), HTTP_COOKIE=cookie) == {}


def test_an_outage_of_the_front_is_nobodys_business(nodes):
    for node in nodes:
        node.handler.config.store.front.down()
    browser = nodes[0].browser
    for number in range(1, 8):
        assert sent_to(nodes[number % 2], browser, count_on) == number
        assert nodes[number % 2].answer.code == 200


def test_an_outage_of_the_primary_logs_nobody_out(nodes):
    (node, _), browser = nodes, nodes[0].browser
    node.visit(count_on, browser)
    node.visit(dict, browser)
    layers, clock = node.handler.config.store, node.handler.config.clock
    layers.primary.down()
    assert node.visit(dict, browser) == {"n": 1}
    node.visit(count_on, browser)
    assert node.answer.code == 503
    clock.advance(STALENESS)
    node.visit(dict, browser)
    assert (node.answer.code, node.answer.cookies) == (503, [])
    layers.primary.up()
    assert node.visit(dict, browser)["n"] in {1, 2}


def test_a_session_of_a_given_id_begins_for_every_process_at_once(world):
    jobs = [Handler("job", SECRET, with_clock(world.clock), with_store(world.process()), server_only()) for _ in "ab"]
    for number in range(5):
        for job in jobs:
            with pytest.raises(NoSession):
                job.load_by_id("nightly")
        begun_here = jobs[number % 2].generate_by_id("nightly")
        begun_here["n"] = number
        begun_here.commit()
        found = [job.load_by_id("nightly") for job in jobs]
        assert [each["n"] for each in found] == [number] * 2
        found[0].revoke()


def test_a_front_holds_no_cookie_and_no_id(tmp_path):
    clock = TickingClock()
    front = SqliteStore(tmp_path / "front.db", clock=clock)
    layers = LayeredStore(MemoryStore(clock=clock), front)
    site = Site(Handler("visitor", SECRET, with_clock(clock), with_store(layers)))
    session_id, handle = site.visit(lambda session: (session.update(n=1), session.id, session.handle)[1:])
    assert site.visit(dict) == {"n": 1}
    [row] = front.scan().records
    assert row.handle == f"{handle}.front"
    front.close()
    cookie = site.browser.jar.cookies()[0].value
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    raw = layered_front.a2b_base64(orjson.loads(row.fields)["record"])
    for place in (held, raw, repr(row).encode()):
        for secret in (cookie, cookie[-40:], session_id, session_id[:20]):
            assert secret.encode() not in place
    stolen = environ(HTTP_COOKIE=f"__Host-visitor={handle}")
    assert site.handler.loaded(stolen) is False


def test_whoever_wrote_sees_it_on_another_process_though_the_front_missed_the_drop():
    clock = FakeClock()
    primary, shared = MemoryStore(clock=clock), MemoryStore(clock=clock)
    blinking = FaultyStore(shared)
    mine, theirs = (
        Handler("user", SECRET, with_clock(clock), with_store(LayeredStore(primary, front)))
        for front in (blinking, shared)
    )
    s, elsewhere = Site(mine), Site(theirs)
    s.visit(lambda session: session.update(cart=["pen"]))
    clock.advance(1)
    assert elsewhere.visit(dict, elsewhere.another_browser(), HTTP_COOKIE=s.browser.jar.header())
    blinking.down()
    s.visit(lambda session: session.update(cart=["pen", "book"]))
    blinking.up()
    assert len(s.answer.cookies) == 1
    assert elsewhere.visit(dict, elsewhere.another_browser(), HTTP_COOKIE=s.browser.jar.header()) == {
        "cart": ["pen", "book"]
    }
