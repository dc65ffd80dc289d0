"""A cache beside its store, in every interleaving of reads that fill it with whatever changes the session (CA-2).

First caches by themselves, of one tier and of two, stopped at their locks, at each look at what they share, and in the
store's verbs. Then whole requests, stopped before each call to a store or a cache: two handlers on one store object, as
in two threads of a process, and on two objects for one file, as in two processes. Run with ``-s`` to see how many
schedules each exploration has.
"""

from contextlib import suppress
from functools import cache, partial
from itertools import combinations_with_replacement, permutations
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import pytest
from cachetools import LRUCache
from scheduler import NOBODY, Scenario, ScheduledLock, Scheduler
from support import SECRET, SOAK, environ, run
from test_interleavings import (
    GONE,
    HANDLE,
    NOW,
    PROLONGED,
    VERBS,
    Sight,
    cookie_of,
    emptied_sqlite,
    fresh,
    is_deletion,
    key_of,
    sight_of,
    told,
)

from sessiontree import Conflict, Handler, with_cache, with_clock, with_store
from sessiontree.caches.kept import Kept, opened
from sessiontree.caches.local import Generations, LocalCache
from sessiontree.caches.tiered import TieredCache
from sessiontree.handlers.caching import Wanted, at_hand, loaded_one
from sessiontree.stores.memory import PREFIX, MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore

MOST_PREEMPTIONS = 2 if SOAK == 1 else 3
OTHER = "b" * 32
FEW = 2
"""With room for so many, one more moves what is young into the old generation."""

STALENESS = 5
WHILE = 3
"""How many seconds pass when some do: less than an entry may be served for, and twice that is more."""


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


# -- a. caches that stop --------------------------------------------------------------------------


class Watch:
    """Where the operations on one cache stop: where another one may notice, for the rest are steps of nobody's concern.

    Its lock keeps all others out but those who read without it, so within the lock there are points only for them; and
    none before the first change, which nobody can tell from taking the lock.
    """

    def __init__(self, bench: "Bench", name: str, *, ages: bool) -> None:
        self._bench, self._ages = bench, ages
        self.point = bench.scheduler.point
        self.lock = TierLock(bench.scheduler, self, name)
        self.is_unchanged = False

    def reads(self, what: str) -> None:
        """Stand before a look, unless it is taken with the lock held, or nobody may change what is looked at."""
        if self.lock.holder != self._bench.scheduler.current and self._is_at_stake(what):
            self.point(f"read {what}")

    def writes(self, what: str, *, noticed: bool = True) -> None:
        """Stand before a change, which is made with the lock held, if somebody may yet look without it."""
        bench = self._bench
        if bench.everywhere or (noticed and not self.is_unchanged and bench.is_read() and self._is_at_stake(what)):
            self.point(f"write {what}")
        self.is_unchanged = False

    def _is_at_stake(self, what: str) -> bool:
        """Tell whether it may differ; only in a small cache anything grows old, and only then its lock is tried."""
        return self._ages or self._bench.everywhere if what in {"old", "lock"} else self._bench.is_at_stake(what)


class TierLock(ScheduledLock):
    """A cache's lock, which knows who holds it."""

    def __init__(self, scheduler: Scheduler, watch: Watch, name: str) -> None:
        super().__init__(scheduler, name)
        self._watch = watch
        self.holder: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as in threading
        taken = super().acquire(blocking, timeout)
        if taken:
            self.holder = self._scheduler.current
            self._watch.is_unchanged = True
        return taken

    def release(self) -> None:
        """Stop before, if somebody may try the lock and go on without it."""
        self._watch.writes("lock")
        self.holder, self._held = None, False


class Absent(dict):
    """The absent handles of a cache."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def get(self, handle: str, default: Any = None) -> Any:
        self._watch.reads("absent")
        return super().get(handle, default)

    def pop(self, handle: str, default: Any = None) -> Any:
        self._watch.writes("absent", noticed=handle in self)
        return super().pop(handle, default)

    def __setitem__(self, handle: str, until: float) -> None:
        self._watch.writes("absent")
        super().__setitem__(handle, until)


class Drops(dict):
    """The counters of drops, each 0 at first."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __getitem__(self, stripe: int) -> int:
        self._watch.reads("drops")
        return self.get(stripe, 0)

    def __setitem__(self, stripe: int, count: int) -> None:
        self._watch.writes("drops")
        super().__setitem__(stripe, count)


