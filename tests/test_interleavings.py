"""Every interleaving of two operations on one session, and of three those with few preemptions.

First the verbs of a store, stopped at each lock, each shared read and each statement; then whole requests, stopped
before and after each call to the store. Run with ``-s`` to see how many schedules each exploration has. Each operation
has a clock of its own, so that for one the record has expired and for another it has not, as on two machines.
"""

import sqlite3
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import combinations, combinations_with_replacement, permutations
from json import loads
from math import comb
from typing import Any, NamedTuple

import pytest
from scheduler import NOBODY, Database, Scenario, ScheduledLock, Scheduler
from support import SECRET, SOAK, environ, run

from sessiontree import Handler, SessionGone, with_clock, with_idle_timeout, with_store
from sessiontree.clock import FOREVER
from sessiontree.records import Changes, Json, Record, pack, unpacked
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.protocol import SWEEP_MARGIN_MS
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore

MOST_PREEMPTIONS = 3 if SOAK == 1 else 4

NOW = 1_800_000_000_000
DEADLINE = NOW + 60_000
PASSED = DEADLINE + 1
SWEEPABLE = DEADLINE + SWEEP_MARGIN_MS
PROLONGED = SWEEPABLE + 3_600_000

HANDLE = "a" * 32
PROOF = b"the proof at first".ljust(32)
GONE = "gone"


class OperationClock(FakeClock):
    """Tells each operation its own time, and everybody else when all began."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler
        self.times: dict[int, int] = {}

    def now(self) -> int:
        return self.times.get(self._scheduler.current, NOW)


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


@pytest.fixture
def clock(scheduler):
    return OperationClock(scheduler)


# -- stores that stop -----------------------------------------------------------------------------


class Shards(dict):
    """The dict of a MemoryStore; whoever reads it may be stopped before."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def __getitem__(self, key: str) -> Any:
        self._scheduler.point("read a shard")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._scheduler.point("read a shard")
        return super().get(key, default)


