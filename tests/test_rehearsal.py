"""What a commit of several sessions works out before it writes is worked out once, and never sent once it is old."""

import json
from itertools import count

import pytest
from support import SECRET, Site, environ

from sessiontree import (
    Conflict,
    Handler,
    StoreUnavailable,
    fixed_id,
    server_only,
    with_clock,
    with_encryption,
    with_events,
    with_idle_timeout,
    with_max_age,
    with_revocations,
    with_serializer,
    with_store,
)
from sessiontree.handlers import codec
from sessiontree.handlers.environ import REGISTRY
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


class Counting:
    """JSON that counts what it writes."""

    def __init__(self):
        self.written = []

    def dumps(self, value):
        self.written.append(value)
        return json.dumps(value).encode()

    def loads(self, data):
        return json.loads(data)


class Pipelined(MemoryStore):
    """Has several writes made in one trip."""

    def apply_many(self, writes):
        return [self.apply(*write) for write in writes]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=[MemoryStore, Pipelined])
def store(request, clock):
    return FaultyStore(request.param(clock=clock))


@pytest.fixture
def serializer():
    return Counting()


@pytest.fixture
def sealed(monkeypatch):
    """Return the contents of all tokens that are made from now on."""
    made, encode = [], codec.encode
    monkeypatch.setattr(codec, "encode", lambda raw: (made.append(raw), encode(raw))[1])
    return made


def committed(site, serializer, action):
    """Have a request act on the sessions; return what was written as it was committed."""

    def act(*sessions):
        action(*sessions)
        serializer.written.clear()

    site.visit(act)
    assert site.answer.code == 200
    return serializer.written


def all_write(*sessions):
    for session in sessions:
        session.update(n=session.get("n", 0) + 1)


# -- once ------------------------------------------------------------------------------------------


def test_two_tokens_are_made_once_each_beside_a_stored_session_and_its_fields_are_written_once(
    store, clock, serializer, sealed
):
    common = [with_clock(clock), with_serializer(serializer)]
    first, second = Handler("a", SECRET, *common), Handler("b", SECRET, *common, with_encryption())
    s = Site(first, second, Handler("c", SECRET, *common, with_store(store)))
    for n, tokens in ((1, 3), (2, 2), (3, 2)):
        sealed.clear()
        assert sorted(committed(s, serializer, all_write), key=str) == [n, {"n": n}, {"n": n}]
        assert len(sealed) == tokens, "The store's session needs one when it begins."


@pytest.mark.parametrize("others_write", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_login_in_a_batch_writes_is_written_once(store, clock, serializer, others_write, is_there):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_serializer(serializer))
    s = Site(visitor, visitor.spawn("user"))
    s.visit(lambda visitor, user: (all_write(visitor), all_write(*[user] * is_there)))

    def login(visitor, user):
        user["name"] = "Ann"
        user.bind("ann")
        user.flash("Welcome.")
        if others_write:
            visitor["seen"] = 7

    assert sorted(map(str, committed(s, serializer, login))) == sorted(
        ["Ann", "['message', 'Welcome.']", *["7"] * others_write]
    )
    assert s.visit(lambda visitor, user: (user["name"], user.subject, user.flashes(), visitor.get("seen"))) == (
        "Ann", "ann", [("message", "Welcome.")], 7 if others_write else None
    )  # fmt: skip


def test_what_one_of_a_batch_writes_is_written_once(store, clock, serializer):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_serializer(serializer))
    s = Site(visitor, visitor.spawn("user"))
    s.visit(all_write)
    assert committed(s, serializer, lambda visitor, user: all_write(user)) == [2]
    assert committed(s, serializer, all_write) == [2, 3]


@pytest.mark.parametrize("options", [[], [server_only, fixed_id("x")]])
def test_a_commit_by_hand_writes_once(store, clock, serializer, options):
    handler = Handler("a", SECRET, with_clock(clock), with_store(store), with_serializer(serializer), *options)
    session = handler.session(environ())
    for n in (1, 2):
        all_write(session)
        serializer.written.clear()
        session.commit()
        assert serializer.written == [n]


# -- never old -------------------------------------------------------------------------------------


class Meddling:
    """A listener that does something else to the request's sessions at the first event of a commit."""

    def __init__(self):
        self.then = None

    def __call__(self, event):
        if self.then is not None:
            then, self.then = self.then, None
            then()


@pytest.fixture
def meddling():
    return Meddling()


def meddled_site(store, clock, meddling, *others):
    """Return a site whose first session is stored, begins in each request, and tells the listener so."""
    first = Handler("first", SECRET, with_clock(clock), with_store(store), with_events(meddling))
    s = Site(first, *others)
    s.visit(lambda first, *others: all_write(*others))
    return s


def meddle(site, meddling, then):
    """Have every session written, and this done to all but the first while they are committed."""

    def act(first, *others):
        first.regenerate()
        all_write(first, *others)
        meddling.then = lambda: then(*others)

    site.visit(act)
    assert (site.answer.code, meddling.then) == (200, None)
    return site.visit(lambda first, *others: [dict(session) for session in others])


KINDS = ["carried", "sealed", "revocable", "stored", "elsewhere"]


@pytest.fixture(params=KINDS)
def other(request, store, clock):
    own = {
        "carried": [],
        "sealed": [with_encryption()],
        "revocable": [with_revocations(MemoryStore(clock=clock))],
        "stored": [with_store(store)],
        "elsewhere": [with_store(MemoryStore(clock=clock))],
    }
    return Handler("other", SECRET, with_clock(clock), *own[request.param])


