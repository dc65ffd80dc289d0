"""A parent and its child in every interleaving of two requests, and of three that begin a child while its parent ends.

Requests are stopped before each call to a store, which is all that another request can notice; the soak stops them
after each call too, and a test shows that this finds the same endings. Every exploration runs however the two are
kept: in one store, in two, the child by its client, the child found by an id of the application's own. Run with ``-s``
to see how many schedules each has. The rest is what needs no schedule: whose child a cookie is, how deep a tree may
be, and how long a child lives.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import combinations_with_replacement, product
from math import comb
from threading import Barrier
from typing import Any, NamedTuple

import pytest
from scheduler import NOBODY, Scenario, Scheduler
from support import SECRET, SOAK, Site, environ, run
from test_interleavings import (
    NOW,
    TOUCH_DUE,
    OperationClock,
    cookie_of,
    emptied_sqlite,
    is_deletion,
    told,
)

from sessiontree import (
    ConfigError,
    Handler,
    RejectedError,
    SessionGone,
    chain,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_idle_timeout,
    with_max_age,
    with_revocations,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore

MOST_PREEMPTIONS = 3 if SOAK == 1 else 4
IDLE = 1800
ANN, BOB, KID = "ann", "bob", "kid"
REQUEST = environ()
OK = "200 OK"
FAILED = "500 Internal Server Error"

WAYS = {
    "memory": ("memory", "memory"),
    "sqlite": ("sqlite", "sqlite"),
    "memory, sqlite": ("memory", "sqlite"),
    "memory, carried": ("memory", "carried"),
    "memory, by id": ("memory", "by id"),
    "listed, memory": ("listed", "memory"),
}
"""Where the parent is kept and where the child; ``listed`` is by its client, with a list of what was ended."""


# -- stores that stop -----------------------------------------------------------------------------


class SteppingStore(FaultyStore):
    """A store that may be stopped before each of its verbs, or before and after."""

    def __init__(self, make: Callable[[], Any], scheduler: Scheduler) -> None:
        super().__init__(make())
        self.stops_after = False
        self._make = make
        self._scheduler = scheduler
        self.kept: list[Any] = []

    def keep(self) -> None:
        """Take note of what ``reset()`` goes back to."""
        self.kept = self.inner.scan().records

    def reset(self) -> None:
        self.inner = self._make()
        for record in self.kept:
            self.inner.create(record)

    def _call(self, verb: str, *arguments: Any) -> Any:
        self._scheduler.point(f"before {verb}")
        try:
            return getattr(self.inner, verb)(*arguments)
        finally:
            if self.stops_after:
                self._scheduler.point(f"after {verb}")


class Stores:
    """The stores of one world, each made when it is first asked for."""

    def __init__(self, scheduler: Scheduler, clock: Any, folder: Any) -> None:
        self._scheduler, self._clock, self._folder = scheduler, clock, folder
        self._opened: tuple[Any, ...] = ()
        self.made: dict[str, SteppingStore] = {}

    def __getitem__(self, kind: str) -> SteppingStore:
        if kind not in self.made:
            make = partial(MemoryStore, clock=self._clock)
            if kind == "sqlite":
                with pytest.MonkeyPatch.context() as patch:
                    make, self._opened = emptied_sqlite(Scheduler(), self._clock, self._folder, patch)
            self.made[kind] = SteppingStore(make, self._scheduler)
        return self.made[kind]

    def options(self, place: str) -> tuple[Any, ...]:
        """Return what keeps sessions in this place."""
        if place == "carried":
            return (with_store(None), with_revocations(None))
        if place == "listed":
            return (with_store(None), with_revocations(self["memory"]))
        if place == "by id":
            return (with_store(self["memory"]), server_only)
        return (with_store(self[place]),)

    def each(self, verb: str) -> None:
        for store in self.made.values():
            getattr(store, verb)()

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


@pytest.fixture(scope="module")
def clock(scheduler):
    return OperationClock(scheduler)


@pytest.fixture(scope="module")
def make_stores(scheduler, clock, tmp_path_factory):
    """A function that returns new stores that stop."""
    opened = []

    def made():
        opened.append(Stores(scheduler, clock, tmp_path_factory.mktemp("stores")))
        return opened[-1]

    yield made
    for stores in opened:
        stores.close()


# -- what is done ---------------------------------------------------------------------------------


class Reply(NamedTuple):
    """What came of one operation; ``parent`` is the handle of the parent's session that it found."""

    code: int
    cookies: tuple[str, ...]
    parent: str | None
    value: Any

    def given(self, handler: Handler) -> list[str]:
        """Return the cookies of a handler that this sends, as a browser sends them back."""
        return [cookie_of(line) for line in self.cookies if is_of(line, handler) and not is_deletion(line)]

    def takes(self, handler: Handler) -> bool:
        """Tell whether this deletes the handler's cookie."""
        return any(is_of(line, handler) and is_deletion(line) for line in self.cookies)