class Generation(dict):
    """One generation; to look it up and to look into it are one step."""

    def __init__(self, watch: Watch, name: str, entries: dict[str, Kept]) -> None:
        super().__init__(entries)
        self._watch, self._name = watch, name

    def pop(self, handle: str, default: Any = None) -> Any:
        self._watch.writes(self._name, noticed=handle == HANDLE and handle in self)
        return super().pop(handle, default)

    def __setitem__(self, handle: str, kept: Kept) -> None:
        self._watch.writes(self._name, noticed=handle == HANDLE)
        super().__setitem__(handle, kept)


class SteppingGenerations(Generations):
    """A young and an old generation that stop whoever looks at them, and whoever puts one in place of the other."""

    def __init__(self, watch: Watch, like: Generations) -> None:
        self._watch = watch
        self._kept: dict[str, Generation] = {}
        super().__init__(2 * like._most, 2 * like._most_bytes)

    def _seen(self, name: str) -> Generation:
        self._watch.reads(name)
        return self._kept[name]

    def _replaced(self, name: str, entries: dict[str, Kept]) -> None:
        self._watch.writes(name, noticed=(HANDLE in entries) != (HANDLE in self._kept.get(name, ())))
        is_made = isinstance(entries, Generation)
        self._kept[name] = entries if is_made else Generation(self._watch, name, entries)

    young = property(lambda self: self._seen("young"), lambda self, entries: self._replaced("young", entries))
    old = property(lambda self: self._seen("old"), lambda self, entries: self._replaced("old", entries))


class SteppingCache(LocalCache):
    """A LocalCache that stops at every step that somebody else may notice."""

    def stop(self, watch: Watch) -> Self:
        for name in ("_lock", "_drops", "_absent", "_table", "_closed"):
            assert hasattr(self, name)
        self._lock, self._drops, self._absent = watch.lock, Drops(watch), Absent(watch)
        if isinstance(self._table, Generations):
            self._table = SteppingGenerations(watch, self._table)
            self.get = self._reader()
        self._watch = watch
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_closed" and value:
            self._watch.point("write closed")
        super().__setattr__(name, value)


class AgingCache(SteppingCache):
    """A LocalCache that says how old its entries are: what has no age is never copied from one tier to another."""

    def get_aged(self, handle: str, min_version: int = 0) -> tuple[Kept, float, float] | None:
        kept = self.get(handle, min_version)
        if kept is None:
            return None
        left = kept.until - self._seconds()
        return kept, self.max_staleness - left, left

    def put_aged(self, handle: str, record: Any, lease: Any, age: float) -> bool:
        return self.put(handle, record, (lease[0] - age, *lease[1:]))


Tier = SteppingCache if hasattr(LocalCache, "get_aged") else AgingCache


class Shards(dict):
    """The dict of a MemoryStore; whoever loads from it may be stopped before."""

    def __init__(self, bench: "Bench") -> None:
        super().__init__()
        self._bench = bench
        self.is_held = False

    def get(self, key: str, default: Any = None) -> Any:
        if not self.is_held and self._bench.is_at_stake("store"):
            self._bench.scheduler.point("load")
        return super().get(key, default)


class StoreLock:
    """The lock of a MemoryStore. What is done with it is one step, for it ends with one change that loads notice."""

    def __init__(self, bench: "Bench") -> None:
        self._bench = bench

    def __enter__(self) -> None:
        self._bench.scheduler.point("change the store")
        self._bench.shards.is_held = True

    def __exit__(self, *raised: object) -> None:
        self._bench.shards.is_held = False


# -- what is done with them -----------------------------------------------------------------------


class Served(NamedTuple):
    """What a read came to: what it served, and whether without asking the store."""

    sight: Sight | None
    is_hit: bool


class Reader:
    """Reads as a request does; stands for its handler, and for the cache of that, to note when it takes a lease."""

    config = SimpleNamespace(outage="raise")

    def __init__(self, bench: "Bench", number: int) -> None:
        self._bench, self._number = bench, number
        self.cache = self
        self.now = bench.clock.now
        self.get, self.is_absent, self.put = bench.cache.get, bench.cache.is_absent, bench.cache.put

    def lease(self, handle: str) -> Any:
        lease = self._bench.cache.lease(handle)
        self._bench.leased[self._number] = len(self._bench.scheduler.run.steps)
        self._bench.readers.discard(self._number)
        return lease

    def read(self, version: int = 0) -> Served:
        record = at_hand(self, HANDLE, version, self.now())
        if record is None:
            record = loaded_one(self._bench.store, Wanted(self, HANDLE, version))
        return Served(sight_of(record), self._number not in self._bench.leased)