def test_what_is_written_during_a_commit_is_sent(store, clock, meddling, other):
    s = meddled_site(store, clock, meddling, other)
    assert meddle(s, meddling, lambda other: other.update(late=1)) == [{"n": 2, "late": 1}]
    assert meddle(s, meddling, lambda other: other.delete("n")) == [{"late": 1}]
    assert meddle(s, meddling, lambda other: (other.clear(), other.update(m=1))) == [{"m": 1}]


def test_what_is_changed_in_place_during_a_commit_is_sent(store, clock, meddling, other):
    s = meddled_site(store, clock, meddling, other)
    s.visit(lambda first, other: other.update(l=[1]))
    values = []

    def act(first, other):
        first.regenerate()
        values.append(other["l"])
        all_write(first, other)
        meddling.then = lambda: values[0].append(2)

    s.visit(act)
    assert s.visit(lambda first, other: other["l"]) == [1, 2]


@pytest.mark.parametrize("end", [lambda other: other.revoke(), lambda other: other.regenerate()])
def test_what_ends_during_a_commit_has_ended(store, clock, meddling, other, end):
    s = meddled_site(store, clock, meddling, other)
    assert meddle(s, meddling, end) == [{}]


def test_a_commit_by_hand_during_a_commit_is_no_second_one(store, clock, meddling, other):
    s = meddled_site(store, clock, meddling, other)

    def commit(other):
        other["late"] = 1
        other.flash("once")
        other.commit()

    assert meddle(s, meddling, commit) == [{"n": 2, "late": 1}]
    assert s.visit(lambda first, other: other.flashes()) == [("message", "once")]


def test_what_is_created_during_a_commit_is_created_once(store, clock, meddling):
    cart = Handler("cart", SECRET, with_clock(clock), with_store(store), server_only, fixed_id("cart"))
    s = Site(Handler("first", SECRET, with_clock(clock), with_store(store), with_events(meddling)), cart)

    def act(first, cart):
        all_write(first, cart)

        def begin():
            with pytest.raises(TypeError):
                cart.incr("n", "not a number")

        meddling.then = begin

    s.visit(act)
    assert s.answer.code == 200
    assert s.visit(lambda first, cart: dict(cart)) == {"n": 1}


@pytest.mark.parametrize("child_option", [with_store(None), with_idle_timeout(100)])
def test_a_child_of_a_parent_that_had_to_take_another_handle_gets_no_token(store, clock, child_option):
    parent = Handler("parent", SECRET, with_clock(clock), with_store(store))
    s = Site(parent, parent.spawn("child", child_option))
    store.fail(error=Conflict("taken"), verb="create")
    s.visit(all_write)
    assert [line.split("=")[0] for line in s.answer.cookies] == ["__Host-parent"]


def test_a_cookie_lasts_from_when_it_is_sent(store, clock):
    stored = Handler("stored", SECRET, with_clock(clock), with_store(store))
    s = Site(stored, Handler("kept", SECRET, with_clock(clock), with_max_age(100)))
    store.delay(1, lambda: clock.advance(30), verb="create")
    s.visit(all_write)
    assert "Max-Age=70;" in s.answer.cookies[1]


def test_a_grace_lasts_from_when_it_is_written(store, clock):
    slow = Handler("slow", SECRET, with_clock(clock), with_store(store))
    renewed = Handler("renewed", SECRET, with_clock(clock), with_store(MemoryStore(clock=clock)))
    s = Site(slow, renewed)
    s.visit(lambda slow, renewed: all_write(renewed))
    before = s.browser.jar.header(path="/", secure=True)
    store.delay(1, lambda: clock.advance(30), verb="create")
    s.visit(lambda slow, renewed: (all_write(slow), renewed.renew(grace=20)))
    clock.advance(15)
    assert s.visit(lambda slow, renewed: dict(renewed), s.another_browser(), HTTP_COOKIE=before) == {"n": 1}


@pytest.mark.parametrize("keeps", [True, False])
def test_activity_counts_from_when_it_is_written(store, clock, keeps):
    slow = Handler("slow", SECRET, with_clock(clock), with_store(store))
    kept = with_store(MemoryStore(clock=clock) if keeps else None)
    s = Site(slow, Handler("idle", SECRET, with_clock(clock), with_idle_timeout(60), kept))
    store.delay(1, lambda: clock.advance(40), verb="create")
    s.visit(all_write)
    clock.advance(30)
    assert s.visit(lambda slow, idle: dict(idle)) == {"n": 1}


def test_what_a_commit_that_failed_had_worked_out_is_forgotten(store, clock, other):
    stored, request = Handler("stored", SECRET, with_clock(clock), with_store(store)), environ()
    sessions = [stored.session(request), other.session(request)]
    all_write(*sessions)
    store.fail(verb="create")
    registry = request[REGISTRY]
    with pytest.raises(StoreUnavailable):
        registry.commit()
    sessions[0].revoke()
    sessions[1]["n"] = 5
    [(_, cookie)] = registry.commit()
    again = environ(HTTP_COOKIE=cookie.split(";")[0])
    assert dict(other.session(again)) == {"n": 5}


def test_what_each_session_is_about_to_write_is_its_own(store, clock):
    numbers = count()
    handlers = [Handler(name, SECRET, with_clock(clock)) for name in "ab"]
    handlers += [Handler(name, SECRET, with_clock(clock), with_store(store)) for name in "cd"]
    s = Site(*handlers)
    for _ in range(2):
        s.visit(lambda *sessions: [session.update(n=next(numbers)) for session in sessions])
    assert s.visit(lambda *sessions: [session["n"] for session in sessions]) == [4, 5, 6, 7]