def is_of(line: str, handler: Handler) -> bool:
    return line.startswith(f"__Host-{handler.name}=")


def create_child(visitor, user, number):
    user["made"] = number
    user.bind(KID)
    return user.handle


def read_child(visitor, user, number):
    return user.get("made") is not None and user.handle


def write_child(visitor, user, number):
    user["written"] = number
    return user.handle


ACTS: dict[str, Callable[[Any, Any, int], Any]] = {
    "create-child": create_child,
    "fail-child": create_child,
    "read-child": read_child,
    "touch": read_child,
    "write-child": write_child,
    "read-parent": lambda visitor, user, number: visitor.get("user"),
    "revoke-parent": lambda visitor, user, number: visitor.revoke(),
    "renew-parent": lambda visitor, user, number: visitor.renew(),
    "bind-parent": lambda visitor, user, number: visitor.bind(BOB),
    "generate-parent": lambda visitor, user, number: visitor.regenerate() or visitor.update(begun=number),
}
"""What a request does. ``touch`` comes when idle timeouts are to be moved; ``fail-child`` is answered with a 5xx."""

CALLS = ("handler.revoke", "handler.revoke_all")
"""What ends the parent from outside of its requests."""

OPERATIONS = (*ACTS, *CALLS)
CREATING = ("create-child", "fail-child")
"""These come from a client that has the parent's cookie and no child's; all others send both."""

ENDING = ("revoke-parent", "generate-parent", *CALLS)
RENEWING = ("renew-parent", "bind-parent")
UNREFUSED = ("read-parent", *CALLS)
READING = ("read-child", "touch", *UNREFUSED)
"""What is never refused; without a parent an id of a child is."""

BY_ID = ("create-child", "read-child", "write-child")
"""What is done to a child outside of requests, by its id and its parent's handle."""

LACKING = {"memory, by id": ("fail-child",), "listed, memory": CALLS}
"""What cannot be done: to be created later than at once; to be found by a handle in no store."""


class World:
    """A visitor who has logged in and has a user session, and what can be done to the two."""

    by_id = False

    def __init__(self, stores: Stores, clock: OperationClock, way: str) -> None:
        above, below = WAYS[way]
        self.stores, self.clock, self.way = stores, clock, way
        self.is_listed, self.is_carried, self.is_one = above == "listed", below == "carried", above == below
        self.visitor = Handler("visitor", SECRET, with_clock(clock), with_idle_timeout(IDLE), *stores.options(above))
        self.user = self.visitor.spawn("user", with_idle_timeout(IDLE), *stores.options(below))
        self.begin()
        stores.each("keep")

    def begin(self):
        """Log in, and have a first child."""
        self.app = chain(self.visitor, self.user)(self._answer)
        login = self.request("", lambda visitor, user, number: visitor.update(user=ANN) or visitor.bind(ANN))
        (self.parent_cookie,) = login.given(self.visitor)
        child = self.request(self.parent_cookie, create_child)
        (self.child_cookie,) = child.given(self.user)
        self.parent, self.child = child.parent, child.value

    def _answer(self, request, start_response):
        seen, status = request["test.seen"], request["test.status"]
        sessions = [handler.session(request) for handler in self.linked]
        seen["parent"] = sessions[0].handle
        try:
            seen["value"] = request["test.act"](*sessions)
        except RejectedError:
            status = "401 Unauthorized"
        start_response(status, [("Content-Type", "text/plain")])
        return [b"done"]

    @property
    def linked(self):
        return self.visitor, self.user

    def request(self, cookie, act, number=NOBODY, status=OK):
        seen = {}
        act = partial(act, number=number)
        made = REQUEST | {"HTTP_COOKIE": cookie, "test.act": act, "test.seen": seen, "test.status": status}
        answer = run(self.app, made, validate=False)
        return Reply(answer.code, tuple(answer.cookies), seen.get("parent"), seen.get("value"))

    def operate(self, name, number):
        """Do one thing, and return what came of it."""
        if name in CALLS:
            call = {"handler.revoke": (self.visitor.revoke, self.parent)}
            ended, argument = call.get(name, (self.visitor.revoke_all, ANN))
            count = int(ended(argument))
            return Reply(200, (), self.parent if count else None, count)
        cookie = self.parent_cookie if name in CREATING else f"{self.parent_cookie}; {self.child_cookie}"
        return self.request(cookie, ACTS[name], number, FAILED if name == "fail-child" else OK)

    def look(self, parent_cookie, child_cookie):
        """Return what a request with these two cookies sees: the child's handle and data, and the parent's children."""

        def seen(visitor, user, number):
            return user.handle, dict(user), self.children_of(visitor)

        return self.request(f"{parent_cookie}; {child_cookie}", seen)

    def children_of(self, visitor):
        return [] if self.is_listed else [info.handle for info in visitor.children()]

    def stored_parent(self):
        return self.stores["memory" if "memory" in self.stores.made else "sqlite"].inner.load(self.parent)

    def listed(self):
        """Return the handles of all children that the handler lists, or nothing where only clients know them."""
        return [] if self.is_carried else [info.handle for info in self.user.sessions(KID)]


