"""Sessions that depend on one another: a child lives only while its own parent's session lives."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import OTHER_SECRET, SECRET, Browser, Site, clocked, environ, plain_app

from sessiontree import (
    ConfigError,
    Handler,
    ParentInvalid,
    UsageError,
    chain,
    with_absolute_timeout,
    with_clock,
    with_eager,
    with_encryption,
    with_idle_timeout,
    with_max_age,
    with_revocations,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock


def family(*child_options, parent_options=()):
    visitor, clock = clocked("visitor", *parent_options)
    user = visitor.spawn("user", *child_options)
    return visitor, user, clock


def logged_in(*child_options, parent_options=()):
    """Return a site whose browser has a live visitor and user session."""
    visitor, user, _ = family(*child_options, parent_options=parent_options)
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(v=1), u.update(u=1)))
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({"v": 1}, {"u": 1})
    return s


def test_a_child_lives_while_its_parent_lives():
    s = logged_in()
    assert s.visit(lambda v, u: (u.parent is v, v.parent)) == (True, None)
    s.visit(lambda v, u: v.revoke())
    assert sorted(c.split("=")[0] for c in s.answer.cookies) == ["__Host-user", "__Host-visitor"]
    assert s.browser.jar.cookies() == []


def test_a_revoked_parent_takes_its_child_along_in_the_same_request():
    s = logged_in()

    def act(v, u):
        assert u["u"] == 1
        v.revoke()
        assert dict(u) == {}
        u["late"] = 1

    s.visit(act)
    assert s.answer.code == 409
    assert s.answer.cookies == []


def test_a_kept_child_cookie_is_refused_without_its_parent():
    s = logged_in()
    child = "; ".join(f"{c.name}={c.value}" for c in s.browser.jar.cookies() if c.name == "__Host-user")
    request = environ(HTTP_COOKIE=child)
    user = s.handlers[1]
    with pytest.raises(ParentInvalid):
        user.load(request)
    assert dict(user.session(request)) == {}


def test_a_childs_cookie_beside_another_live_parent_is_refused():
    s = logged_in()
    thief = s.another_browser()
    s.visit(lambda v, u: v.update(v=2), browser=thief)
    stolen = next(c for c in s.browser.jar.cookies() if c.name == "__Host-user")
    header = f"{thief.jar.header()}; {stolen.name}={stolen.value}"
    assert s.visit(lambda v, u: (dict(v), dict(u)), HTTP_COOKIE=header) == ({"v": 2}, {})
    assert s.answer.cookies == [], "nobody's cookie is touched"


def test_a_renewed_parent_keeps_its_child():
    s = logged_in()
    s.visit(lambda v, u: v.renew())
    assert s.visit(lambda v, u: dict(u)) == {"u": 1}


KEPT = {
    "in a store": lambda clock: with_store(MemoryStore(clock=clock)),
    "listed": lambda clock: with_revocations(MemoryStore(clock=clock)),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_an_old_id_under_a_dead_parent_is_refused_for_its_parent(kept):
    """For a moment after a renewal a write with the old id is a conflict; under a dead parent none could be made."""
    clock = FakeClock()
    visitor = Handler("visitor", SECRET, with_clock(clock), kept(clock))
    s = Site(visitor, visitor.spawn("user"))
    other = s.another_browser()
    for browser in (s.browser, other):
        s.visit(lambda v, u: (v.update(v=1), u.update(u=1)), browser)
    old, dead = s.browser.jar.get("__Host-user"), other.jar.get("__Host-visitor")
    s.visit(lambda v, u: u.renew())
    s.visit(lambda v, u: v.revoke(), other)

    def act(v, u):
        u.bind(None)
        u.renew()
        with pytest.raises(ParentInvalid):
            u["late"] = 1

    s.visit(act, s.another_browser(), HTTP_COOKIE=f"__Host-visitor={dead}; __Host-user={old}")
    assert s.answer.code == 200
    s.visit(
        lambda v, u: u.update(late=1),
        s.another_browser(),
        HTTP_COOKIE=f"__Host-visitor={s.browser.jar.get('__Host-visitor')}; __Host-user={old}",
    )
    assert s.answer.code == 409


def test_a_replaced_parent_loses_its_child():
    s = logged_in()
    visitor, user = s.handlers
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    child = user.session(request)
    assert dict(child) == {"u": 1}
    visitor.generate(request)
    assert dict(child) == {}
    child["u"] = 2
    headers = request["sessiontree"].commit()
    for _, value in headers:
        s.browser.jar.store(value)
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({}, {"u": 2})


def test_an_expired_parent_takes_its_child_along():
    s = logged_in(with_absolute_timeout(None), parent_options=(with_absolute_timeout(100),))
    s.clock.advance(100)
    assert s.visit(lambda v, u: dict(u)) == {}
    assert all("Max-Age=0" in cookie for cookie in s.answer.cookies)
    assert len(s.answer.cookies) == 2


def test_an_idle_parent_takes_its_child_along_and_a_look_at_the_child_keeps_it():
    s = logged_in(parent_options=(with_idle_timeout(100),))
    for _ in range(5):
        s.clock.advance(60)
        assert s.visit(lambda v, u: u["u"]) == 1
    s.clock.advance(101)
    assert s.visit(lambda v, u: dict(u)) == {}


def test_a_childs_deadline_is_never_past_its_parents():
    s = logged_in(with_absolute_timeout(None), with_max_age(1000), parent_options=(with_absolute_timeout(100),))
    s.clock.advance(40)
    assert s.visit(lambda v, u: (v.expires_in, u.expires_in)) == (60.0, 60.0)
    s.visit(lambda v, u: u.update(u=2))
    assert "; Max-Age=60;" in s.answer.cookies[0]
    s.visit(lambda v, u: u.put("k", 1, 500))
    assert s.visit(lambda v, u: u.ttl("k")) == 60.0


def test_writing_to_a_child_without_a_parent_session_is_refused_at_the_write():
    visitor, user, _ = family()

    def login(request):
        session = user.session(request)
        with pytest.raises(ParentInvalid, match="write to the parent first"):
            session["name"] = "bob"
        assert session.id is None

    browser = Browser(chain(visitor, user)(plain_app(login)))
    assert browser.get().cookies == []


@pytest.mark.parametrize("begin", [lambda h, r: h.session(r).update(a=1), lambda h, r: h.generate(r)])
def test_at_a_first_login_the_parent_is_written_first(begin):
    visitor, user, clock = family()

    def login(request):
        begin(visitor, request)
        user.session(request)["name"] = "bob"

    browser = Browser(chain(visitor, user)(plain_app(login)), clock)
    names = [cookie.split("=")[0] for cookie in browser.get().cookies]
    assert names == ["__Host-visitor", "__Host-user"], "parents come before children"
    look = Browser(chain(visitor, user)(plain_app(lambda r: user.session(r).get("name"))), clock)
    look.jar = browser.jar
    assert look.get().text == "'bob'"


def test_a_look_at_a_child_is_a_look_at_its_ancestors():
    s = logged_in(parent_options=(with_idle_timeout(100),))
    s.clock.advance(60)
    s.visit(lambda v, u: u.get("u"))
    assert [cookie.split("=")[0] for cookie in s.answer.cookies] == ["__Host-visitor"], "the parent was touched"


def test_an_untouched_child_is_not_parsed_when_its_parent_is_read():
    s = logged_in()
    assert s.visit(lambda v, u: (v["v"], u.accessed)) == (1, False)


def test_eager_children_wait_for_their_parent():
    visitor, user, _ = family(with_eager())
    s = Site(visitor, user)
    s.visit(lambda v, u: None)
    assert s.answer.cookies == []
    both = visitor.configure(with_eager())
    s = Site(both, both.spawn("user", with_eager()))
    s.visit(lambda v, u: None)
    assert len(s.answer.cookies) == 2


# -- building -----------------------------------------------------------------------------------------


def test_names_paths_and_parents():
    visitor, user, _ = family()
    sudo = user.spawn("sudo")
    assert (visitor.path, user.path, sudo.path) == ("visitor", "visitor/user", "visitor/user/sudo")
    assert (visitor.parent, user.parent, sudo.parent) == (None, visitor, user)
    assert sudo.name == "sudo"


def test_spawn_inherits_all_but_name_cookie_name_lives_and_eagerness():
    parent = Handler(
        "visitor",
        SECRET,
        with_clock(FakeClock()),
        with_encryption(),
        with_eager(),
        with_max_age(5),
        with_idle_timeout(9),
    )
    child = parent.spawn("user")
    mine, theirs = child.config, parent.config
    assert (mine.keys, mine.clock, mine.encrypted) == (theirs.keys, theirs.clock, True)
    assert (mine.eager, mine.max_age, mine.idle, mine.absolute) == (False, 0, 0, 30 * 86_400_000)


def test_spawned_links_a_copy_and_leaves_both_alone():
    visitor, clock = clocked("visitor")
    other = Handler("user", OTHER_SECRET, with_clock(clock), with_max_age(60))
    child = visitor.spawned(other)
    assert (other.parent, child.parent, child.config) == (None, visitor, other.config)
    assert child.path == "visitor/user"
    assert other.path == "user"


def test_a_tree_has_no_cycle_and_at_most_16_levels():
    visitor, user, _ = family()
    for build in (lambda: visitor.spawn("visitor"), lambda: user.spawn("visitor"), lambda: user.spawned(visitor)):
        with pytest.raises(ConfigError, match="ancestor"):
            build()
    handler = visitor
    for level in range(2, 17):
        handler = handler.spawn(f"level{level}")
    with pytest.raises(ConfigError, match="16 levels"):
        handler.spawn("level17")
    with pytest.raises(ConfigError):
        visitor.spawned("user")


def test_sixteen_levels_work():
    handler, clock = clocked("level1")
    line = [handler]
    for level in range(2, 17):
        line.append(line[-1].spawn(f"level{level}"))
    s = Site(*line, clock=clock)
    s.visit(lambda *all_: [session.update(n=1) for session in all_])
    assert s.visit(lambda *all_: [session["n"] for session in all_]) == [1] * 16
    s.visit(lambda root, *rest: root.revoke())
    assert s.browser.jar.cookies() == []


def test_a_child_needs_its_parent_linked_too():
    visitor, user, _ = family()
    browser = Browser(user.link(plain_app(lambda request: user.session(request))))
    with pytest.raises(UsageError, match="visitor"):
        browser.get()
    assert visitor.name == "visitor"


# -- a model of the tree --------------------------------------------------------------------------------


class TreeMachine(RuleBasedStateMachine):
    """Three generations in one browser, against a model that knows only who is alive under whom."""

    names = ("visitor", "user", "sudo")
    lives = (1000, 400, 100)

    @initialize(sealed=st.booleans())
    def begin(self, sealed):
        visitor, self.clock = clocked("visitor", with_absolute_timeout(self.lives[0]), with_encryption(sealed))
        user = visitor.spawn("user", with_absolute_timeout(self.lives[1]))
        sudo = user.spawn("sudo", with_absolute_timeout(self.lives[2]))
        self.site = Site(visitor, user, sudo)
        self.serial = itertools.count(1)
        self.alive: list[tuple[int, int] | None] = [None, None, None]  # (value, deadline) by level
        self.old: list[str] = []

    def now(self):
        return self.clock.now()

    def level_is_live(self, level):
        return all(self.alive[above] is not None and self.now() < self.alive[above][1] for above in range(level + 1))

    def bury(self):
        for level in range(3):
            if not self.level_is_live(level):
                self.alive[level] = None

    @rule(level=st.integers(0, 2))
    def write(self, level):
        self.bury()
        value = next(self.serial)
        if level and not self.level_is_live(level - 1):
            with pytest.raises(ParentInvalid):
                self.site.visit(lambda *s: s[level].update(n=value))
            return
        self.old.append(self.site.browser.jar.header())
        self.site.visit(lambda *s: s[level].update(n=value))
        deadline = self.alive[level][1] if self.alive[level] else self.now() + self.lives[level] * 1000
        if level:
            deadline = min(deadline, self.alive[level - 1][1])
        self.alive[level] = (value, deadline)

    @rule(level=st.integers(0, 2))
    def renew(self, level):
        self.bury()
        self.site.visit(lambda *s: s[level].renew())

    @rule(level=st.integers(0, 2))
    def revoke(self, level):
        self.bury()
        self.site.visit(lambda *s: s[level].revoke())
        for below in range(level, 3):
            self.alive[below] = None

    @rule(seconds=st.sampled_from([1, 50, 99, 150, 500]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def mix_in_old_cookies(self, data):
        """An old child cookie beside the current parent never lives under another parent's session."""
        old = data.draw(st.sampled_from(self.old))
        parts = [part for part in old.split("; ") if part and not part.startswith("__Host-visitor=")]
        current = [part for part in self.site.browser.jar.header().split("; ") if part.startswith("__Host-visitor=")]
        handles = self.site.visit(
            lambda v, u, s: (v.handle, u.handle and u.parent.handle),
            browser=self.site.another_browser(),
            HTTP_COOKIE="; ".join(current + parts),
        )
        assert handles[1] in (None, handles[0])

    @invariant()
    def the_site_agrees(self):
        if not hasattr(self, "site"):
            return
        self.bury()
        seen = self.site.visit(lambda *s: [session.get("n") for session in s])
        assert seen == [life[0] if life else None for life in self.alive]


TreeMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTree = TreeMachine.TestCase


# -- what is told of sessions that were begun and ended within one request -----------------------------


def test_a_child_begun_and_orphaned_in_one_request_is_never_sent():
    visitor, user, clock = family(with_max_age(3600))
    admin = user.spawn("admin")
    for end in (lambda v: v.revoke(), lambda v: v.regenerate()):
        s = Site(visitor, user, admin, clock=clock)
        s.visit(lambda v, u, a, end=end: (v.update(x=1), u.update(y=2), a.update(z=3), end(v)))
        assert all(cookie.startswith("__Host-visitor=") for cookie in s.answer.cookies)
        s = Site(visitor, user, admin, clock=clock)
        s.visit(lambda v, u, a: v.update(x=1))
        s.visit(lambda v, u, a, end=end: (u.update(y=2), a.update(z=3), end(v)))
        assert all(cookie.startswith("__Host-visitor=") for cookie in s.answer.cookies)


def test_a_commit_by_hand_judges_the_children_too():
    s = logged_in()
    visitor, user = s.handlers
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    user.session(request)["b"] = 2
    visitor.session(request).revoke()
    first = request["sessiontree"].commit()
    assert first == request["sessiontree"].commit()
    assert all("Max-Age=0" in value for _, value in first)
    assert len(first) == 2


