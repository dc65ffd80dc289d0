"""The Handler as a value: hashable, frozen, configured by copies, checked when it is built."""

import copy
import dataclasses
import inspect
import logging
import pickle
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import OTHER_SECRET, SECRET, Site, clocked, environ
from werkzeug.wrappers import Request

import sessiontree
from sessiontree import (
    ConfigError,
    CookiePolicy,
    Handler,
    KeyRing,
    UsageError,
    with_absolute_timeout,
    with_cache,
    with_clock,
    with_cookie,
    with_eager,
    with_encryption,
    with_events,
    with_header,
    with_id_generator,
    with_idle_timeout,
    with_logger,
    with_max_age,
    with_serializer,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.handlers import options as options_module
from sessiontree.handlers.ids import uuid4, uuid7
from sessiontree.serializer import JsonSerializer
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock

EVERY_OPTION = {
    "with_cookie": st.sampled_from(
        [CookiePolicy(same_site="Strict"), CookiePolicy(name="plain", domain="example.org")]
    ),
    "with_max_age": st.none() | st.integers(0, 10**6),
    "with_idle_timeout": st.none() | st.integers(1, 1000),
    "with_absolute_timeout": st.none() | st.integers(10**4, 10**6),
    "with_id_generator": st.sampled_from([uuid4, uuid7]),
    "with_encryption": st.booleans(),
    "with_serializer": st.just(JsonSerializer()),
    "with_header": st.sampled_from(["X-Session", "Authorization"]),
    "with_eager": st.nothing(),
    "with_clock": st.builds(FakeClock),
    "with_store": st.none() | st.just(MemoryStore()),
    "with_revocations": st.none() | st.just(MemoryStore()),
    "with_cache": st.none() | st.just(LocalCache()),
    "with_max_sessions": st.integers(1, 5),
    "with_outage": st.sampled_from(["raise", "anonymous"]),
    "with_logger": st.none() | st.just(logging.getLogger("test")),
    "with_events": st.none() | st.just(print),
}


@st.composite
def an_option(draw):
    name = draw(st.sampled_from(sorted(EVERY_OPTION)))
    function = getattr(sessiontree, name)
    return function() if name == "with_eager" else function(draw(EVERY_OPTION[name]))


def test_every_option_is_tried():
    assert set(EVERY_OPTION) == {name for name in options_module.__all__ if name.startswith("with_")}
    assert set(EVERY_OPTION) <= set(sessiontree.__all__)


def test_handlers_are_values():
    one, two = Handler("visitor", SECRET, with_max_age(5)), Handler("visitor", SECRET).configure(with_max_age(5))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Handler("visitor", SECRET)
    assert one != Handler("visitor", OTHER_SECRET, with_max_age(5))
    assert len({one, two, one.spawn("a"), two.spawn("a"), one.spawn("b")}) == 3
    assert one.spawn("a") != Handler("a", SECRET)
    assert copy.copy(one) is one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "other"


def test_a_handler_copies_as_itself_and_is_not_pickled():
    clock = FakeClock()
    store, cache = MemoryStore(clock=clock), LocalCache(clock=clock)
    handler = Handler("v", SECRET, with_clock(clock), with_store(store), with_cache(cache)).spawn("u")
    assert copy.copy(handler) is handler
    assert copy.deepcopy({"a": [handler]})["a"][0] is handler
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=r"'v/u' is not pickled: build it in a module"):
            pickle.dumps(handler, protocol)