def fill(bench, number):
    return Reader(bench, number).read()


def follow(bench, number):
    """Write in another process, then read here with the cookie of that write; return the version, and what is read."""
    version = VERBS["apply"].act(bench.elsewhere, number)
    return version, Reader(bench, number).read(0 if version == GONE else version)


def crowd(bench, number):
    """Fill another entry, which may push this one out, or into the old generation."""
    bench.cache.put(OTHER, bench.other, bench.cache.lease(OTHER))


def begin(bench, number):
    with suppress(Conflict):
        bench.store.create(fresh())


OPERATIONS = {
    "fill": fill,
    "revoke": lambda bench, number: bench.store.revoke(HANDLE),
    "apply": lambda bench, number: VERBS["apply"].act(bench.store, number),
    "renew": lambda bench, number: VERBS["renew"].act(bench.store, number),
    "touch": lambda bench, number: VERBS["touch"].act(bench.store, number),
    "clear": lambda bench, number: bench.cache.clear(),
    "clear_after": lambda bench, number: bench.cache.clear_after(0),
    "close": lambda bench, number: bench.cache.close(),
    "crowd": crowd,
    "begin": begin,
    "ended": lambda bench, number: bench.elsewhere.revoke(HANDLE),
    "follow": follow,
    "later": lambda bench, number: bench.later(),
}
"""``ended`` and ``follow`` change the session in another process; ``later``, some time passes."""

READS = ("fill", "follow")
CHANGES = ("apply", "renew", "touch")
ENDINGS = ("revoke", "ended")
CLEARINGS = ("clear", "clear_after", "close")
ELSEWHERE = ("ended", "follow")

AT_STAKE = {
    "store": {*CHANGES, *ENDINGS, "follow", "begin"},
    "drops": {*CHANGES, "revoke", "clear", "close", "begin"},
    "absent": {*ENDINGS, "begin"},
}
"""Who changes each of these, or has others do so; what is young anybody may change."""


def local(bench, most=100, policy=None, name="the lock", kind=SteppingCache):
    cache = kind(most, STALENESS, policy, clock=bench.clock)
    return cache.stop(Watch(bench, name, ages=most == FEW))


def tiered(bench, most=100):
    first, second = (
        local(bench, most, name="the first lock", kind=Tier),
        local(bench, name="the second lock", kind=Tier),
    )
    cache = TieredCache(first, second)
    cache._breaker._seconds = lambda: 0.0  # That an operation stands still is no slowness of a tier.
    return cache


def kept(cache, *records):
    for record in records:
        assert cache.put(record.handle, record, cache.lease(record.handle))
    return cache


def with_second_only(cache):
    """Let the first tier forget what it has, as it may at any time."""
    cache.l1.clear()
    return cache


def with_deaf_second(cache):
    """Let the second tier fail to forget anything."""

    def fail(handle):
        raise OSError("This tier does not answer.")

    cache.l2.drop = fail
    return cache


ONE_TIER = {
    "empty": lambda bench: local(bench),
    "young": lambda bench: kept(local(bench), fresh()),
    "old": lambda bench: kept(local(bench, FEW), fresh(), bench.other),
    "policy": lambda bench: kept(local(bench, policy=LRUCache(FEW)), fresh()),
}
TWO_TIERS = {
    "two, empty": lambda bench: tiered(bench),
    "two, young": lambda bench: kept(tiered(bench), fresh()),
    "two, old": lambda bench: kept(tiered(bench, FEW), fresh(), bench.other),
    "two, second": lambda bench: with_second_only(kept(tiered(bench), fresh())),
    "two, deaf": lambda bench: with_deaf_second(kept(tiered(bench), fresh())),
}
STARTS = ONE_TIER | TWO_TIERS
"""What a cache is, and what it holds at first."""


