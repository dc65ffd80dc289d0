"""A parent that is replaced, as at a login, in a request that then writes or ends its child, or fails."""

import pytest
from support import SECRET, Site

from sessiontree import Handler, with_clock, with_revocations, with_store
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


@pytest.fixture(params=WAYS)
def site(request, store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), *WAYS[request.param](store))
    made = Site(visitor, visitor.spawn("user"))
    made.visit(log_in)
    return made


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