@given(st.lists(an_option(), max_size=6))
@settings(max_examples=150, deadline=None)
def test_configuring_a_copy_never_changes_the_original(options):
    original = Handler("visitor", SECRET)
    before = (original.config, hash(original), original.parent, dict(_fields(original.config)))
    try:
        configured = original.configure(*options)
        for option in options:
            option(original)
    except ConfigError:  # A clock that is not the store's, revocations that would be listed for ever.
        assert (original.config, hash(original), dict(_fields(original.config))) == (*before[:2], before[3])
        return
    child = original.spawn("user", *options)
    original.spawned(configured.configure(lambda handler: handler)) if configured.name != "visitor" else None
    assert (original.config, hash(original), original.parent, dict(_fields(original.config))) == before
    assert configured.config == Handler("visitor", SECRET, *options).config
    assert hash(configured) == hash(original.configure(*options))
    assert child.parent is original
    one_by_one = original
    try:
        for option in options:
            one_by_one = option(one_by_one)
    except ConfigError:  # Together they fit, but not each in its turn.
        return
    assert one_by_one == configured


def _fields(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def test_options_compose_in_any_order_and_are_checked_together():
    hours = [with_idle_timeout(40 * 86_400), with_absolute_timeout(50 * 86_400)]
    assert Handler("a", SECRET, *hours) == Handler("a", SECRET, *reversed(hours))
    with pytest.raises(ConfigError, match="idle timeout"):
        Handler("a", SECRET, hours[0])
    assert Handler("a", SECRET, hours[0], with_absolute_timeout(None))


def test_an_option_of_ones_own_is_a_function():
    def production(handler):
        return handler.configure(with_encryption(), with_max_age(60))

    assert Handler("a", SECRET, production, with_eager()) == Handler(
        "a", SECRET, with_encryption(), with_max_age(60), with_eager()
    )
    for wrong in (5, "x", None, lambda handler: None):
        with pytest.raises(ConfigError):
            Handler("a", SECRET, wrong)


@pytest.mark.parametrize("name", ["a", "A9_.-z", "a" * 63])
def test_good_names(name):
    assert Handler(name, SECRET).name == name


@pytest.mark.parametrize("name", ["", "9a", "a" * 64, "a b", "a/b", "a\n", "ä", "-a", "a;b", None, 5, b"a"])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError, match="name"):
        Handler(name, SECRET)


@pytest.mark.parametrize("keys", ["short", None, 5, [], [SECRET, SECRET], object()])
def test_bad_keys_are_refused(keys):
    with pytest.raises(ConfigError):
        Handler("a", keys)


def test_keys_come_as_a_ring_or_plain():
    assert Handler("a", KeyRing(SECRET)) == Handler("a", SECRET) == Handler("a", [SECRET])