class Bench:
    """A store with the session, a cache in front of it that hears of its changes, and the store of another process."""

    def __init__(self, scheduler: Scheduler, start: str, names: tuple[str, ...], *, everywhere: bool) -> None:
        self.scheduler, self.everywhere = scheduler, everywhere
        self.clock = FakeClock(NOW / 1000)
        self.readers = {number for number, name in enumerate(names) if name in READS}
        self.leased: dict[int, int] = {}
        self._at_stake = at_stake(names)
        self.shards = Shards(self)
        self.store, self.elsewhere = self._made(), self._made()
        # What the other process has it finds in the same place, and nobody here hears what it does.
        self.elsewhere._buckets, self.elsewhere._labelled = self.store._buckets, self.store._labelled
        self.other = fresh()._replace(handle=OTHER)
        self.cache = STARTS[start](self)
        self.store.listen(self.cache.drop)
        if "begin" not in names:
            self.shards[HANDLE[:PREFIX]] = {HANDLE: fresh()}

    def _made(self) -> MemoryStore:
        store = MemoryStore(clock=self.clock)
        for name in ("_lock", "_shards", "_buckets", "_labelled"):
            assert hasattr(store, name)
        store._lock, store._shards = StoreLock(self), self.shards
        return store

    def is_at_stake(self, what: str) -> bool:
        return self.everywhere or what in self._at_stake

    def is_read(self) -> bool:
        """Tell whether another operation may yet look at what the cache's lock does not keep it from."""
        return bool(self.readers - {self.scheduler.current})

    def later(self) -> None:
        self.scheduler.point("time passes")
        self.clock.advance(WHILE)


@cache
def at_stake(names):
    return {"young", *(what for what, who in AT_STAKE.items() if who & set(names))}


class Past(NamedTuple):
    """What came of one schedule: what was done, what each came to, which returned before which began, and what is left.

    ``leased`` are pairs of a read that took its lease after another operation had begun, and that operation. ``kept``
    is what the cache holds in the end, or, if another process made a change, as long after that as it may.
    """

    names: tuple[str, ...]
    results: tuple[Any, ...]
    before: frozenset[tuple[int, int]]
    leased: frozenset[tuple[int, int]]
    left: Sight | None
    kept: Sight | None
    is_absent: bool

    def of(self, *names):
        return [(number, self.results[number]) for number, name in enumerate(self.names) if name in names]

    def reads(self):
        """Return each read with its number; of ``follow`` the second half."""
        return [(number, result if isinstance(result, Served) else result[1]) for number, result in self.of(*READS)]

    def is_before(self, first, second):
        return (first, second) in self.before

    @property
    def ending(self):
        return self.results, self.left, self.kept, self.is_absent


def recall(schedule, bench, names):
    numbers = range(len(names))
    before = frozenset(pair for pair in permutations(numbers, 2) if schedule.is_before(*pair))
    leased = frozenset((read, n) for read, step in bench.leased.items() for n in numbers if step > schedule.began[n])
    if any(name in ELSEWHERE for name in names):
        bench.clock.advance(STALENESS)
    record, left = opened(bench.cache.get(HANDLE)), bench.store.load(HANDLE)
    results = tuple(schedule.results[number] for number in numbers)
    return Past(names, results, before, leased, sight_of(left), sight_of(record), bench.cache.is_absent(HANDLE))


def check_after_a_revoke_no_read_returns_it(past):
    for revoke, _ in past.of("revoke"):
        revived = any(not past.is_before(begin, revoke) for begin, _ in past.of("begin"))
        for number, read in past.reads():
            is_after = past.is_before(revoke, number) and not revived
            assert read.sight is None or not is_after, "it was served after the revoke had returned"


def check_what_is_refused_was_ended(past):
    for number, read in past.reads():
        reasons = [ending for ending, _ in past.of(*ENDINGS) if not past.is_before(number, ending)]
        is_begun = not past.of("begin") or any(past.is_before(begin, number) for begin, _ in past.of("begin"))
        assert read.sight is not None or reasons or not is_begun, "it was refused, and nobody had ended it"


def check_reads_see_what_was_written_before(past):
    """Whoever reads after a change returned, or brings the cookie of his own write, sees that or what came later."""
    for number, read in past.reads():
        for change, result in past.of(*CHANGES):
            if result != GONE and past.is_before(change, number) and read.sight is not None:
                assert read.sight.idle == PROLONGED if past.names[change] == "touch" else read.sight.version >= result
    for _, (version, read) in past.of("follow"):
        assert version == GONE or read.sight is None or read.sight.version >= version


def check_no_read_goes_back(past):
    for first, earlier in past.reads():
        for second, later in past.reads():
            if past.is_before(first, second) and later.sight is not None:
                assert earlier.sight is not None or past.of("begin"), "it was served after it had been refused"
                if earlier.sight is not None:
                    assert later.sight.version >= earlier.sight.version, "an older version was served"
                    assert later.sight.idle >= earlier.sight.idle, "it was served as it was before a touch"