class ByIdWorld(World):
    """One whose children are found by an id of the application's own and the handle of their parent."""

    by_id = True

    def begin(self):
        self.app = self.visitor.link(self._answer)
        login = self.request("", lambda visitor, number: visitor.update(user=ANN) or visitor.bind(ANN))
        (self.parent_cookie,) = login.given(self.visitor)
        self.parent = self.request(self.parent_cookie, lambda visitor, number: None).parent
        self.child_cookie = "the first"
        self.child = self._make(self.child_cookie, NOBODY)

    @property
    def linked(self):
        return (self.visitor,)

    def _make(self, name, number):
        session = self.user.generate_by_id(name, parent=self.parent)
        session["made"] = number
        session.bind(KID)
        session.commit()
        return session.handle

    def operate(self, name, number):
        if name not in BY_ID:
            act = ACTS.get(name)
            if name == "touch":
                return self.request(self.parent_cookie, self._touch, number)
            if act is not None:
                return self.request(self.parent_cookie, lambda visitor, number: act(visitor, None, number), number)
            return super().operate(name, number)
        try:
            return Reply(200, (), self.parent, self._by_id(name, number))
        except RejectedError:
            return Reply(401, (), None, None)

    def _by_id(self, name, number):
        if name == "create-child":
            return self._make("the second", number)
        session = self.user.load_by_id(self.child_cookie, parent=self.parent)
        if name == "write-child":
            session["written"] = number
            session.commit()
        return session.handle

    def _touch(self, visitor, number):
        if visitor.handle is None:
            return None
        session = self.user.load_by_id(self.child_cookie, parent=visitor)
        session.commit()
        return session.handle

    def look(self, parent_cookie, child_cookie):
        found = self.request(parent_cookie, lambda visitor, number: self.children_of(visitor))
        try:
            session = self.user.load_by_id(child_cookie, parent=found.parent or self.parent)
            seen = session.handle, dict(session), found.value
        except RejectedError:
            seen = None, {}, found.value
        return found._replace(value=seen)


# -- what is found after a schedule ---------------------------------------------------------------


