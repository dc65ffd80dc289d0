"""A random walk through a tree of stored sessions, beside a model that says what must live.

Browsers talk to a chain of stored handlers, visitor -> user -> sudo; a visitor may have a server-only cart too. Every
jar of cookies that a browser ever had is kept and played back after every step, so whatever was revoked, renewed away,
replaced or seen expired must be refused for the rest of the walk, while clocks jump, stores restart and keys roll.

The model knows nodes: who was spawned from whom, when each ends, its subject, its data, how often its id was renewed. A
shadow is the model's session in one request: it takes the calls that a real one takes, so every request is made twice,
and what the two tell of themselves is compared.
"""

from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from support import OTHER_SECRET, SECRET, SOAK, Site, environ, run

from sessiontree import (
    Handler,
    Metadata,
    ParentInvalid,
    SessionGone,
    SessionInfo,
    chain,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_idle_timeout,
    with_max_age,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import CookieJar, FakeClock

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 365 * 86_400
NEVER = 1 << 62


class Kind(NamedTuple):
    """One level of the tree; lives are in seconds, None for none."""

    path: str
    idle: int | None
    absolute: int
    max_age: int | None = None

    def described(self, handler):
        lives = with_idle_timeout(self.idle), with_absolute_timeout(self.absolute), with_max_age(self.max_age)
        return handler.configure(*lives)


LINE = (
    Kind("visitor", 2 * DAY, 30 * DAY, 7 * DAY),
    Kind("visitor/user", HOUR, 12 * HOUR),
    Kind("visitor/user/sudo", None, DAY),
)
CART = Kind("visitor/cart", 6 * HOUR, 60 * DAY)
COOKIES = ("__Host-visitor", "__Host-user", "__Host-sudo")


# -- the model -------------------------------------------------------------------------------------------


class Node:
    """One session for its whole life. Times are milliseconds, as the clock tells them."""

    def __init__(self, clock, kind, parent, agent="Test/1", address="192.0.2.7"):
        self.clock, self.kind, self.parent = clock, kind, parent
        self.created = self.seen = clock.now()
        self.metadata = Metadata.at(self.created, agent, address)
        self.absolute = min(self.within(kind.absolute), parent.absolute if parent else NEVER)
        self.own, self.idle = self.within(kind.max_age), self.within(kind.idle)
        self.handle = self.subject = None  # The first request tells the handle.
        self.data = {}
        self.generation = 0  # How often the id was renewed.
        self.born = self.bound = 0  # Its place among its siblings, and among the sessions of its subject.
        self.is_dead = False  # Revoked, replaced or seen expired: for good.

    def within(self, seconds):
        return self.clock.now() + seconds * 1000 if seconds else NEVER

    @property
    def line(self):
        return [self, *(self.parent.line if self.parent else ())]

    @property
    def ends(self):
        return min(self.absolute, self.own, self.idle)

    @property
    def is_there(self):
        """Whether a store has a live record of it."""
        return not self.is_dead and self.clock.now() < self.ends

    @property
    def is_live(self):
        return all(node.is_there for node in self.line)

    def look(self):
        """Ask a store for the record: what is found expired is dead for good."""
        self.is_dead = not self.is_there
        return not self.is_dead

    def count_as_activity(self):
        # The touch is throttled to one a minute at most, and all our times are whole minutes: either nothing has passed
        # since the last one, or the next is due. So no step of the clock falls into that tolerance.
        if self.kind.idle and self.within(self.kind.idle) > self.idle:
            self.idle = self.within(self.kind.idle)
            self.seen = max(self.seen, self.clock.now())

    def info(self):
        ends = min(node.ends for node in self.line)
        moments = (datetime.fromtimestamp(time / 1000, UTC) for time in (self.created, self.seen, ends))
        parent = self.parent and self.parent.handle
        return SessionInfo(self.handle, self.kind.path, self.subject, self.metadata, *moments, parent)


class Claim(NamedTuple):
    """What a token proved when it was issued."""

    node: Node
    generation: int
    key: bytes


class Model:
    """All there is to know of the tree."""

    def __init__(self, clock):
        self.clock, self.ring, self.order = clock, [SECRET], count(1)
        self.nodes = []
        self.claims = {}  # By token.

    def claim(self, token):
        """Return what a token claims, if a key of the ring can tell."""
        claim = self.claims.get(token)
        return claim if claim and claim.key in self.ring else None

    def request(self, tokens):
        """Return the shadows of a request with these tokens, outermost first."""
        claims = [self.claim(token) for token in tokens]
        # All of the chain is loaded in one trip once one record is asked for. A child's without its parent is not,
        # unless its token says that it is over, for then the store shall see that too.
        if claims[0] or any(claim and self.clock.now() >= claim.node.absolute for claim in claims):
            for claim in filter(None, claims):
                claim.node.look()
        shadows = []
        for kind, claim in zip(LINE, claims, strict=True):
            shadows.append(Shadow(self, kind, shadows[-1] if shadows else None, claim))
        return shadows

    def newest(self, order, is_meant):
        found = [node for node in self.nodes if node.is_there and is_meant(node)]
        return sorted(found, key=lambda node: getattr(node, order), reverse=True)

    def listed(self, kind, subject):
        """Return the live nodes of a kind that are bound to a subject, newest first."""
        found = self.newest("bound", lambda node: node.kind is kind and node.subject == subject)
        self.look_above(found)
        return [node for node in found if node.is_live]

    def look_above(self, nodes):
        """Ask for the parents' records as a list does: level by level, as far as they live."""
        parents = [node.parent for node in nodes if node.parent]
        if parents:
            self.look_above([parent for parent in parents if parent.look()])

    def looked_up(self, is_meant):
        """Ask for the record of the latest node that is meant; return the node if it is there."""
        found = [node for node in self.nodes if is_meant(node)]
        return found[-1] if found and found[-1].look() else None


class Shadow:
    """The model's session in one request: it takes the calls that a Session takes, and raises what one raises."""

    def __init__(self, model, kind, parent, claim):
        self.model, self.kind, self.parent = model, kind, parent
        self.is_outdated = self.is_revoked = self.is_orphan = self.has_old_key = False
        self.replaced = []
        self.came = None
        if claim and claim.node.is_there and (parent is None or parent.node):
            is_current = claim.generation == claim.node.generation
            # While a renewal's token may be under way, a request with the old one is refused rather than begun anew:
            # for seconds, so in our whole minutes as long as the clock has not moved on.
            self.is_outdated = not is_current and model.clock.now() <= claim.node.seen
            if is_current and (parent is None or claim.node.parent is parent.node):
                self.came, self.has_old_key = claim.node, claim.key != model.ring[0]
        self._become(self.came)

    def _become(self, node, *, is_begun=False):
        self._node, self.is_begun = node, is_begun
        self.is_renewed = self.is_changed = False
        if node:
            self.data, self.subject, self.own, self.idle = dict(node.data), node.subject, node.own, node.idle

    @property
    def node(self):
        """The live node, if there is one; it dies with its parent."""
        if self._node and self.parent and self._node.parent is not self.parent.node:
            self._become(None)
            self.is_orphan = True
        return self._node

    def told(self, *, at_first=False):
        """Return what ``told`` returns of a real session."""
        if not self.node:
            return None
        left = min(node.ends for node in self.node.line) - self.model.clock.now()
        children = self.model.newest("born", lambda node: node.parent is self.node)
        more = (left / 1000, [child.info() for child in children]) if at_first else ()
        return self.node.handle, self.data, self.subject, *more

    def put(self, key, value):
        self._is_open(begins=True)
        self.data[key] = value
        self.is_changed = True

    def renew(self):
        self.is_renewed = self._is_open()

    def touch(self, max_age=None):
        if max_age is not None and max_age < 0:
            self.revoke()
        elif self._is_open():
            self.own = self.own if max_age is None else self.node.within(max_age)
            self.idle = self.node.within(self.kind.idle)

    def bind(self, subject):
        if subject is not None:
            self._is_open(begins=True)
            self.is_renewed = True
        if self._is_open():
            self.subject = subject

    def revoke(self):
        """Die at once, whatever becomes of the request, and with it what this one stands in place of."""
        if self.is_outdated:
            raise SessionGone
        if self.node:
            for node in (self.node, *self.replaced):
                node.is_dead = True
            self.replaced.clear()
            self._become(None)
            self.is_revoked = True

    def regenerate(self):
        if self.node and not self.is_begun:
            self.replaced.append(self.node)
        self._begin()

    def _is_open(self, *, begins=False):
        if not self.node and (self.is_outdated or self.is_revoked or (self.is_orphan and not self.parent.node)):
            raise SessionGone
        if not self.node and begins:
            self._begin()
        return self.node is not None

    def _begin(self):
        if self.parent and not self.parent.node:
            raise ParentInvalid
        self._become(Node(self.model.clock, self.kind, self.parent and self.parent.node), is_begun=True)
        self.is_outdated = self.is_revoked = self.is_orphan = False

    def settle(self, *, fails):
        """Commit, or after a 5xx a renewal alone; return whether the client must get a new token."""
        for old in () if fails else self.replaced:
            old.is_dead = True
        node = self.node
        if not node or (fails and (self.is_begun or not self.is_renewed)):
            return False
        wanted, present = (self.data, self.subject, self.own, self.idle), (node.data, node.subject, node.own, node.idle)
        if wanted != present or self.is_changed or self.is_renewed or self.has_old_key:
            node.seen = max(node.seen, self.model.clock.now())
        node.generation += self.is_renewed
        if not fails:
            if self.is_begun:
                self.model.nodes.append(node)
                node.born = next(self.model.order)
            if self.subject != node.subject:
                node.bound = next(self.model.order)
            node.data, node.subject, node.own, node.idle = wanted
            node.count_as_activity()
        return self.is_begun or self.is_renewed


# -- what is done, and what is told: of real sessions and of shadows alike -------------------------------

SUBJECTS = st.sampled_from(["ann", "bob", "eve"])
LEVELS = st.sampled_from(range(len(LINE)))
KINDS = st.sampled_from([*LINE, CART])
ANY = st.integers(0, 99)
DEEDS = st.one_of(
    st.tuples(LEVELS, st.just("put"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(LEVELS, st.sampled_from(["renew", "revoke", "regenerate", "touch"])),
    st.tuples(LEVELS, st.just("touch"), st.sampled_from([20 * MINUTE, 10 * DAY, 0, -1])),
    st.tuples(LEVELS, st.just("bind"), st.none() | SUBJECTS),
)
LATER = st.sampled_from([MINUTE, 9 * MINUTE, 40 * MINUTE, 70 * MINUTE, 11 * HOUR, 20 * HOUR, 6 * DAY, 31 * DAY, YEAR])
FAILS = st.sampled_from([False, False, True])
RINGS = st.lists(st.sampled_from([SECRET, OTHER_SECRET, bytes(range(11, 200, 4))]), min_size=1, unique=True)


def done(sessions, deeds):
    """Do the deeds; return the type of the error that stopped them, if any did."""
    try:
        for level, verb, *arguments in deeds:
            getattr(sessions[level], verb)(*arguments)
    except (SessionGone, ParentInvalid) as error:
        return type(error)
    return None


def told(session, *, at_first=False):
    """Return what a session tells of itself, or None if there is none."""
    if session.handle is None:
        return None
    more = (session.expires_in, session.children()) if at_first else ()
    return session.handle, dict(session), session.subject, *more


class Walk(RuleBasedStateMachine):
    """Browsers, thieves, clocks, operators and restarts, over a store in memory."""

    browsers = Bundle("browsers")

    def __init__(self):
        super().__init__()
        self.folder, self.clock = TemporaryDirectory(), FakeClock()
        self.model, self.store = Model(self.clock), None
        self.kept = {}  # Every combination of cookies that a browser ever had.
        self.ids = set()
        self.deploy()

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    def opened(self):
        """Return the store as the next process finds it: this one stays, and only what handlers remember is gone."""
        return self.store or MemoryStore(clock=self.clock)

    def deploy(self):
        """Build all anew, as a process that starts does."""
        self.store = self.opened()
        root = Handler("visitor", self.model.ring, with_clock(self.clock), with_store(self.store))
        visitor = LINE[0].described(root)
        user = LINE[1].described(visitor.spawn("user"))
        self.line = visitor, user, LINE[2].described(user.spawn("sudo"))
        self.cart = CART.described(visitor.spawn("cart", server_only))
        self.handlers = {CART: self.cart, **dict(zip(LINE, self.line, strict=True))}
        self.app = chain(*self.line)(lambda request, start_response: self.application(request, start_response))

    # -- one request

    def play(self, tokens, deeds=(), *, fails=False):
        """Make a request with these cookies in which this is done; return the lines that set cookies, by level."""
        shadows = self.model.request(tokens)

        def application(request, start_response):
            sessions = [handler.session(request) for handler in self.line]
            assert [told(s, at_first=True) for s in sessions] == [shadow.told(at_first=True) for shadow in shadows]
            # Without the model's help: no child lives without its parent or longer, and nothing dead lives.
            live = [session for session in sessions if session.handle]
            assert [session.handler for session in live] == [*self.line[: len(live)]]
            assert all(child.expires_in <= child.parent.expires_in for child in live[1:])
            assert not {session.handle for session in live} & {node.handle for node in self.model.nodes if node.is_dead}
            error = done(sessions, deeds)
            assert error is done(shadows, deeds)
            if error:
                raise error
            for session, shadow in zip(sessions, shadows, strict=True):
                if shadow.node and shadow.is_begun:
                    shadow.node.handle = session.handle
            assert [told(session) for session in sessions] == [shadow.told() for shadow in shadows]
            self.ids |= {session.id for session in sessions if session.id}
            start_response("500 Oops" if fails else "200 OK", [("Content-Type", "text/plain")])
            return [b""]

        self.application = application
        header = "; ".join(f"{name}={token}" for name, token in zip(COOKIES, tokens, strict=True) if token)
        try:
            answer = run(self.app, environ(HTTP_COOKIE=header), validate=False)
        except ParentInvalid:
            return {}
        if answer.code == 409:
            assert answer.cookies == []
            return {}
        lines = {COOKIES.index(line.partition("=")[0]): line for line in answer.cookies}
        self.settle(tokens, shadows, lines, fails=fails)
        return lines

    def settle(self, tokens, shadows, lines, *, fails):
        """Commit in the model, and check that the client is told what it must know, and forgets nothing that lives."""
        owed = [shadow.settle(fails=fails) for shadow in shadows]
        for level, shadow in enumerate(shadows):
            sent = lines[level].partition(";")[0].partition("=")[2] if level in lines else None
            if sent:
                assert shadow.node in self.model.nodes
                self.model.claims[sent] = Claim(shadow.node, shadow.node.generation, self.model.ring[0])
            elif sent is not None:
                assert not self.model.claim(tokens[level]).node.is_live
            assert sent or not owed[level]
            assert sent is not None or not shadow.came or shadow.came.is_live

    def keep(self, browser):
        tokens = tuple(map(browser.get, COOKIES))
        self.kept[tokens] = None
        return tokens

    def any_kept(self, number):
        """Return one of the latest jars that were kept."""
        return list(self.kept)[-1 - number % min(len(self.kept), 10)]

    def any_node(self, number, kind=None):
        nodes = [node for node in self.model.nodes if kind in (None, node.kind)]
        return nodes[number % len(nodes)]

    # -- in the browser

    @initialize(target=browsers)
    def begin(self):
        """Two browsers log in; one has all the second one's cookies, one mixes both's, and one is a guest."""
        first, second, thief, mixed, guest = (CookieJar(self.clock) for _ in range(5))
        self.log_in(first, "ann", steps_up=True)
        self.log_in(second, "ann", steps_up=True)
        self.plant(thief, self.keep(second), {0, 1, 2})
        self.plant(mixed, self.keep(second), {0})
        self.plant(mixed, self.keep(first), {1, 2})
        self.visit(guest, [(0, "put", "a", 0)])
        return multiple(first, second, thief, mixed, guest)

    def visit(self, browser, deeds, *, fails=False):
        for line in self.play(self.keep(browser), deeds, fails=fails).values():
            browser.store(line)
        self.keep(browser)

    @rule(browser=browsers, deed=DEEDS, fails=FAILS)
    def act(self, browser, deed, fails):
        self.visit(browser, [deed], fails=fails)

    @rule(browser=browsers, deeds=st.lists(DEEDS, max_size=5), fails=FAILS)
    def look_and_act(self, browser, deeds, fails):
        self.visit(browser, deeds, fails=fails)

    @rule(browser=browsers, subject=SUBJECTS, steps_up=st.booleans())
    def log_in(self, browser, subject, steps_up):
        self.visit(browser, [(0, "put", "a", 1), (0, "renew"), (1, "regenerate"), (1, "bind", subject)])
        if steps_up:
            self.visit(browser, [(2, "regenerate"), (2, "bind", subject), (2, "put", "a", 2)])

    @rule(browser=browsers, number=ANY, levels=st.sets(LEVELS, min_size=1))
    def steal(self, browser, number, levels):
        """Cookies that some browser had take the place of ours: all of them, or some beside our own."""
        self.plant(browser, self.any_kept(number), levels)

    def plant(self, browser, tokens, levels):
        for level in levels:
            if tokens[level]:
                browser.store(f"{COOKIES[level]}={tokens[level]}; Path=/; Secure")
        self.keep(browser)

    # -- on the server

    @rule(number=ANY, value=st.integers(0, 9))
    def fill_a_cart(self, number, value):
        visitor = self.any_node(number, LINE[0])
        if not visitor.look():
            with pytest.raises(ParentInvalid):
                self.cart.generate_by_id("cart", visitor.handle)
            return
        cart = self.model.looked_up(lambda node: node.kind is CART and node.parent is visitor)
        cart = cart or Node(self.clock, CART, visitor, "", "")
        session = self.cart.generate_by_id("cart", visitor.handle)
        assert dict(session) == cart.data
        session["a"] = cart.data["a"] = value
        assert session.commit() == []
        if not cart.handle:
            self.model.nodes.append(cart)
            cart.handle, cart.born = session.handle, next(self.model.order)
        cart.seen = max(cart.seen, self.clock.now())
        for node in cart.line:  # A look at a child is a look at its ancestors.
            node.count_as_activity()

    @rule(number=ANY, kind=st.none() | KINDS, subject=st.none() | SUBJECTS)
    def revoke_from_outside(self, number, kind, subject):
        meant = self.any_node(number)
        node = self.model.looked_up(lambda node: node.handle == meant.handle)
        was_live = False
        if node and kind in (None, node.kind) and subject in (None, node.subject):
            self.model.look_above([node])
            was_live, node.is_dead = node.is_live, True
        assert self.handlers[kind or meant.kind].revoke(meant.handle, subject) is was_live

    @rule(kind=st.sampled_from(LINE), subject=SUBJECTS, number=st.none() | ANY)
    def revoke_all(self, kind, subject, number):
        doomed = self.model.listed(kind, subject)
        keep = doomed.pop(number % len(doomed)).handle if doomed and number is not None else None
        for node in doomed:
            node.is_dead = True
        assert self.handlers[kind].revoke_all(subject, keep) == len(doomed)

    @rule(kind=KINDS)
    def sweep(self, kind):
        """What expired an hour ago goes, unseen as it may be; a child's handler also looks for orphans."""
        for node in self.model.nodes:
            node.is_dead = node.is_dead or node.ends + HOUR * 1000 <= self.clock.now()
        self.model.look_above([node for node in self.model.nodes if node.kind is kind and node.is_there])
        self.handlers[kind].sweep()

    @rule(ring=st.none() | RINGS)
    def restart(self, ring):
        """Start anew, maybe with other keys: a token whose key is gone is refused, until the key comes back."""
        self.model.ring = ring or self.model.ring
        self.deploy()

    # -- time

    @rule(seconds=LATER, way=st.sampled_from([1, 1, -1]))
    def jump(self, seconds, way):
        self.clock.advance(seconds * way)

    @rule(seconds=LATER, swept=st.none() | KINDS, number=st.none() | ANY)
    def jump_and_return(self, seconds, swept, number):
        """What expires unseen meanwhile lives again; what anyone saw expired is dead."""
        self.clock.advance(seconds)
        if swept:
            self.sweep(swept)
        if number is not None:
            self.play(self.any_kept(number), fails=True)
        self.clock.advance(-seconds)

    # -- what must hold after every step

    @invariant()
    def whatever_was_kept_loads_as_the_model_says(self):
        for tokens in self.kept:
            self.play(tokens, fails=True)  # A request that fails looks at all, and is no activity.

    @invariant()
    def lists_agree(self):
        for kind in LINE:
            for subject in ("ann", "bob", "eve"):
                expected = [node.info() for node in self.model.listed(kind, subject)]
                listed = self.handlers[kind].sessions(subject)
                assert listed == expected
                assert not any(secret in repr(listed) for secret in self.ids)


class WalkOverSqlite(Walk):
    """The same over a file, which is closed and opened again."""

    def opened(self):
        if self.store:
            self.store.close()
        return SqliteStore(Path(self.folder.name) / "s.db", clock=self.clock)


TestLc16TheTreeHoldsInMemory = Walk.TestCase
TestLc16TheTreeHoldsInMemory.settings = settings(
    max_examples=60 * SOAK, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLc16TheTreeHoldsInSqlite = WalkOverSqlite.TestCase
TestLc16TheTreeHoldsInSqlite.settings = settings(TestLc16TheTreeHoldsInMemory.settings, max_examples=20 * SOAK)


def test_a_childs_cookie_is_kept_when_the_dead_session_above_it_is_not_its_parent():
    clock = FakeClock()
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(MemoryStore(clock=clock)))
    s = Site(visitor, visitor.spawn("user"))
    other = s.another_browser()
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    visitor.revoke(s.visit(lambda v, u: (v.update(n=2), v.handle)[1], other))
    mixed = f"__Host-visitor={other.jar.get('__Host-visitor')}; __Host-user={s.browser.jar.get('__Host-user')}"
    assert s.visit(lambda v, u: (dict(v), dict(u)), s.another_browser(), HTTP_COOKIE=mixed) == ({}, {})
    assert [line.partition("=")[0] for line in s.answer.cookies] == ["__Host-visitor"]
    assert s.visit(lambda v, u: dict(u)) == {"n": 1}