def check_what_was_cleared_is_not_served(past):
    """Only what was filled since is: after ``clear_after`` by whoever had a lease, and a closed cache by nobody."""
    for clearing, _ in past.of(*CLEARINGS):
        name = past.names[clearing]
        for number, read in past.reads():
            if read.is_hit and read.sight is not None and past.is_before(clearing, number):
                fills = [other for other, _ in past.reads() if other != number and not past.is_before(other, clearing)]
                since = [other for other in fills if name == "clear_after" or (other, clearing) in past.leased]
                assert since, "it was served from the cache after that had been cleared"
                assert name != "close", "it was served from a closed cache"


def check_no_stale_fill_is_left(past):
    assert past.kept is None or past.kept == past.left, "what the cache holds is not what the store holds"
    assert not past.is_absent or past.left is None, "the cache takes for absent what is there"
    assert past.kept is None or not past.of("close"), "a closed cache holds something"


@cache
def judge(past):
    """Check every promise; many schedules have one past, so this is remembered."""
    check_after_a_revoke_no_read_returns_it(past)
    check_what_is_refused_was_ended(past)
    check_reads_see_what_was_written_before(past)
    check_no_read_goes_back(past)
    check_what_was_cleared_is_not_served(past)
    check_no_stale_fill_is_left(past)


def at_once(scheduler, start, names, *, everywhere=False, check=judge):
    """Return the scenario of these operations, which stop wherever that matters, or everywhere."""

    def scenario():
        bench = Bench(scheduler, start, names, everywhere=everywhere)
        acts = [partial(acting, bench, OPERATIONS[name], number) for number, name in enumerate(names)]
        return Scenario(acts, lambda schedule: check(recall(schedule, bench, names)))

    return scenario


def acting(bench, act, number):
    try:
        return act(bench, number)
    finally:
        bench.readers.discard(number)


USUAL = [name for name in OPERATIONS if name != "begin"]
PAIRS = list(combinations_with_replacement(USUAL, 2))
BEGINNINGS = list(combinations_with_replacement(("fill", "begin", "revoke"), 3))
ASKED = [name for name in USUAL if name not in ("apply", "clear_after", "close")]
"""Beside two others these show nothing that those like them do not."""

TRIPLES = [("fill", *pair) for pair in combinations_with_replacement(ASKED if SOAK == 1 else USUAL, 2)]
FILLS = [names for names in TRIPLES if names.count("fill") > 1]


@pytest.mark.parametrize("start", ONE_TIER)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_every_interleaving_of_two_operations_serves_nothing_stale(scheduler, start, names):
    told(start, names, scheduler.explore(at_once(scheduler, start, names)))


@pytest.mark.parametrize("start", ONE_TIER)
@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_three_operations_with_few_preemptions_serve_nothing_stale(scheduler, start, names):
    told(start, names, scheduler.explore(at_once(scheduler, start, names), MOST_PREEMPTIONS))


@pytest.mark.parametrize("start", TWO_TIERS)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_every_interleaving_of_two_operations_on_two_tiers_serves_nothing_stale(scheduler, start, names):
    most = MOST_PREEMPTIONS if SOAK == 1 and "follow" in names else None
    told(start, names, scheduler.explore(at_once(scheduler, start, names), most))


@pytest.mark.parametrize("start", TWO_TIERS)
@pytest.mark.parametrize("names", FILLS if SOAK == 1 else TRIPLES, ids="-".join)
def test_three_operations_on_two_tiers_with_few_preemptions_serve_nothing_stale(scheduler, start, names):
    told(start, names, scheduler.explore(at_once(scheduler, start, names), MOST_PREEMPTIONS))


@pytest.mark.parametrize("start", ["empty", "two, empty"])
@pytest.mark.parametrize("names", BEGINNINGS, ids="-".join)
def test_what_was_absent_is_found_once_it_has_begun(scheduler, start, names):
    told(start, names, scheduler.explore(at_once(scheduler, start, names), MOST_PREEMPTIONS))


def pasts_of(scheduler, start, names, **how):
    """Return which operations were over before which began, by what came of the schedules."""
    found = {}
    scheduler.explore(
        at_once(
            scheduler, start, names, check=lambda past: found.setdefault(past.ending, set()).add(past.before), **how
        )
    )
    return found


@pytest.mark.parametrize("start", ONE_TIER)
@pytest.mark.parametrize(
    "names",
    [("fill", "fill"), ("fill", "revoke"), ("fill", "touch"), ("fill", "clear"), ("fill", "crowd")],
    ids="-".join,
)
def test_to_stop_where_nobody_notices_changes_nothing(scheduler, start, names):
    """With points at every step the same comes of it, and nothing after what it does not come after with few points."""
    few, many = (pasts_of(scheduler, start, names, everywhere=everywhere) for everywhere in (False, True))
    assert few.keys() == many.keys()
    for ending, befores in many.items():
        assert all(any(before <= other for other in few[ending]) for before in befores)