class Aftermath:
    """The replies by number, and what every pair of a parent's and a child's cookie opens by then."""

    def __init__(self, world, run, names):
        self.world, self.run, self.names = world, run, names
        self.replies = [run.results[number] for number in range(len(names))]
        self.is_over = bool(self.done(*ENDING))
        self.renewals = self.done(*RENEWING)
        self.parents = [world.parent_cookie, *self.sent(world.visitor)]
        self.others = {
            cookie
            for number, reply in enumerate(self.replies)
            for cookie in reply.given(world.visitor)
            if names[number] == "generate-parent" or reply.parent != world.parent
        }
        self.children = [world.child_cookie, *self.sent(world.user)]
        if world.by_id:
            self.children = [world.child_cookie, "the second"]
        self.looks = {pair: world.look(*pair) for pair in product(dict.fromkeys(self.parents), self.children)}

    def sent(self, handler):
        return [cookie for reply in self.replies for cookie in reply.given(handler)]

    def of(self, *names):
        return [(number, reply) for number, reply in enumerate(self.replies) if self.names[number] in names]

    def done(self, *names):
        """Return the operations of these names that found the parent and did what they are there for."""
        return [(n, reply) for n, reply in self.of(*names) if (reply.code, reply.parent) == (200, self.world.parent)]

    def outcome(self):
        """Return what tells one ending from another."""
        short = tuple((reply.code, len(reply.cookies), reply.parent == self.world.parent) for reply in self.replies)
        seen = [(look.parent is None, look.value[0] is None, len(look.value[2])) for look in self.looks.values()]
        return short, tuple(seen), len(self.world.listed())

    def check(self):
        self.check_answers()
        self.check_cookies()
        self.check_order()
        self.check_no_child_outlives_its_parent()
        self.check_another_parent_has_no_part_in_them()
        self.check_a_renewed_parent_keeps_its_children()
        self.check_lists()
        self.check_subjects()

    def check_answers(self):
        """What is refused or finds nothing was ended or renewed by another; a read is never refused."""
        for number, reply in enumerate(self.replies):
            name = self.names[number]
            others = [other for other, _ in self.done(*ENDING, *RENEWING) if other != number]
            expected = (
                {200}
                if name in (UNREFUSED if self.world.by_id else READING)
                else {500 if name == "fail-child" else 200, 401, 409}
            )
            assert reply.code in expected, f"{name} was answered {reply.code}"
            assert reply.code in {200, 500} or others, f"nobody kept {name} from it"
            assert reply.parent == self.world.parent or others, f"{name} did not find the parent"
        assert len(self.renewals) <= 1

    def check_cookies(self):
        """A refusal and a failure give no cookie, and only the dead are forgotten."""
        for number, reply in enumerate(self.replies):
            names = [line.partition("=")[0] for line in reply.cookies]
            assert len(names) == len(set(names))
            assert reply.code == 200 or all(map(is_deletion, reply.cookies))
            assert reply.code != 409 or not reply.cookies
            assert self.is_over or not any(map(is_deletion, reply.cookies)), self.names[number]
        for _, reply in self.done("create-child"):
            assert len(reply.given(self.world.user)) == (not self.world.by_id)
        for _, reply in self.done("revoke-parent"):
            assert reply.takes(self.world.visitor)
        for _, reply in self.renewals:
            assert len(reply.given(self.world.visitor)) == 1

    def check_order(self):
        """Who begins after the parent was ended finds neither; who comes with a renewed id finds no parent."""
        for number, _ in self.done(*ENDING):
            for later, reply in enumerate(self.replies):
                assert not self.run.is_before(number, later) or reply.parent != self.world.parent
        for number, _ in self.renewals:
            for later, reply in enumerate(self.replies):
                by_handle = self.names[later] in (*CALLS, *(BY_ID if self.world.by_id else ()))
                assert by_handle or not self.run.is_before(number, later) or reply.parent is None

    def check_no_child_outlives_its_parent(self):
        """After the parent was ended no child's cookie opens anything beside any cookie of a parent."""
        if not self.world.is_listed:
            assert (self.world.stored_parent() is None) == self.is_over
        if self.is_over:
            for look in self.looks.values():
                assert look.value == (None, {}, []), "a live orphan"
                assert look.parent != self.world.parent

    def check_another_parent_has_no_part_in_them(self):
        """Beside the cookie of another session, begun in the parent's place, no child's cookie opens anything."""
        for (parent, _), look in self.looks.items():
            if parent in self.others:
                assert look.parent not in {None, self.world.parent}
                assert look.value == (None, {}, [])
                assert look.cookies == (), "nobody's cookie is touched"

    def check_a_renewed_parent_keeps_its_children(self):
        """Beside the newest cookie of a living parent each child's cookie opens it, and beside an older one nothing."""
        if self.is_over:
            return
        newest = [cookie for _, reply in self.renewals for cookie in reply.given(self.world.visitor)]
        for (parent, child), look in self.looks.items():
            if parent in self.others:
                continue
            assert not any(map(is_deletion, look.cookies))
            if newest and parent not in newest:
                assert look.parent is None
                assert self.world.by_id or look.value[:2] == (None, {})
            else:
                assert look.parent == self.world.parent
                self.check_child(child, *look.value)

    def check_child(self, cookie, handle, data, listed):
        """A child that was answered 200 is there with its data, and what failed never was."""
        made = {reply.value for _, reply in self.done("create-child")}
        if cookie == "the second" and not made:
            assert handle is None
            return
        assert handle in made | {self.world.child}
        assert data["made"] in [NOBODY, *range(len(self.names))]
        written = {number for number, _ in self.done("write-child")}
        if handle == self.world.child and not self.world.is_carried:
            assert data.get("written", NOBODY) in (written or {NOBODY})
        if self.world.is_one:
            assert sorted(listed) == sorted(made | {self.world.child})

    def check_lists(self):
        """The child handler lists every child that was answered 200 while the parent lives, then none."""
        if self.world.is_carried or self.world.is_listed:
            return  # Nobody knows them; or nobody knows of the list that their parent is on.
        made = {reply.value for _, reply in self.done("create-child")}
        expected = set() if self.is_over else made | {self.world.child}
        assert sorted(self.world.listed()) == sorted(expected)

    def check_subjects(self):
        """After a log-out everywhere nobody is bound any more who was, and a parent that lives is listed once."""
        if self.world.is_listed:
            return
        bound = [
            subject
            for subject in (ANN, BOB)
            for info in self.world.visitor.sessions(subject)
            if info.handle == self.world.parent
        ]
        assert bound == ([] if self.is_over else [BOB if self.done("bind-parent") else ANN])
        assert not self.of("handler.revoke_all") or ANN not in bound


