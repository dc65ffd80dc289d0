"""A parent that is replaced, as at a login, in a request that then writes or ends its child, or fails."""

import pytest
from support import SECRET, Site

from sessiontree import Handler, SessionGone, fixed_id, server_only, with_clock, with_revocations, with_store
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

WAYS = {
    "carried": lambda _: (),
    "revocable": lambda store: (with_revocations(store),),
    "stored": lambda store: (with_store(store),),
}


@pytest.fixture
def store():
    return FaultyStore(MemoryStore(clock=FakeClock()))


def site_of(way, store, *of_the_child):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), *WAYS[way](store))
    made = Site(visitor, visitor.spawn("user", *of_the_child))
    made.visit(log_in)
    return made


@pytest.fixture(params=WAYS)
def site(request, store):
    return site_of(request.param, store)


def log_in(visitor, user):
    visitor.regenerate()
    user["uid"] = 7


def live(visitor, user):
    return visitor.is_live(), dict(user)


@pytest.mark.parametrize("looks_first", [False, True])
def test_a_login_that_fails_leaves_the_child_as_it_was(site, looks_first):
    kept = site.browser.jar.header()
    site.status = "500 Oops"
    site.visit(lambda visitor, user: (looks_first and user.is_live(), log_in(visitor, user)))
    assert (site.answer.cookies, site.browser.jar.header()) == ([], kept)
    site.status = "200 OK"
    assert site.visit(live) == (True, {"uid": 7})


@pytest.mark.parametrize("looks_first", [False, True])
def test_a_child_that_was_begun_and_ended_again_under_a_new_parent_is_kept_if_the_response_fails(site, looks_first):
    site.status = "500 Oops"
    site.visit(lambda visitor, user: (looks_first and user.is_live(), log_in(visitor, user), user.revoke()))
    site.status = "200 OK"
    assert site.visit(live)[0]


def test_a_login_that_succeeds_replaces_the_childs_cookie(site):
    old = site.browser.jar.header()
    site.visit(lambda visitor, user: (visitor.regenerate(), user.update(uid=8)))
    assert sorted(line.split("=")[0] for line in site.answer.cookies) == ["__Host-user", "__Host-visitor"]
    assert site.visit(live) == (True, {"uid": 8})
    stranger = site.another_browser()
    assert site.visit(live, stranger, HTTP_COOKIE=old)[1] in ({}, {"uid": 7})  # a kept copy, where no store knows


# -- a child that is ended though its parent was only replaced ---------------------------------------------


def log_out(visitor, user):
    visitor.regenerate()
    user.revoke()
    assert (user.is_live(), dict(user)) == (False, {})


@pytest.mark.parametrize("looks_first", [False, True])
@pytest.mark.parametrize("way", ["revocable", "stored", "in another store"])
def test_what_was_revoked_under_a_new_parent_stays_so_if_the_response_fails(store, way, looks_first):
    elsewhere = [with_store(MemoryStore(clock=store.clock))] if way == "in another store" else []
    site = site_of("stored" if elsewhere else way, store, *elsewhere)
    kept = site.browser.jar.header()
    site.status = "500 Oops"
    site.visit(lambda visitor, user: (looks_first and user.is_live(), log_out(visitor, user)))
    assert [line.split("=")[0] for line in site.answer.cookies] == ["__Host-user"]
    site.status = "200 OK"
    assert site.visit(live, site.another_browser(), HTTP_COOKIE=kept) == (True, {})
    assert site.visit(live) == (True, {})


@pytest.mark.parametrize("looks_first", [False, True])
def test_a_carried_child_that_was_revoked_under_a_new_parent_is_forgotten_if_the_response_fails(store, looks_first):
    site = site_of("carried", store)
    site.status = "500 Oops"
    site.visit(lambda visitor, user: (looks_first and user.is_live(), log_out(visitor, user)))
    site.status = "200 OK"
    assert site.visit(live) == (True, {})


@pytest.mark.parametrize("way", ["revocable", "stored"])
def test_an_id_that_was_renewed_away_has_no_say_under_a_new_parent_either(store, way):
    site = site_of(way, store)
    old = site.browser.jar.header()
    site.visit(lambda visitor, user: user.renew())

    def act(visitor, user):
        visitor.regenerate()
        with pytest.raises(SessionGone):
            user.revoke()

    site.status = "500 Oops"
    site.visit(act, site.another_browser(), HTTP_COOKIE=old)
    site.status = "200 OK"
    assert site.visit(live) == (True, {"uid": 7})


def test_where_the_parent_was_revoked_nobody_asks_the_store_about_the_child(store):
    site = site_of("stored", store)
    store.calls.clear()
    site.visit(lambda visitor, user: (user.is_live(), visitor.revoke(), user.revoke()))
    assert [verb for verb, _ in store.calls] == ["load_many", "revoke"]


def test_a_child_of_nobodys_that_was_revoked_under_a_new_parent_stays_so_if_the_response_fails(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    site = Site(visitor, visitor.spawn("cart", server_only(), fixed_id("cart")))
    site.visit(lambda visitor, cart: (visitor.update(v=1), cart.update(x=1)))
    site.status = "500 Oops"
    site.visit(lambda visitor, cart: (cart.is_live(), log_out(visitor, cart)))
    site.status = "200 OK"
    assert site.visit(live) == (True, {})


@pytest.mark.parametrize("way", WAYS)
def test_a_child_that_began_in_this_request_is_revoked_under_a_new_parent_as_well(store, way):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), *WAYS[way](store))
    site = Site(visitor, visitor.spawn("user"))

    def act(visitor, user):
        visitor["a"] = 1
        user["b"] = 1
        visitor.regenerate()
        user.revoke()

    site.visit(act)
    assert site.visit(live) == (True, {})