# -- b. whole requests ----------------------------------------------------------------------------

REQUEST = environ()
ANN = "ann"

ACTIONS = {
    "read": lambda handler, request, number: dict(handler.session(request)),
    "logout": lambda handler, request, number: handler.session(request).revoke(),
    "write": lambda handler, request, number: handler.session(request).update({key_of(number): number}),
    "renew": lambda handler, request, number: handler.session(request).renew(),
    "incr": lambda handler, request, number: handler.session(request).incr("n"),
    "generate": lambda handler, request, number: handler.generate(request).update(begun=number),
    "handler.revoke": lambda handler, request, number: handler.revoke(request["test.handle"]),
    "revoke_all": lambda handler, request, number: handler.revoke_all(ANN),
}
REQUESTS = (*ACTIONS, "write, read")
"""What requests do; the last are two of one client, who brings the cookie of his write to the other handler."""

CALLS = {"handler.revoke", "revoke_all"}


class SteppingStore(FaultyStore):
    """A store that may be stopped before each of its verbs."""

    def __init__(self, store: Any, scheduler: Scheduler) -> None:
        super().__init__(store)
        self._scheduler = scheduler

    def _call(self, verb: str, *arguments: Any) -> Any:
        if verb != "create":  # What nobody knows of yet nobody can miss.
            self._scheduler.point(f"before {verb}")
        return getattr(self.inner, verb)(*arguments)


class Front:
    """A handler's cache, which may be stopped before each of its verbs, if another operation has a part in that.

    ``users`` are the operations that read and fill it, ``droppers`` those that have it drop something; what they share
    is the record of one handle. That a read misses and that it takes a lease is one step, for what happens between the
    two might as well come before.
    """

    def __init__(self, scheduler: Scheduler, clock: FakeClock) -> None:
        self._scheduler = scheduler
        self.clock, self.max_staleness = clock, STALENESS
        self.handle = ""
        self.users: set[int] = set()
        self.droppers: set[int] = set()
        self.reset()

    def reset(self, record: Any = None) -> None:
        """Begin anew, with this record or empty."""
        self._inner = LocalCache(max_staleness=STALENESS, clock=self.clock)
        if record is not None:
            kept(self._inner, record)

    def _stop(self, verb: str, handle: str, others: set[int]) -> None:
        if handle == self.handle and others - {self._scheduler.current}:
            self._scheduler.point(f"before {verb}")

    def get(self, handle: str, min_version: int = 0) -> Any:
        self._scheduler.point("before get")
        return self._inner.get(handle, min_version)

    def is_absent(self, handle: str) -> bool:
        return self._inner.is_absent(handle)

    def lease(self, handle: str) -> Any:
        return self._inner.lease(handle)

    def put(self, handle: str, record: Any, lease: Any) -> bool:
        self._stop("put", handle, self.users | self.droppers)
        return self._inner.put(handle, record, lease)

    def drop(self, handle: str) -> None:
        self._stop("drop", handle, self.users)
        self._inner.drop(handle)

    def clear(self) -> None:
        self._stop("clear", self.handle, self.users)
        self._inner.clear()

    def clear_after(self, seconds: float) -> None:
        self._inner.clear_after(seconds)

    def stats(self) -> Any:
        return self._inner.stats()

    def close(self) -> None:
        self._inner.close()


class Reply(NamedTuple):
    """What came of one request.

    ``found`` is whether it had the session, if it looked, ``value`` what it did returned, and ``begun`` at which step
    its response began. ``again`` is the reply to the second request of the same client.
    """

    code: int
    cookies: tuple[str, ...]
    found: bool | None
    value: Any
    begun: int | None
    again: "Reply | None" = None

    @property
    def given(self) -> list[str]:
        return [cookie_of(line) for line in self.cookies if not is_deletion(line)]


