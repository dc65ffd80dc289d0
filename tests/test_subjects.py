"""What a handler knows of its users' sessions: where they are, what is left of dead trees, and what may be seen."""

import base64

import pytest
from engines import ENGINES, opened
from support import SECRET, Browser, Site, environ, plain_app, run

from sessiontree import (
    ConfigError,
    Handler,
    UsageError,
    chain,
    server_only,
    with_clock,
    with_events,
    with_header,
    with_idle_timeout,
    with_max_age,
    with_max_sessions,
    with_revocations,
    with_store,
)
from sessiontree.records import pack
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=ENGINES)
def store(request, clock, tmp_path):
    engine = opened(request.param, tmp_path, clock)
    yield FaultyStore(engine)
    engine.close()


def tree_on(store, *options, user_options=()):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store), *options)
    user = visitor.spawn("user", *user_options)
    return visitor, user, user.spawn("sudo")


def logged_in(site, name="ann"):
    """Return a new browser with a live visitor, user and sudo session, the last two bound."""
    browser = site.another_browser()
    site.visit(lambda v, u, s: (v.update(v=1), u.bind(name), s.bind(name)), browser)
    return browser


# -- children, wherever they are ---------------------------------------------------------------------------


def handles(site, browser=None):
    return site.visit(lambda *sessions: [session.handle for session in sessions], browser)


def test_children_in_another_store_are_listed_too(store, clock):
    other = MemoryStore(clock=clock)
    visitor, user, sudo = tree_on(store, user_options=[with_store(other)])
    s = Site(visitor, user, sudo)
    logged_in(s)
    browser = logged_in(s)
    listed = s.visit(lambda v, u, s: (v.children(), u.children()), browser)
    assert [[info.handle for info in infos] for infos in listed] == [[handle] for handle in handles(s, browser)[1:]]
    assert [info.parent for info in listed[0]] == handles(s, browser)[:1]


def test_children_that_the_client_carries_are_listed_from_the_request(store):
    visitor, user, sudo = tree_on(store, user_options=[with_store(None)])
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    (info,) = s.visit(lambda v, u, s: v.children(), browser)
    assert (info.handle, info.parent) == (handles(s, browser)[1], handles(s, browser)[0])
    assert (info.handler, info.subject, info.metadata.user_agent) == ("visitor/user", "ann", "Test/1")
    assert s.visit(lambda v, u, s: (u.revoke(), v.children())[1], browser) == []


def test_children_of_a_session_that_the_client_carries_are_listed_from_their_store(store):
    visitor, user, sudo = tree_on(store)
    visitor = visitor.configure(with_store(None))
    user = visitor.spawned(user)
    s = Site(visitor, user, user.spawned(sudo))
    browser = logged_in(s)
    assert [info.handle for info in s.visit(lambda v, u, s: v.children(), browser)] == [handles(s, browser)[1]]
    assert s.visit(lambda v, u, s: (v.revoke(), v.children())[1], browser) == []


def test_where_clients_carry_everything_nothing_lists_the_children(clock):
    visitor = Handler("visitor", SECRET, with_clock(clock))
    s = Site(visitor, visitor.spawn("user"))
    with pytest.raises(ConfigError, match="with_store"):
        s.visit(lambda v, u: v.children())


def test_a_carried_child_in_another_header_is_known_once_its_handler_was_asked_for_it(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    user = visitor.spawn("user", with_store(None), with_header("X-User"))
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(v=1), u.update(u=1)))
    more = {"HTTP_COOKIE": s.browser.jar.header(), "HTTP_X_USER": s.answer.get("X-User")}
    counted = []

    def count(request):
        counted.append(len(visitor.session(request).children()))
        user.session(request)
        counted.append(len(visitor.session(request).children()))

    run(chain(visitor, user)(plain_app(count)), environ(**more))
    assert counted == [0, 1]