@pytest.fixture(scope="module")
def world(request, make_stores, clock):
    kind = ByIdWorld if WAYS[request.param][1] == "by id" else World
    return kind(make_stores(), clock, request.param)


def at_once(world, names, *, stops_after=False, check=Aftermath.check):
    for store in world.stores.made.values():
        store.stops_after = stops_after

    def scenario():
        world.stores.each("reset")
        world.clock.times = {number: TOUCH_DUE if name == "touch" else NOW for number, name in enumerate(names)}
        acts = [partial(world.operate, name, number) for number, name in enumerate(names)]
        return Scenario([partial(_or_conflict, act) for act in acts], lambda run: check(Aftermath(world, run, names)))

    return scenario


def _or_conflict(act):
    """Answer as the link does, where there is none."""
    try:
        return act()
    except SessionGone:
        return Reply(409, (), None, None)


def among(way, *groups):
    """Return these groups of operations with the way in front, but for those with one that cannot be done."""
    return [(way, names) for names in groups if not set(names) & set(LACKING.get(way, ()))]


def named(case):
    return case if isinstance(case, str) else "-".join(case)


PAIRS = [each for way in WAYS for each in among(way, *combinations_with_replacement(OPERATIONS, 2))]
MATTERING = ("generate-parent", *RENEWING, "handler.revoke_all")
"""What comes beside a child that begins while its parent ends: in the first way all there is, in the others this."""

TRIPLES = [
    each
    for way in WAYS
    for third in (MATTERING if SOAK == 1 and way != "memory" else OPERATIONS)
    for each in among(way, ("create-child", "revoke-parent", third))
]

VERBS = {"create-child": 2, "fail-child": 1, "read-child": 1, "read-parent": 1, "write-child": 2}
"""How often each calls the store of both, if nobody keeps it from anything: so a formula counts the schedules."""


@pytest.mark.parametrize(("world", "names"), PAIRS, indirect=["world"], ids=named)
def test_lc_16_in_every_interleaving_of_two_operations_no_child_outlives_its_parent(scheduler, world, names):
    count = told(world.way, names, scheduler.explore(at_once(world, names, stops_after=SOAK > 1)))
    if world.way in {"memory", "sqlite"} and set(names) <= set(VERBS):
        steps = [VERBS[name] * (1 if SOAK == 1 else 2) for name in names]
        assert count == comb(sum(steps), steps[0])


@pytest.mark.parametrize(("world", "names"), TRIPLES, indirect=["world"], ids=named)
def test_lc_16_a_child_that_begins_while_its_parent_ends_beside_a_third_is_no_live_orphan(scheduler, world, names):
    told(world.way, names, scheduler.explore(at_once(world, names), MOST_PREEMPTIONS))


STOPPED_TWICE = [
    *((way, ("create-child", "revoke-parent")) for way in ("memory", "memory, sqlite", "listed, memory")),
    *(("memory", (name, "renew-parent")) for name in ("write-child", "generate-parent", "touch")),
]


@pytest.mark.parametrize(("world", "names"), STOPPED_TWICE, indirect=["world"], ids=named)
def test_to_stop_after_each_call_too_finds_the_same_endings(scheduler, world, names):
    endings = {}
    for stops_after in (False, True):
        found = endings[stops_after] = set()

        def check(aftermath, found=found):
            aftermath.check()
            found.add(aftermath.outcome())

        scheduler.explore(at_once(world, names, stops_after=stops_after, check=check))
    assert endings[False] == endings[True]
    assert len(endings[False]) > 1


# -- three generations ----------------------------------------------------------------------------