class Buckets(dict):
    """The deadlines of a MemoryStore, which a sweep lists without the lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def __iter__(self) -> Any:
        self._scheduler.point("list the buckets")
        return super().__iter__()


def stopping_memory(scheduler, clock):
    """Return what makes a new empty store each time it is called."""

    def made():
        store = MemoryStore(clock=clock)
        assert hasattr(store, "_lock")
        assert hasattr(store, "_shards")
        assert hasattr(store, "_buckets")
        store._lock, store._shards, store._buckets = ScheduledLock(scheduler), Shards(scheduler), Buckets(scheduler)
        return store

    return made


def emptied_sqlite(scheduler, clock, folder, patch):
    """Return what empties the one store; a new file for every run would cost more than the run."""
    plain = sqlite3.connect(folder / "plain.db", isolation_level=None)
    patch.setattr("sqlite3.connect", Database(scheduler).connect)
    store = SqliteStore(folder / "sessions.db", clock=clock, timeout=0)
    plain.execute("ATTACH ? AS sessions", [str(folder / "sessions.db")])
    plain.execute("PRAGMA sessions.synchronous=OFF")

    def made(last=("", b"")):
        plain.execute("DELETE FROM sessions")
        for each in store._idle:
            each.last = last
        return store

    store._idle.extend(store._open() for _ in range(3))
    return made, (plain, store)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request):
    return request.param


@pytest.fixture(params=["memory", "sqlite", "sqlite, seen"])
def engine(request):
    """What has the record; ``seen`` is for connections that have seen it lately, so that a write is one statement."""
    return request.param


@pytest.fixture
def make_store(engine, scheduler, clock, tmp_path, monkeypatch):
    """A function that returns an empty store, whose every step is a point."""
    if engine == "memory":
        yield stopping_memory(scheduler, clock)
        return
    made, opened = emptied_sqlite(scheduler, clock, tmp_path, monkeypatch)
    yield partial(made, (HANDLE, pack(fresh()))) if engine == "sqlite, seen" else made
    for one in opened:
        one.close()


# -- a. verbs -------------------------------------------------------------------------------------


class Verb(NamedTuple):
    """What is done to the record, and when, by the clock of who does it."""

    act: Callable[[Any, int], Any]
    now: int = NOW


class Sight(NamedTuple):
    """What matters of a record."""

    version: int
    proof: bytes
    idle: int
    keys: frozenset[str]


def fresh():
    return Record(HANDLE, "user", NOW, FOREVER, FOREVER, DEADLINE, PROOF, NOW, labels='{"subject":"ann"}')


def sight_of(record):
    if record is None:
        return None
    return Sight(record.version, record.proof, record.idle, frozenset(unpacked(record.fields)[0]))


def changing(store, changes):
    try:
        return int(store.apply(HANDLE, PROOF, changes))
    except SessionGone:
        return GONE


def key_of(number):
    return f"written by {number}"


def proof_of(number):
    return b"renewed by %d".ljust(33) % number


def write(store, number):
    return changing(store, Changes(sets={key_of(number): (Json(b"1"), 0)}))


VERBS = {
    "revoke": Verb(lambda store, number: store.revoke(HANDLE)),
    "apply": Verb(write),
    "renew": Verb(lambda store, number: changing(store, Changes(proof=proof_of(number)))),
    "touch": Verb(lambda store, number: changing(store, Changes(idle=PROLONGED))),
    "load": Verb(lambda store, number: sight_of(store.load(HANDLE)), PASSED),
    "sweep": Verb(lambda store, number: store.sweep(), SWEEPABLE),
    "late": Verb(write, PASSED),
}
"""``load`` and ``late``, an apply, come when the record has expired, ``sweep`` when it expired an hour ago."""

ASKED = [name for name in VERBS if name != "late"]


class History(NamedTuple):
    """What came of one schedule: the verbs, their results, which returned before which began, and what was left."""

    names: tuple[str, ...]
    results: tuple[Any, ...]
    before: frozenset[tuple[int, int]]
    left: Sight | None

    def of(self, *names):
        """Yield the number and the result of every verb of these names."""
        return [(number, self.results[number]) for number, name in enumerate(self.names) if name in names]

    def is_before(self, first, second):
        return (first, second) in self.before

    def after(self, number):
        return [other for other in range(len(self.names)) if self.is_before(number, other)]

    @property
    def written(self):
        """Return the numbers of the acknowledged changes."""
        return [number for number, result in self.of("apply", "renew", "touch", "late") if result != GONE]


def recall(run, names, left):
    numbers = range(len(names))
    before = frozenset(pair for pair in permutations(numbers, 2) if run.is_before(*pair))
    return History(names, tuple(run.results[number] for number in numbers), before, left)


def killers(history):
    """Return who certainly ended the session.

    One that found it expired ended it if nothing was written beside that; a late apply may also have been refused a
    prolonged record for its old proof.
    """
    sure = [number for number, result in history.of("revoke", "sweep") if result]
    for number, result in history.of("load", "late"):
        beside = [w for w in history.written if not (history.is_before(w, number) or history.is_before(number, w))]
        may_live = history.names[number] == "late" and any(result != GONE for _, result in history.of("touch"))
        if result in {None, GONE} and not beside and not may_live:
            sure.append(number)
    return sure


def check_the_dead_stay_dead(history):
    for killer in killers(history):
        assert history.left is None, f"{history.names[killer]} had ended it"
        for number in history.after(killer):
            assert history.results[number] in {None, GONE, False}, f"it was ended by {killer} before"


def check_a_write_is_whole_or_refused(history):
    if history.left is not None:
        for number, result in history.of("apply", "late"):
            assert (key_of(number) in history.left.keys) == (result != GONE)
        renewed = [proof_of(number) for number, result in history.of("renew") if result != GONE]
        assert [history.left.proof] == (renewed or [PROOF])
        touched = any(result != GONE for _, result in history.of("touch"))
        assert history.left.idle == (PROLONGED if touched else DEADLINE)


def check_one_proof_is_renewed_once(history):
    renewals = history.of("renew")
    succeeded = sum(result != GONE for _, result in renewals)
    assert succeeded <= 1
    if renewals and history.left is not None:
        assert succeeded == 1


def check_who_prolonged_it_keeps_it(history):
    for touch, touched in history.of("touch"):
        if touched != GONE:
            assert history.left is not None or any(result for _, result in history.of("revoke"))
            assert not any(result for _, result in history.of("sweep"))
            for load, result in history.of("load"):
                revoked = [number for number, live in history.of("revoke") if live]
                if history.is_before(touch, load) and not any(not history.is_before(load, r) for r in revoked):
                    assert result is not None


def check_versions_count_the_writes(history):
    versions = sorted(result for _, result in history.of("apply", "renew", "late") if result != GONE)
    assert versions == list(range(2, 2 + len(versions)))
    if history.left is not None:
        assert history.left.version == 1 + len(versions)


# What the verbs do one after the other: each is one step, but what finds a record expired deletes it in a second one.


def simulated(history, order):
    """Return the results of the steps in this order, and what they leave."""
    record, results, expired = sight_of(fresh()), {}, {}
    for number, is_second in order:
        if is_second:
            seen = expired.get(number)
            if record is not None and seen is not None and (seen.version, seen.idle) == (record.version, record.idle):
                record = None
            continue
        name = history.names[number]
        is_live = record is not None and VERBS[name].now < record.idle
        if name == "revoke":
            results[number], record = record is not None, None
        elif name == "sweep":
            gone = record is not None and record.idle <= SWEEPABLE - SWEEP_MARGIN_MS
            results[number], record = int(gone), None if gone else record
        elif name == "load":
            results[number] = record if is_live else None
        elif not is_live or record.proof != PROOF:
            results[number] = GONE
        else:
            record = changed_sight(record, name, number)
            results[number] = record.version
        if not is_live:
            expired[number] = record
    return results, record


def changed_sight(record, name, number):
    if name == "touch":
        return record._replace(idle=PROLONGED)
    if name == "renew":
        return record._replace(proof=proof_of(number), version=record.version + 1)
    return record._replace(keys=record.keys | {key_of(number)}, version=record.version + 1)


def check_some_order_explains_it(history):
    """The results are those of the verbs one after the other, each between its beginning and its end."""
    steps = [(number, False) for number in range(len(history.names))]
    steps += [(number, True) for number, _ in history.of("load", "late")]
    for order in permutations(steps):
        place = {step: at for at, step in enumerate(order)}
        if any(place[number, False] > place[number, True] for number, second in steps if second):
            continue
        if any(place[a] > place[b] for a in steps for b in steps if history.is_before(a[0], b[0])):
            continue
        if simulated(history, order) == (dict(enumerate(history.results)), history.left):
            return
    raise AssertionError("no order of the verbs has these results")


@cache
def judge(history):
    """Check every promise; many schedules have one history, so this is remembered."""
    check_the_dead_stay_dead(history)
    check_a_write_is_whole_or_refused(history)
    check_one_proof_is_renewed_once(history)
    check_who_prolonged_it_keeps_it(history)
    check_versions_count_the_writes(history)
    check_some_order_explains_it(history)


def verbs_at_once(make_store, clock, names):
    def scenario():
        store = make_store()
        store.create(fresh())
        clock.times = {number: VERBS[name].now for number, name in enumerate(names)}

        def check(run):
            judge(recall(run, names, sight_of(store.load(HANDLE))))
            assert len(store.find("subject", "ann").records) == (store.load(HANDLE) is not None)
            assert store.count("subject", "ann") == len(store.find("subject", "ann").records)

        return Scenario([partial(VERBS[name].act, store, number) for number, name in enumerate(names)], check)

    return scenario


def told(kind, names, count):
    sys.stdout.write(f"{kind:12} {' | '.join(names):30} {count:6} schedules\n")
    assert count > 0
    return count


ONE_BY_ONE = {
    "memory": ["revoke", "apply", "renew", "touch"],
    "sqlite": ["revoke", "sweep"],
    "sqlite, seen": ["revoke", "sweep"],
}
"""What holds the lock from its first step to its last, so that two of it have two schedules."""


PAIRS = list(combinations_with_replacement(VERBS, 2))
TRIPLES = list(combinations_with_replacement(ASKED if SOAK == 1 else VERBS, 3))


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_every_interleaving_of_two_verbs_keeps_the_promises(make_store, scheduler, clock, engine, names):
    count = told(engine, names, scheduler.explore(verbs_at_once(make_store, clock, names)))
    if set(names) <= set(ONE_BY_ONE[engine]):
        assert count == 2


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_three_verbs_keep_the_promises_with_few_preemptions(make_store, scheduler, clock, engine, names):
    told(engine, names, scheduler.explore(verbs_at_once(make_store, clock, names), MOST_PREEMPTIONS))


# -- b. whole requests ----------------------------------------------------------------------------

IDLE_MS = 1_800_000
TOUCH_DUE = NOW + 120_000

ACTIONS = {
    "logout": lambda session, request, number: session.revoke(),
    "write": lambda session, request, number: session.update(a=number),
    "other": lambda session, request, number: session.update(b=number),
    "renew": lambda session, request, number: session.renew(),
    "incr": lambda session, request, number: session.incr("n"),
    "touch": lambda session, request, number: session.get("user"),
    "generate": lambda session, request, number: session.handler.generate(request).update(begun=number),
    "read": lambda session, request, number: session.get("user"),
}
"""What a request does. ``touch`` is a read so late that the idle timeout has to be moved."""

WRITTEN = {"write": "a", "other": "b", "incr": "n", "generate": "begun"}
"""The key that each of these writes."""

REFUSABLE = ("write", "other", "incr", "renew", "logout")
REQUEST = environ()
DANGEROUS = ("logout", "write", "renew", "incr", "generate")


class SteppingStore(FaultyStore):
    """A store that may be stopped before and after each of its verbs.

    Folded, a request is stopped after a verb and not again before its next one: what it does between them nobody else
    can notice, so this leaves out schedules that differ in nothing, and an exploration of three comes to an end.
    """

    def __init__(self, store: Any, scheduler: Scheduler) -> None:
        super().__init__(store)
        self._scheduler = scheduler
        self.folded = False
        self.begun: set[int] = set()

    def _call(self, verb: str, *arguments: Any) -> Any:
        current = self._scheduler.current
        if not self.folded or current not in self.begun:
            self.begun.add(current)
            self._scheduler.point(f"before {verb}")
        try:
            return getattr(self.inner, verb)(*arguments)
        finally:
            self._scheduler.point(f"after {verb}")


class Reply(NamedTuple):
    """What came of one request; ``found`` and ``handle`` name the session at its first look and at its end."""

    code: int
    cookies: tuple[str, ...]
    found: str | None
    handle: str | None
    value: Any


class Server:
    """An application behind one handler, whose store stops, and the cookie of a client that has logged in."""

    def __init__(self, make_store: Callable[[], Any], scheduler: Scheduler, clock: OperationClock) -> None:
        self._make_store = make_store
        self.store = SteppingStore(make_store(), scheduler)
        self.handler = Handler("user", SECRET, with_clock(clock), with_store(self.store), with_idle_timeout(1800))
        self._app = self.handler.link(self._act)
        login = self.request("", lambda session, request, number: session.update(user="ann"), NOBODY)
        self.cookie = cookie_of(login.cookies[0])
        (self.record,) = self.store.inner.scan().records

    def _act(self, request, start_response):
        session, seen = self.handler.session(request), request["test.seen"]
        seen["found"] = session.handle
        seen["value"] = request["test.act"](session, request)
        seen["handle"] = self.handler.session(request).handle
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def reset(self, *, folded):
        """Let the store hold what it held after the login, and nothing else."""
        self.store.folded, self.store.begun = folded, set()
        self.store.inner = self._make_store()
        self.store.inner.create(self.record)

    def request(self, cookie, act, number):
        seen = {}
        made = REQUEST | {"HTTP_COOKIE": cookie, "test.act": partial(act, number=number), "test.seen": seen}
        answer = run(self._app, made, validate=False)
        return Reply(answer.code, tuple(answer.cookies), seen.get("found"), seen.get("handle"), seen.get("value"))

    def loaded(self, cookie):
        """Return the handle and the data of the session that a cookie loads now, None for none."""
        session = self.handler.session(REQUEST | {"HTTP_COOKIE": cookie})
        handle = session.handle
        return None if handle is None else (handle, dict(session))

    def stored(self, handle):
        """Return the data that the store has under a handle, None for nothing."""
        record = self.store.inner.load(handle)
        return None if record is None else {key: loads(content) for key, (content, _) in record.contents(NOW).items()}


def cookie_of(line):
    return line.partition(";")[0]


def is_deletion(line):
    return cookie_of(line).endswith("=")


class Aftermath:
    """What is found after a schedule: replies by number, and what the cookies and the store hold by then."""

    def __init__(self, server, run, names):
        self.server, self.run, self.names = server, run, names
        self.handle = server.record.handle
        self.replies = [run.results[number] for number in range(len(names))]
        self.data = server.stored(self.handle)
        given = [cookie_of(line) for reply in self.replies for line in reply.cookies if not is_deletion(line)]
        self.loads = {cookie: server.loaded(cookie) for cookie in [server.cookie, *given]}

    def of(self, *names):
        return [(number, reply) for number, reply in enumerate(self.replies) if self.names[number] in names]

    def done(self, *names):
        """Return the requests of these names that found the session and were answered 200."""
        return [(number, reply) for number, reply in self.of(*names) if (reply.found, reply.code) == (self.handle, 200)]

    def check(self):
        self.check_answers()
        self.check_cookies()
        self.check_what_ended_is_gone()
        self.check_writes_are_there()
        self.check_increments()
        self.check_renewals()

    def check_answers(self):
        """Reads and beginnings are always answered; what is refused was ended or renewed by another."""
        reasons = {number for number, _ in self.done("logout", "generate", "renew")}
        for number, reply in enumerate(self.replies):
            assert reply.code in ({200, 409} if self.names[number] in REFUSABLE else {200})
            if reply.code == 409 or reply.found is None:
                assert reasons - {number}

    def check_cookies(self):
        """Nobody is sent two cookies of one name, a refused write sends none, and only the dead are forgotten."""
        for number, reply in enumerate(self.replies):
            names = [line.partition("=")[0] for line in reply.cookies]
            assert len(names) == len(set(names))
            assert not (reply.code == 409 and reply.cookies)
            assert not any(map(is_deletion, reply.cookies)) or self.data is None
            if reply.found and reply.code == 200:
                assert len(names) == (self.names[number] in {"logout", "renew", "generate"})

    def check_what_ended_is_gone(self):
        """After a logout or a replacement no cookie that anybody holds loads the session, or another with its data."""
        ended = self.done("logout", "generate")
        assert (self.data is None) == bool(ended)
        for number, _ in ended:
            for loaded in self.loads.values():
                assert loaded is None or (loaded[0] != self.handle and "user" not in loaded[1])
            for other, later in enumerate(self.replies):
                assert not (self.run.is_before(number, other) and later.found)
        for _, reply in self.done("logout"):
            assert list(map(is_deletion, reply.cookies)) == [True]

    def check_writes_are_there(self):
        """What was answered 200 is in the store, in the session that it was written to, unless that was ended."""
        for name, key in WRITTEN.items():
            others = {number for number, reply in self.of(name) if reply.found}
            for number, reply in self.of(name):
                data = self.server.stored(reply.handle) if reply.code == 200 else None
                if data is None:
                    assert reply.code == 409 or (reply.handle == self.handle and self.done("logout", "generate"))
                elif name != "incr":
                    assert data[key] in (others if reply.handle == self.handle else {number})
        for number, reply in self.of("generate"):
            assert self.loads[cookie_of(reply.cookies[0])] == (reply.handle, {"begun": number})
        if self.data is not None:
            written = {WRITTEN[self.names[number]] for number, _ in self.done("write", "other")}
            assert {"a", "b"} & set(self.data) == written
            assert self.data["user"] == "ann"

    def check_increments(self):
        """Those that were acknowledged are counted exactly, each with a sum of its own."""
        sums = [reply.value for _, reply in self.done("incr")]
        assert sorted(sums) == list(range(1, len(sums) + 1))
        if self.data is not None:
            assert self.data.get("n", 0) == len(sums)

    def check_renewals(self):
        """Of renewals of one id one succeeds: its cookie loads the session, and the one before does not."""
        done = self.done("renew")
        assert len(done) <= 1
        for _, reply in done:
            assert self.loads[self.server.cookie] is None
            if self.data is not None:
                assert self.loads[cookie_of(reply.cookies[0])] == (self.handle, self.data)


@pytest.fixture
def server(kind, scheduler, clock, tmp_path, monkeypatch):
    """A server whose store is stopped around its verbs, never in them."""
    if kind == "memory":
        yield Server(partial(MemoryStore, clock=clock), scheduler, clock)
        return
    never = Scheduler()
    made, opened = emptied_sqlite(never, clock, tmp_path, monkeypatch)
    yield Server(made, scheduler, clock)
    for one in opened:
        one.close()


def requests_at_once(server, clock, names, *, folded=False, check=Aftermath.check):
    def scenario():
        server.reset(folded=folded)
        clock.times = {number: TOUCH_DUE if name == "touch" else NOW for number, name in enumerate(names)}
        acts = [partial(server.request, server.cookie, ACTIONS[name], number) for number, name in enumerate(names)]
        return Scenario(acts, lambda run: check(Aftermath(server, run, names)))

    return scenario


PEACEFUL = {"read": 2, "write": 4, "other": 4, "incr": 4}
"""How many steps each request has that never keeps another from anything, so that a formula counts the schedules."""


@pytest.mark.parametrize("names", list(combinations_with_replacement(ACTIONS, 2)), ids="-".join)
def test_every_interleaving_of_two_requests_keeps_the_promises(server, scheduler, clock, kind, names):
    count = told(kind, names, scheduler.explore(requests_at_once(server, clock, names)))
    if set(names) <= set(PEACEFUL):
        steps = [PEACEFUL[name] for name in names]
        assert count == comb(sum(steps), steps[0])


@pytest.mark.parametrize("names", list(combinations(DANGEROUS, 3)), ids="-".join)
def test_three_requests_keep_the_promises_with_few_preemptions(server, scheduler, clock, kind, names):
    told(kind, names, scheduler.explore(requests_at_once(server, clock, names, folded=True), MOST_PREEMPTIONS))


def check_overlapping(promise):
    """Check a promise where both requests had begun before either returned; a client without an answer sends both."""
    return lambda aftermath: aftermath.run.is_before(0, 1) or aftermath.run.is_before(1, 0) or promise(aftermath)


def nobody_stays_logged_in_unawares(aftermath):
    is_told = any(reply.code == 409 for _, reply in aftermath.of("logout"))
    assert is_told or all(loaded is None or loaded[0] != aftermath.handle for loaded in aftermath.loads.values())


def nothing_takes_the_place_of_the_renewed_cookie(aftermath):
    assert not (aftermath.done("renew") and any(reply.cookies for _, reply in aftermath.of("write")))


def test_after_a_logout_beside_a_renewal_no_cookie_loads_the_session_or_the_client_is_told(server, scheduler, clock):
    check = check_overlapping(nobody_stays_logged_in_unawares)
    scheduler.explore(requests_at_once(server, clock, ("renew", "logout"), check=check))


def test_a_write_beside_a_renewal_sends_no_cookie_that_takes_the_place_of_the_renewed_one(server, scheduler, clock):
    check = check_overlapping(nothing_takes_the_place_of_the_renewed_cookie)
    scheduler.explore(requests_at_once(server, clock, ("renew", "write"), check=check))