class Cluster:
    """Two handlers, each with a cache, on one store object or on one each, and a client that has logged in."""

    def __init__(self, scheduler: Scheduler, clock: FakeClock, stores: list[Any], empty: Any) -> None:
        self.scheduler, self.clock, self._empty = scheduler, clock, empty
        self.stores = [SteppingStore(store, scheduler) for store in stores]
        self.caches = [Front(scheduler, clock), Front(scheduler, clock)]
        common = partial(Handler, "user", SECRET, with_clock(clock))
        self.plain = common(with_store(stores[0]))
        self.handlers = [common(with_store(self.stores[n % len(stores)]), with_cache(self.caches[n])) for n in (0, 1)]
        self._apps = [handler.link(partial(self._act, handler)) for handler in self.handlers]
        login = self.request(0, "", lambda handler, request, number: log_in(handler.session(request)), NOBODY)
        (self.cookie,) = login.given
        (self.record,) = stores[0].scan().records

    @property
    def is_one(self) -> bool:
        return len(self.stores) == 1

    def _act(self, handler, request, start_response):
        seen, act = request["test.seen"], request["test.act"]
        session = handler.session(request)
        if request["test.looks"]:
            seen["found"] = session.handle is not None
        seen["value"] = act(handler, request)
        start_response("200 OK", [("Content-Type", "text/plain")])
        seen["begun"] = self.steps_made()
        return [b"done"]

    def steps_made(self):
        return 0 if self.scheduler.run is None else len(self.scheduler.run.steps)

    def request(self, node, cookie, act, number, *, looks=True):
        seen = {}
        made = REQUEST | {"HTTP_COOKIE": cookie, "test.act": partial(act, number=number), "test.seen": seen}
        made |= {"test.looks": looks, "test.handle": self.record.handle if looks is False else None}
        answer = run(self._apps[node], made, validate=False)
        return Reply(answer.code, tuple(answer.cookies), seen.get("found"), seen.get("value"), seen.get("begun"))

    def operate(self, node, name, number):
        """Make the request of this name with the cookie of the login."""
        if name == "write, read":
            reply = self.request(node, self.cookie, ACTIONS["write"], number)
            again = [self.request(1 - node, cookie, ACTIONS["read"], number) for cookie in reply.given]
            return reply._replace(again=again[0] if again else None)
        looks = name not in CALLS
        return self.request(node, self.cookie, ACTIONS[name], number, looks=looks)

    def reset(self, nodes, names, *, warm):
        """Let the stores hold what they held after the login, and the caches that too, or nothing."""
        self._empty()
        self.stores[0].inner.create(self.record)
        writers = {number for number, name in enumerate(names) if name != "read"}
        for which, front in enumerate(self.caches):
            front.handle = self.record.handle
            front.reset(self.record if warm else None)
            readers = {number for number, node in enumerate(nodes) if node == which}
            front.users = readers | {n for n, name in enumerate(names) if name == "write, read"}
            front.droppers = {n for n in writers if self.is_one or nodes[n] == which}

    def loaded(self, handler, cookie):
        """Return the data of the session that a cookie loads from this handler now, None for none."""
        session = handler.session(REQUEST | {"HTTP_COOKIE": cookie})
        return None if session.handle is None else dict(session)


def log_in(session):
    session["user"] = ANN
    session.bind(ANN)