class Line:
    """A root, a middle and a leaf, each kept in a place of its own; two browsers may have one of each."""

    names = ("root", "middle", "leaf")

    def __init__(self, stores, clock, places):
        self.stores, self.clock = stores, clock
        root = Handler("root", SECRET, with_clock(clock), *stores.options(places[0]))
        middle = root.spawn("middle", *stores.options(places[1]))
        self.handlers = (root, middle, middle.spawn("leaf", *stores.options(places[2])))
        self.app = chain(*self.handlers)(self._answer)

    def _answer(self, request, start_response):
        status = OK
        try:
            request["test.seen"] = request["test.act"](*(handler.session(request) for handler in self.handlers))
        except RejectedError:
            status = "401 Unauthorized"
        start_response(status, [("Content-Type", "text/plain")])
        return [b"done"]

    def request(self, cookies, act):
        """Return what the act came to, the status, and the cookies that were sent, by handler name."""
        made = REQUEST | {"HTTP_COOKIE": "; ".join(filter(None, cookies)), "test.act": act}
        answer = run(self.app, made, validate=False)
        given = {line.partition("=")[0].removeprefix("__Host-"): line for line in answer.cookies}
        return made.get("test.seen"), answer.code, given

    def logged_in(self, depth=3, value=0):
        """Return the cookies of a new browser that has so many generations."""
        given = self.request((), lambda *line: [session.update(n=value) for session in line[:depth]])[2]
        return [cookie_of(given[name]) for name in self.names[:depth]]

    def live(self, cookies):
        """Return the handles of what these cookies open, and what the answer sent."""
        handles, _, given = self.request(cookies, lambda *line: [session.handle for session in line])
        return handles, given


PLACES = ("memory", "sqlite", "carried", "listed")