def test_a_revocation_stays_done_after_a_5xx_even_if_a_session_was_begun_in_its_place():
    s = logged_in()
    s.status = "500 Oops"
    s.visit(lambda v, u: (v.revoke(), v.regenerate(), v.update(n=1)))
    assert [cookie.split("=")[0] for cookie in s.answer.cookies] == ["__Host-visitor", "__Host-user"]
    assert s.browser.jar.cookies() == []


def test_a_parent_that_a_5xx_did_not_replace_keeps_its_child():
    s = logged_in()
    s.status = "500 Oops"
    s.visit(lambda v, u: (v.regenerate(), u.get("u")))
    assert s.answer.cookies == []
    s.status = "200 OK"
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({"v": 1}, {"u": 1})


def test_an_expired_session_that_was_begun_anew_and_revoked_is_forgotten():
    s = logged_in(parent_options=(with_absolute_timeout(10),))
    s.clock.advance(10)
    s.visit(lambda v, u: (v.update(n=1), v.revoke()))
    assert any(c.startswith("__Host-visitor=;") for c in s.answer.cookies)
    assert s.browser.jar.get("__Host-visitor") is None


def test_after_a_failure_only_tokens_that_verified_are_forgotten():
    s = logged_in()
    header = s.browser.jar.header()
    visitor = next(part for part in header.split("; ") if part.startswith("__Host-visitor="))
    s.status = "500 Oops"
    for child in ("", "; __Host-user=v1.forged"):
        s.visit(lambda v, u: (v.get("v"), u.update(k=1), v.revoke()), HTTP_COOKIE=visitor + child)
        assert [cookie.split("=")[0] for cookie in s.answer.cookies] == ["__Host-visitor"]


def test_a_child_begun_anew_under_a_parent_that_ended_is_forgotten_after_a_failure():
    s = logged_in()
    s.status = "500 Oops"
    s.visit(lambda v, u: (u.get("u"), v.revoke(), v.regenerate(), u.update(z=1)))
    assert [cookie.split("=")[0] for cookie in s.answer.cookies] == ["__Host-visitor", "__Host-user"]


def test_an_expiry_of_a_session_that_ended_does_not_pass_to_the_next():
    s = logged_in()
    s.visit(lambda v, u: u.put("k", 1, 100))
    s.visit(lambda v, u: u.update_key("k", lambda n: (v.regenerate(), n + 1)[1]))
    assert s.visit(lambda v, u: (u["k"], u.ttl("k"))) == (2, None)