def test_server_only_children_are_listed_under_this_life_of_their_parent(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    cart = visitor.spawn("cart", server_only)
    s = Site(visitor)
    s.visit(lambda v: v.update(v=1))
    (handle,) = handles(s)
    made = cart.generate_by_id("7", handle)
    assert [(info.handle, info.parent) for info in s.visit(lambda v: v.children())] == [(made.handle, handle)]


# -- cleaning ----------------------------------------------------------------------------------------------


def records(store):
    return len(store.inner.scan(limit=1000).records)


def test_revoking_a_parent_is_one_write(store):
    s = Site(*tree_on(store))
    browser = logged_in(s)
    store.calls.clear()
    s.visit(lambda v, u, s: v.revoke(), browser)
    assert [verb for verb, _ in store.calls] == ["load_many", "revoke"]
    assert browser.jar.cookies() == []


def test_a_list_removes_the_sessions_of_dead_trees_that_it_meets(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    logged_in(s)
    s.visit(lambda v, u, s: v.revoke(), browser)
    assert records(store) == 5
    assert len(user.sessions("ann")) == 1
    assert records(store) == 4
    assert len(sudo.sessions("ann")) == 1
    assert records(store) == 3


def test_a_list_is_right_even_if_nothing_can_be_removed(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    s.visit(lambda v, u, s: v.revoke(), browser)
    store.fail(verb="revoke")
    assert user.sessions("ann") == []
    assert records(store) == 2


def test_a_handlers_sweep_removes_its_sessions_of_dead_trees(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    for _ in range(3):
        s.visit(lambda v, u, s: v.revoke(), logged_in(s))
    kept = logged_in(s)
    assert (visitor.sweep(), records(store)) == (0, 9)
    assert (sudo.sweep(), records(store)) == (3, 6)
    assert (user.sweep(), records(store)) == (3, 3)
    assert s.visit(lambda v, u, s: (u.subject, s.subject), kept) == ("ann", "ann")


# -- what may be seen --------------------------------------------------------------------------------------


def secrets_of(browser, ids):
    """Return every secret of a browser, in the encodings in which it could leak."""
    raw = [cookie.partition("=")[2] for cookie in browser.jar.header().split("; ")] + ids
    return {form for text in raw for form in (text, text.encode().hex(), base64.b64encode(text.encode()).decode())}


def test_lc_12_listing_shows_no_id_and_nothing_that_works_as_a_cookie(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    ids, children = s.visit(lambda v, u, s: ([v.id, u.id, s.id], v.children() + u.children()), browser)
    listed = [*user.sessions("ann"), *sudo.sessions("ann"), *children]
    assert len(listed) == 4
    shown = repr(listed)
    assert not [secret for secret in secrets_of(browser, ids) if secret in shown]
    stranger = Browser(s.app, s.clock)
    for info in listed:
        raw = base64.urlsafe_b64encode(pack(store.load(info.handle))).decode().rstrip("=")
        for text in (info.handle, f"{info.handle}.{info.parent}", raw):
            for name in ("__Host-visitor", "__Host-user", "__Host-sudo"):
                assert s.visit(lambda v, u, s: (dict(v), u.subject), stranger, HTTP_COOKIE=f"{name}={text}") == (
                    {},
                    None,
                )


def test_lc_12_ending_another_users_session_by_its_handle_is_not_found(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    ann, bob = logged_in(s), logged_in(s, "bob")
    (info,) = user.sessions("bob")
    assert user.revoke(info.handle, subject="ann") is False
    assert sudo.revoke(info.handle, subject="bob") is False, "it is another handler's"
    assert user.revoke("no such handle", subject="ann") is False
    assert s.visit(lambda v, u, s: u.subject, bob) == "bob"
    assert user.revoke(info.handle, subject="bob") is True
    assert user.revoke(info.handle, subject="bob") is False
    assert s.visit(lambda v, u, s: u.subject, bob) is None
    assert s.visit(lambda v, u, s: u.subject, ann) == "ann"


def test_lc_11_ending_everywhere_tells_listeners_once_for_each_session(store):
    events = []
    visitor, user, sudo = tree_on(store, with_events(events.append))
    s = Site(visitor, user, sudo)
    browsers = [logged_in(s) for _ in range(3)]
    kept = handles(s, browsers[0])[1]
    events.clear()
    assert user.revoke_all("ann", keep=kept) == 2
    told = [(event.kind, event.handler, event.reason) for event in events]
    assert told == [("revoked", "visitor/user", "everywhere")] * 2
    assert kept not in {event.handle for event in events}
    assert [info.handle for info in user.sessions("ann")] == [kept]


def test_lc_11_dead_sessions_do_not_count_when_a_user_is_logged_out_everywhere(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    s.visit(lambda v, u, s: v.revoke(), logged_in(s))
    logged_in(s)
    assert user.revoke_all("ann") == 1


@pytest.mark.parametrize("subject", [None, 5, b"ann", ""])
def test_what_cannot_be_a_subject_is_refused(store, subject):
    _, user, _ = tree_on(store)
    for call in (user.sessions, user.revoke_all):
        with pytest.raises(UsageError, match="non-empty str"):
            call(subject)


def test_a_bare_registry_lists_children_in_the_same_store(store):
    visitor, user, sudo = tree_on(store)
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    request = environ(HTTP_COOKIE=browser.jar.header())
    assert [info.handle for info in visitor.session(request).children()] == handles(s, browser)[1:2]
    assert chain(visitor)(plain_app(lambda request: len(visitor.session(request).children())))


# -- ancestors, whatever keeps them --------------------------------------------------------------------------


def test_lc_16_nothing_is_listed_as_ending_after_its_parent(store, clock):
    visitor, user, sudo = tree_on(store, with_max_age(100), user_options=[with_idle_timeout(5000)])
    s = Site(visitor, user, sudo)
    browser = logged_in(s)
    ends = clock.now() / 1000 + 100
    listed = [*user.sessions("ann"), *sudo.sessions("ann"), *s.visit(lambda v, u, s: v.children(), browser)]
    assert [info.expires_at.timestamp() for info in listed] == [ends] * 3
    assert s.visit(lambda v, u, s: u.info().expires_at.timestamp(), browser) == ends


def test_a_parent_that_is_dead_by_a_list_of_revocations_takes_its_stored_children_out_of_every_list(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_revocations(store))
    user = visitor.spawn("user", with_store(store), with_max_sessions(1))
    s = Site(visitor, user)
    for _ in range(3):
        browser = s.another_browser()
        s.visit(lambda v, u: (v.update(v=1), u.bind("ann")), browser)
        assert s.answer.code == 200
        assert len(user.sessions("ann")) == 1
        s.visit(lambda v, u: v.revoke(), browser)
        assert user.sessions("ann") == []