@pytest.fixture
def stores(clock, tmp_path):
    """Stores that never stop."""
    made = Stores(Scheduler(), clock, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("places", list(product(PLACES, repeat=2)), ids="-".join)
def test_lc_16_a_cookie_beside_another_live_parents_is_refused_and_neither_is_deleted(stores, clock, places):
    """Of every mixture of two browsers' cookies what lives is what is of one browser from the root on."""
    for below in PLACES:
        line = Line(stores, clock, (*places, below))
        browsers = [line.logged_in(value=1), line.logged_in(value=2)]
        own = [line.live(cookies)[0] for cookies in browsers]
        assert None not in (*own[0], *own[1])
        for owners in product((0, 1), repeat=3):
            handles, given = line.live([browsers[owner][level] for level, owner in enumerate(owners)])
            expected = [
                own[owners[0]][level] if set(owners[: level + 1]) == {owners[0]} else None for level in range(3)
            ]
            assert handles == expected
            assert given == {}, "nobody's cookie is touched"
        assert [line.live(cookies)[0] for cookies in browsers] == own


@pytest.mark.parametrize("place", PLACES)
def test_lc_16_an_id_beside_another_live_parent_names_no_session(stores, clock, place):
    visitor = Handler("visitor", SECRET, with_clock(clock), *stores.options(place))
    jobs = visitor.spawn("job", *stores.options("by id"))
    s = Site(visitor, clock=clock)
    other = s.another_browser()
    for browser in (s.browser, other):
        s.visit(lambda v: v.update(n=1), browser)
    handle = s.visit(lambda v: jobs.generate_by_id("job", v).handle)

    def ask(v):
        with pytest.raises(RejectedError):
            jobs.load_by_id("job", v)
        return v["n"]

    assert s.visit(ask, other) == 1
    assert s.answer.cookies == []
    assert s.visit(lambda v: jobs.load_by_id("job", v).handle) == handle


ROOT, MIDDLE = 0, 1
LINES = [("memory",) * 3, ("sqlite",) * 3, ("memory", "carried", "sqlite"), ("sqlite", "memory", "carried")]


@pytest.fixture(scope="module")
def line(request, make_stores, clock):
    made = Line(make_stores(), clock, request.param)
    made.cookies = made.logged_in(depth=2)
    made.known = made.live(made.cookies)[0]
    made.stores.each("keep")
    return made


def ended_with(end, level):
    """Return what ends the session of a level in its own request, and returns the handle that this one found."""

    def act(*sessions):
        found = sessions[level].handle
        end(sessions[level])
        return found

    return act


def ended_by_handle(line, level):
    return lambda *_: line.known[level] if line.handlers[level].revoke(line.known[level]) else None


ENDINGS = {
    "revoke": lambda line, level: ended_with(lambda session: session.revoke(), level),
    "generate": lambda line, level: ended_with(lambda session: session.regenerate(), level),
    "handler.revoke": ended_by_handle,
}


def held_after(line, replies):
    """Return every cookie of each level that some browser has by now."""
    jars = [[line.cookies[ROOT]], [line.cookies[MIDDLE]], []]
    for _, _, given in replies:
        for jar, name in zip(jars, line.names, strict=True):
            if name in given and not is_deletion(given[name]):
                jar.append(cookie_of(given[name]))
    return jars


DESCENTS = [
    pytest.param(places, ending, level, renewed, id=f"{'-'.join(places)}-{ending}-{level}-{renewed}")
    for places, ending, level, renewed in product(LINES, ENDINGS, (ROOT, MIDDLE), (None, ROOT, MIDDLE))
    if SOAK > 1 or renewed is None or (places == LINES[0] and ending != "handler.revoke")
]


@pytest.mark.parametrize(("line", "ending", "level", "renewed"), DESCENTS, indirect=["line"])
def test_lc_16_a_grandchild_that_begins_while_an_ancestor_ends_never_lives(scheduler, line, ending, level, renewed):
    """What the client carries alone is never over for a copy of its token, but what depends on it is bound to it."""
    is_stored = line.handlers[level].config.store is not None
    doing = [
        lambda root, middle, leaf: leaf.update(n=1) or leaf.handle,
        ENDINGS[ending if is_stored else "revoke"](line, level),
        *([] if renewed is None else [lambda *sessions: sessions[renewed].renew()]),
    ]

    def scenario():
        line.stores.each("reset")
        line.clock.times = {}
        return Scenario([partial(line.request, line.cookies, act) for act in doing], check)

    def check(run):
        replies = [run.results[number] for number in range(len(doing))]
        found, code, _ = replies[1]
        is_over = is_stored and code == 200 and found == line.known[level]
        leaf, code, given = replies[0]
        assert (code == 200) == ("leaf" in given)
        lived = set()
        for cookies in product(*held_after(line, replies)):
            handles, _ = line.live(cookies)
            assert all(handles[above] or not handles[above + 1] for above in (ROOT, MIDDLE)), "a live orphan"
            assert not is_over or handles[level] != line.known[level]
            lived.add(handles[2])
        assert lived <= ({None} if is_over else {None, leaf}), "a live orphan"
        assert is_over or code != 200 or leaf in lived

    assert scheduler.explore(scenario, MOST_PREEMPTIONS) > 1


# -- real threads ---------------------------------------------------------------------------------

WAIT = 60
ROUNDS = 30 * SOAK
PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def every_processor() -> Iterator[None]:
    """Let what is begun here run anywhere, while a scheduler keeps to one processor."""
    kept = os.sched_getaffinity(0) if PROCESSORS else set()
    if PROCESSORS:
        os.sched_setaffinity(0, PROCESSORS)
    try:
        yield
    finally:
        if PROCESSORS:
            os.sched_setaffinity(0, kept)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("ending", ["revoke", "regenerate"])
def test_lc_16_children_begun_in_threads_while_their_parent_ends_are_no_live_orphans(tmp_path, kind, ending):
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "s.db", timeout=WAIT)
    visitor = Handler("visitor", SECRET, with_store(store))
    user = visitor.spawn("user")

    def answer(request, start_response):
        status = OK
        try:
            request["test.act"](visitor.session(request), user.session(request))
        except RejectedError:
            status = "401 Unauthorized"
        start_response(status, [("Content-Type", "text/plain")])
        return [b"done"]

    app = chain(visitor, user)(answer)

    def visit(cookie, act):
        return run(app, REQUEST | {"HTTP_COOKIE": cookie, "test.act": act}, validate=False)

    def meet(barrier, cookie, act):
        barrier.wait(WAIT)
        return visit(cookie, act)

    def nothing(v, u):
        assert u.handle is None
        assert (v.handle and v.children()) in (None, [])

    acts = [lambda v, u: (u.update(n=1), u.bind(KID))] * 3 + [lambda v, u: getattr(v, ending)()]
    with every_processor(), ThreadPoolExecutor(len(acts)) as pool:
        for _ in range(ROUNDS):
            (line,) = visit("", lambda v, u: v.update(n=1)).cookies
            parent, barrier = cookie_of(line), Barrier(len(acts))
            futures = [pool.submit(meet, barrier, parent, act) for act in acts]
            answers = [future.result(WAIT) for future in futures]
            assert answers[3].code == 200
            begun = [cookie_of(line) for answer in answers[:3] for line in answer.cookies if not is_deletion(line)]
            parents = [parent, *(cookie_of(line) for line in answers[3].cookies if not is_deletion(line))]
            for pair in product(parents, begun):
                assert visit("; ".join(pair), nothing).code == 200
            assert user.sessions(KID) == []
    store.close()