@pytest.mark.parametrize(
    "build",
    [
        lambda: with_max_age(-1), lambda: with_max_age(True), lambda: with_max_age("5"),
        lambda: with_max_age(float("nan")),
        lambda: with_idle_timeout(0), lambda: with_idle_timeout(-5), lambda: with_absolute_timeout(0),
        lambda: with_absolute_timeout(float("inf")), lambda: with_id_generator("uuid"), lambda: with_encryption("yes"),
        lambda: with_serializer(object()), lambda: with_header(""), lambda: with_header("X Session"),
        lambda: with_header("X_Session"), lambda: with_header("Cookie"), lambda: with_header("Set-Cookie"),
        lambda: with_header("X-S\r\n"), lambda: with_header(None), lambda: with_clock(5), lambda: with_logger("x"),
        lambda: with_events(5), lambda: with_cookie("visitor"), lambda: with_cookie(None), lambda: with_max_age(2**80),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_at_once_with_what_to_change(build):
    with pytest.raises(ConfigError) as caught:
        build()
    assert len(str(caught.value)) > 20


def test_a_host_cookie_with_a_domain_is_refused():
    with pytest.raises(ConfigError, match="__Secure-"):
        Handler("a", SECRET, with_cookie(CookiePolicy(domain="example.org")))
    assert Handler("a", SECRET, with_cookie(CookiePolicy(name="__Secure-a", domain="example.org")))


def test_insecure_dev_warns_and_is_plain():
    with pytest.warns(UserWarning, match="never deploy"):
        option = with_cookie(CookiePolicy(insecure_dev=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = Site(Handler("visitor", SECRET, option))
    s.visit(lambda session: session.update(n=1))
    assert s.answer.cookies[0].startswith("visitor=v1.")
    assert "Secure" not in s.answer.cookies[0]


def test_lg_1_no_secret_id_or_data_in_any_repr():
    handler, _ = clocked("visitor", with_encryption())
    s = Site(handler)

    def act(session):
        session["canary"] = "tell-no-one"
        return repr(session), str(session), session.id

    shown = [*s.visit(act)]
    session_id = shown.pop()
    shown += [repr(handler), repr(handler.config), repr(handler.spawn("x")), repr(handler.config.keys)]
    text = " ".join(shown)
    for secret in (SECRET.hex(), repr(SECRET), "tell-no-one", session_id):
        assert secret not in text


def test_a_request_may_be_wrapped_by_a_framework():
    handler, _ = clocked()
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    assert handler.session(Request(request)) is handler.session(request)
    assert handler.session(Request(request))["n"] == 1
    for nonsense in (None, "request", 5, object()):
        with pytest.raises(UsageError, match="no request"):
            handler.session(nonsense)


def test_flask_and_django_requests_work():
    from django.conf import settings as django_settings  # noqa: PLC0415
    from django.core.handlers.wsgi import WSGIRequest  # noqa: PLC0415
    from flask import Flask  # noqa: PLC0415
    from flask import request as flask_request  # noqa: PLC0415

    handler, _ = clocked()
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    header = s.browser.jar.header()
    if not django_settings.configured:
        django_settings.configure(ALLOWED_HOSTS=["*"])
    assert handler.session(WSGIRequest(environ(HTTP_COOKIE=header)))["n"] == 1
    app = Flask("test")
    with app.request_context(environ(HTTP_COOKIE=header)):
        assert handler.session(flask_request)["n"] == 1


def test_the_events_of_a_life_name_handles_and_never_ids():
    events = []
    handler, clock = clocked("visitor", with_absolute_timeout(100), with_events(events.append))
    s = Site(handler)
    ids, handles = [], []

    def note(session):
        ids.append(session.id)
        handles.append(session.handle)

    s.visit(lambda session: (session.update(n=1), note(session)))
    s.visit(lambda session: (session.renew(), note(session)))
    s.visit(lambda session: session.revoke())
    s.visit(lambda session: (session.update(n=1), note(session)))
    clock.advance(100)
    s.visit(dict)
    s.visit(dict, HTTP_COOKIE="__Host-visitor=junk")
    kinds = [(event.kind, event.reason) for event in events]
    assert kinds == [
        ("created", None), ("renewed", None), ("revoked", None), ("created", None), ("expired", None),
        ("refused", "Expired"), ("refused", "BadCookie"),
    ]  # fmt: skip
    assert {event.handle for event in events} == {*handles, None}
    assert not any(secret in repr(events) for secret in ids)


def test_a_listener_that_fails_is_logged_and_stops_nothing(caplog):
    def listener(event):
        raise ZeroDivisionError

    s = Site(clocked("visitor", with_events(listener))[0])
    s.visit(lambda session: session.update(n=1))
    assert len(s.answer.cookies) == 1
    assert "listener failed" in caplog.text


def test_events_are_logged_on_one_line(caplog):
    logger = logging.getLogger("sessiontree.test")
    s = Site(clocked("visitor", with_logger(logger))[0])
    with caplog.at_level(logging.INFO, "sessiontree.test"):
        s.visit(lambda session: session.update(n=1))
    [record] = caplog.records
    assert record.getMessage().startswith("session created 'visitor' '")


def test_every_public_call_has_a_docstring_that_is_a_sentence():
    for name in sessiontree.__all__:
        thing = getattr(sessiontree, name)
        members = [thing]
        if inspect.isclass(thing):
            members += [member for key, member in vars(thing).items() if not key.startswith("_") and callable(member)]
        for member in members:
            doc = inspect.getdoc(member)
            assert doc, member
            assert doc.split("\n\n")[0].rstrip().endswith((".", ":")), member