class Aftermath:
    """What is found after a schedule: the replies, and what each cookie loads from the store and from both handlers."""

    def __init__(self, cluster, schedule, names):
        self.cluster, self.run, self.names = cluster, schedule, names
        self.replies = [schedule.results[number] for number in range(len(names))]
        given = [reply.given for reply in self.replies]
        self.cookies = [(None, cluster.cookie), *((n, cookie) for n, each in enumerate(given) for cookie in each)]
        self.truth = {cookie: cluster.loaded(cluster.plain, cookie) for _, cookie in self.cookies}

    def done(self, *names):
        """Return the requests of these names that were answered 200 and, if they looked, found the session."""
        return [
            (number, reply)
            for number, reply in enumerate(self.replies)
            if self.names[number] in names and reply.code == 200 and reply.found is not False
        ]

    def reasons(self, number):
        """Return who ended the session, or its id, beside this request, which then may have been refused."""
        return {other for other in self.enders(number) if not self.run.is_before(number, other)}

    def enders(self, number):
        """Return which others ended the session, or its id, at any time."""
        over = self.done("logout", "generate", "handler.revoke", "revoke_all", "renew")
        return {other for other, _ in over if other != number}

    def check(self):
        self.check_refusals()
        if self.cluster.is_one:
            self.check_what_ended_is_gone()
        self.check_writes_are_there()
        self.check_what_cookies_load()

    def check_refusals(self):
        """What is refused was ended or renewed by another; a refused write sends no cookie."""
        for number, reply in enumerate(self.replies):
            assert reply.code in {200, 409}
            assert (reply.code == 200 and reply.found is not False) or self.reasons(number)
            assert not (reply.code == 409 and reply.cookies)

    def check_what_ended_is_gone(self):
        """A request that begins after the response to a logout, or to a renewal of its id, never sees the session.

        Who found nothing to end does not count: another may be about to end it, and has not answered yet.
        """
        for number, ended in self.done("logout", "generate", "handler.revoke", "revoke_all", "renew"):
            if self.names[number] in CALLS and not ended.value:
                continue
            for other, reply in enumerate(self.replies):
                is_later = other != number and self.run.began[other] >= ended.begun
                assert not (is_later and reply.found), f"{other} saw what {number} had ended"

    def check_writes_are_there(self):
        """What was answered 200 is there for whoever brings its cookie, on either handler, unless that was ended."""
        for number, reply in self.done("write", "write, read", "incr"):
            (cookie,) = reply.given
            assert self.truth[cookie] is not None or self.enders(number)
            assert self.truth[cookie] is None or self.is_seen(number, reply, self.truth[cookie])
            if reply.again is not None:
                assert reply.again.found or self.reasons(number)
                assert not reply.again.found or self.is_seen(number, reply, reply.again.value)

    def is_seen(self, number, reply, data):
        return data["n"] >= reply.value if self.names[number] == "incr" else data[key_of(number)] == number

    def check_what_cookies_load(self):
        """No stale fill is left: at once on one store object, else once the caches are as old as they may be.

        What comes back with its cookie is seen at once everywhere, and so is that it is not dead.
        """
        for is_late in (False,) if self.cluster.is_one else (False, True):
            for handler in self.cluster.handlers:
                for number, cookie in self.cookies:
                    data, truth = self.cluster.loaded(handler, cookie), self.truth[cookie]
                    if self.cluster.is_one or is_late:
                        assert data == truth
                    else:
                        assert data is not None or truth is None
                        self.check_cookie_shows_its_write(number, data)
            if not self.cluster.is_one:
                self.cluster.clock.advance(-STALENESS if is_late else STALENESS)

    def check_cookie_shows_its_write(self, number, data):
        if number is not None and data is not None and self.names[number] in {"write", "write, read", "incr"}:
            assert self.is_seen(number, self.replies[number], data)


@pytest.fixture
def make_cluster(scheduler, tmp_path, monkeypatch):
    """A function that returns handlers on one store object, or on two for one file."""
    clock, opened = FakeClock(NOW / 1000), []

    def made(kind):
        if kind == "one object":
            store = MemoryStore(clock=clock)
            return Cluster(scheduler, clock, [store], partial(store.revoke_where, "subject", ANN))
        empty, opened[:] = emptied_sqlite(Scheduler(), clock, tmp_path, monkeypatch)
        second = SqliteStore(tmp_path / "sessions.db", clock=clock, timeout=0)
        second._idle.extend(second._open() for _ in range(3))
        opened.append(second)
        return Cluster(scheduler, clock, [opened[1], second], empty)

    yield made
    for one in opened:
        one.close()


def requests_at_once(cluster, names, nodes, *, warm):
    def scenario():
        cluster.reset(nodes, names, warm=warm)
        acts = [
            partial(cluster.operate, node, name, n) for n, (node, name) in enumerate(zip(nodes, names, strict=True))
        ]
        return Scenario(acts, lambda schedule: Aftermath(cluster, schedule, names).check())

    return scenario


TOGETHER = list(combinations_with_replacement(REQUESTS, 2))
LONGEST = "write, read"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("kind", ["one object", "two objects"])
@pytest.mark.parametrize("names", TOGETHER, ids="-".join)
def test_two_requests_to_two_handlers_see_no_more_than_they_may(make_cluster, scheduler, kind, warm, names):
    cluster = make_cluster(kind)
    # The longest pair has a hundred times the schedules of the others.
    most = 2 * MOST_PREEMPTIONS if SOAK == 1 and names == (LONGEST, LONGEST) else None
    told(kind, names, scheduler.explore(requests_at_once(cluster, names, (0, 1), warm=warm), most))


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("kind", ["one object", "two objects"])
@pytest.mark.parametrize("third", REQUESTS)
def test_three_requests_around_a_read_and_a_logout_see_no_more_than_they_may(
    make_cluster, scheduler, kind, warm, third
):
    cluster, names = make_cluster(kind), ("read", "logout", third)
    for nodes in ((1, 0, 1), (1, 0, 0)):
        schedules = scheduler.explore(requests_at_once(cluster, names, nodes, warm=warm), MOST_PREEMPTIONS)
        told(kind, names, schedules)