# -- how deep, and how long -----------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_sixteen_generations_live_and_die_together_and_a_seventeenth_is_refused(stores, clock, place):
    handlers = [Handler("level1", SECRET, with_clock(clock), *stores.options(place))]
    for level in range(2, 17):
        handlers.append(handlers[-1].spawn(f"level{level}"))
    with pytest.raises(ConfigError, match="16 levels"):
        handlers[-1].spawn("level17")
    with pytest.raises(ConfigError, match="16 levels"):
        handlers[-1].spawned(Handler("level17", SECRET))
    s = Site(*handlers, clock=clock)
    s.visit(lambda *line: [session.update(n=1) for session in line])
    assert s.visit(lambda *line: [session["n"] for session in line]) == [1] * 16
    s.visit(lambda *line: line[7].renew())
    assert s.visit(lambda *line: [session["n"] for session in line]) == [1] * 16
    cookie = s.browser.jar.header()
    s.visit(lambda *line: line[7].revoke())
    assert s.visit(lambda *line: [session.get("n") for session in line]) == [1] * 7 + [None] * 9
    if place != "carried":
        assert s.visit(lambda *line: [session.get("n") for session in line], HTTP_COOKIE=cookie) == [1] * 7 + [None] * 9


@pytest.mark.parametrize("place", [*PLACES, "by id"])
def test_no_handler_is_its_own_ancestor(stores, clock, place):
    root = Handler("root", SECRET, with_clock(clock), *stores.options(place))
    middle = root.spawn("middle", *stores.options(place))
    leaf = middle.spawn("leaf", with_store(None))
    for build in (
        lambda: root.spawn("root"),
        lambda: root.spawned(root),
        lambda: middle.spawn("root"),
        lambda: leaf.spawn("root"),
        lambda: leaf.spawn("middle"),
        lambda: leaf.spawned(root),
        lambda: leaf.spawned(middle),
    ):
        with pytest.raises(ConfigError, match="ancestor"):
            build()


LIVES = {
    "absolute": (with_absolute_timeout(100),),
    "max_age": (with_max_age(100),),
    "idle": (with_idle_timeout(100), with_absolute_timeout(1000)),
}
DAY = 86_400


def lasting(line):
    """Return the Max-Age of a cookie, or nothing for one of the browser session."""
    (life,) = [part for part in line.split("; ") if part.startswith("Max-Age=")] or ["Max-Age=0"]
    return int(life.removeprefix("Max-Age="))


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("places", list(product(PLACES, [*PLACES, "by id"])), ids="-".join)
def test_a_childs_deadline_is_never_past_its_parents_however_they_are_kept(tmp_path, places, life):
    clock = FakeClock()
    stores = Stores(Scheduler(), clock, tmp_path)
    visitor = Handler("visitor", SECRET, with_clock(clock), *stores.options(places[0]), *LIVES[life])
    user = visitor.spawn("user", with_absolute_timeout(10 * DAY), *stores.options(places[1]))
    by_id = places[1] == "by id"
    s = Site(visitor, *(() if by_id else (user,)), clock=clock)

    def child(visitor, *others):
        return user.generate_by_id("job", visitor) if by_id else others[0]

    def deadlines(*sessions):
        mine = child(*sessions)
        mine.put("k", 1, DAY)
        mine.commit()
        return sessions[0].expires_in, mine.expires_in, mine.ttl("k")

    s.visit(lambda visitor, *others: visitor.update(n=1))
    for act in (
        lambda *sessions: child(*sessions).update(n=1),
        lambda *sessions: child(*sessions).touch(max_age=DAY),
        lambda visitor, *others: visitor.touch(),
        lambda visitor, *others: visitor.renew(),
        lambda visitor, *others: visitor.touch(max_age=50),
    ):
        clock.advance(5)
        s.visit(act)
        sent = s.answer.cookies
        above, below, key = s.visit(deadlines)
        assert 0 < below == key == above <= 100
        for line in (*sent, *s.answer.cookies):
            assert lasting(line) <= (above if life != "idle" else 1000) or line.startswith("__Host-visitor=")
    assert above == 50
    clock.advance(50)
    assert s.visit(lambda *sessions: [session.handle for session in sessions]) == [None] * len(s.handlers)
    stores.close()


@pytest.mark.parametrize("places", list(product(("memory", "sqlite"), repeat=2)), ids="-".join)
def test_a_stored_childs_absolute_deadline_is_its_parents_at_the_latest(stores, clock, places):
    visitor = Handler("visitor", SECRET, with_clock(clock), *stores.options(places[0]), with_absolute_timeout(100))
    user = visitor.spawn("user", with_absolute_timeout(None), *stores.options(places[1]))
    s = Site(visitor, user, clock=clock)
    s.visit(lambda v, u: (v.update(n=1), v.bind(ANN), u.update(n=1), u.bind(ANN)))
    (parent,), (child,) = visitor.sessions(ANN), user.sessions(ANN)
    assert child.expires_at == parent.expires_at
