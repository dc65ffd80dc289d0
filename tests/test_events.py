"""What the library tells of its sessions, and what becomes of it in the metrics of OpenTelemetry and in a log.

No event holds a secret, and nobody who is told can stop a request.
"""

import ast
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from operator import methodcaller
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support import SECRET, Browser, Site, clocked, plain_app

from sessiontree import (
    ConfigError,
    CookiePolicy,
    CookieTooLarge,
    Csrf,
    Handler,
    SessionGone,
    StoreCorrupt,
    StoreUnavailable,
    chain,
    fixed_id,
    server_only,
    with_clock,
    with_cookie,
    with_events,
    with_id_generator,
    with_idle_timeout,
    with_logger,
    with_max_sessions,
    with_outage,
    with_revocations,
    with_store,
)
from sessiontree.handlers import Event, events
from sessiontree.handlers.events import REASONS, LoggingListener, each_of
from sessiontree.handlers.ids import new_id
from sessiontree.handlers.telemetry import OpenTelemetryListener
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

KIND, PATH, REASON = "sessiontree.event.kind", "sessiontree.handler.path", "sessiontree.event.reason"
ANN = "ann@example.org"
DAY = 86_400


class Meter:
    """OpenTelemetry's own SDK, which keeps in memory what was counted."""

    def __init__(self):
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider(metric_readers=[self._reader])
        self.listener = OpenTelemetryListener(self._provider.get_meter("test"))

    def metric(self):
        [resource] = self._reader.get_metrics_data().resource_metrics
        [metric] = resource.scope_metrics[0].metrics
        return metric

    def attributes(self):
        return [dict(point.attributes) for point in self.metric().data.data_points]

    def counted(self):
        """Return how often each kind was counted, for which handler and why."""
        points = self.metric().data.data_points
        return {tuple(point.attributes.get(name) for name in (KIND, PATH, REASON)): point.value for point in points}

    def close(self):
        self._provider.shutdown()


class World:
    """Handlers on one faulty store, everything they tell, and every secret that they could tell."""

    def __init__(self, meter):
        self.store = FaultyStore(MemoryStore(clock=FakeClock()))
        self.clock = self.store.clock
        self.events = []
        self.result = None
        self.secrets = {"canary", ANN, "192.0.2.7", "Test/1"}
        listener = each_of(self.events.append, meter.listener)
        logger = logging.getLogger("sessiontree.test")
        self._options = with_clock(self.clock), with_events(listener), with_logger(logger), with_id_generator(self._id)

    def _id(self):
        made = new_id()
        self.secrets.add(made)
        return made

    def carried(self, *options, name="visitor"):
        return Handler(name, SECRET, *self._options, *options)

    def stored(self, *options, name="visitor"):
        return self.carried(with_store(self.store), *options, name=name)

    def revocable(self):
        return self.carried(with_revocations(self.store))

    def visit(self, site, action, browser=None, **more):
        """Make a request, and remember what only the client may know."""
        result = site.visit(action, browser, **more)
        for line in site.answer.cookies:
            self.secrets |= {part for part in re.split("[=.;]", line) if len(part) > 20}
        return result

    def begun(self, site, subject=None):
        """Begin a session, bound to a subject if there is one; return its handle and its Cookie header."""

        def act(*sessions):
            for session in sessions:
                session["canary key"] = "canary value"
                if subject:
                    session.bind(subject)
            return sessions[-1].handle

        browser = site.another_browser()
        return self.visit(site, act, browser), browser.jar.header()

    def told(self, action):
        """Do this, keep what it returns as ``result``, and return what was told meanwhile."""
        before = len(self.events)
        self.result = action()
        return self.events[before:]


@pytest.fixture
def meter():
    made = Meter()
    yield made
    made.close()


@pytest.fixture
def world(meter):
    return World(meter)


# -- what requests tell ---------------------------------------------------------------------------------
#
# A scene does one thing, and returns what was told in the request that did it and what should have been, in any order.


def scene_of_a_first_write(world, site=None):
    site = site or Site(world.carried())
    told = world.told(lambda: world.begun(site))
    return told, [Event("created", "visitor", world.result[0])]


def scene_of_a_first_write_to_a_store(world):
    return scene_of_a_first_write(world, Site(world.stored()))


def scene_of_a_renewal(world, site=None):
    site = site or Site(world.carried())
    handle, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda session: session.renew(), HTTP_COOKIE=cookie))
    return told, [Event("renewed", "visitor", handle)]


def scene_of_a_renewal_in_a_store(world):
    return scene_of_a_renewal(world, Site(world.stored()))


def scene_of_a_renewal_that_is_listed(world):
    told, [renewed] = scene_of_a_renewal(world, Site(world.revocable()))
    return told, [renewed, Event("listed", "visitor", renewed.handle, "renewed id")]


def scene_of_a_login(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda session: session.bind(ANN), HTTP_COOKIE=cookie))
    return told, [Event("renewed", "visitor", handle)]


def scene_of_a_logout(world, site=None):
    site = site or Site(world.carried())
    handle, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda session: session.revoke(), HTTP_COOKIE=cookie))
    return told, [Event("revoked", "visitor", handle)]


def scene_of_a_logout_from_a_store(world):
    return scene_of_a_logout(world, Site(world.stored()))


def scene_of_a_logout_that_is_listed(world):
    told, [revoked] = scene_of_a_logout(world, Site(world.revocable()))
    return told, [revoked, Event("listed", "visitor", revoked.handle, "revoked session")]


def scene_of_a_logout_by_handle(world):
    handler = world.stored()
    handle, _ = world.begun(Site(handler))
    return world.told(lambda: handler.revoke(handle)), [Event("revoked", "visitor", handle)]


def scene_of_a_logout_everywhere(world):
    handler = world.stored()
    handles = [world.begun(Site(handler), ANN)[0] for _ in range(2)]
    told = world.told(lambda: handler.revoke_all(ANN))
    return told, [Event("revoked", "visitor", handle, "everywhere") for handle in handles]


def scene_of_a_session_in_place_of_another(world):
    site = Site(world.stored())
    old, cookie = world.begun(site)

    def replace(session):
        session.regenerate()
        return session.handle

    told = world.told(lambda: world.visit(site, replace, HTTP_COOKIE=cookie))
    return told, [Event("revoked", "visitor", old, "replaced"), Event("created", "visitor", world.result)]


def scene_of_a_parent_that_ends(world):
    visitor = world.stored()
    site = Site(visitor, visitor.spawn("user"))
    child, cookie = world.begun(site)

    def end(visitor, user):
        assert user["canary key"]
        above = visitor.handle
        visitor.revoke()
        return above

    told = world.told(lambda: world.visit(site, end, HTTP_COOKIE=cookie))
    return told, [
        Event("revoked", "visitor", world.result),
        Event("revoked", "visitor/user", child, "its parent ended"),
    ]


def scene_of_the_oldest_that_gives_way(world):
    site = Site(world.stored(with_max_sessions(1, "oldest")))
    old, _ = world.begun(site, ANN)
    told = world.told(lambda: world.begun(site, ANN))
    return told, [Event("created", "visitor", world.result[0]), Event("revoked", "visitor", old, "limit")]


def scene_of_one_login_too_many(world):
    site = Site(world.stored(with_max_sessions(1, "refuse")))
    world.begun(site, ANN)
    handle, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda session: session.bind(ANN), HTTP_COOKIE=cookie))
    assert site.answer.code == 409
    # Its new id stays, though it is nobody's.
    return told, [Event("renewed", "visitor", handle), Event("refused", "visitor", handle, "LimitReached")]


def scene_of_two_sessions_that_become_one(world):
    site = Site(world.stored(), world.stored(name="guest"))
    guest, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda visitor, guest: visitor.merge(guest), HTTP_COOKIE=cookie))
    return told, [Event("revoked", "guest", guest, "merged")]


def scene_of_a_deadline(world, site=None):
    site = site or Site(world.carried())
    handle, cookie = world.begun(site)
    world.clock.advance(31 * DAY)
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    return told, [Event("expired", "visitor", handle), Event("refused", "visitor", None, "Expired")]


def scene_of_a_deadline_in_a_store(world):
    return scene_of_a_deadline(world, Site(world.stored()))


def scene_of_a_record_that_is_gone(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)
    world.store.revoke(handle)
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    return told, [Event("absent", "visitor", handle), Event("refused", "visitor", None, "BadSession")]


def scene_of_a_record_that_cannot_be_read(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)
    world.store.corrupt()
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    return told, [
        Event("corrupt", "visitor", handle, "JSONDecodeError"),
        Event("refused", "visitor", None, "BadSession"),
    ]


def scene_of_a_forged_token(world):
    site = Site(world.carried())
    cookie = "__Host-visitor=v1.canary\xe9\nsession created.canary"
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    return told, [Event("refused", "visitor", None, "BadCookie")]


def scene_of_two_tokens(world):
    site = Site(world.carried(with_cookie(CookiePolicy(name="visitor"))))
    cookies = "; ".join(world.begun(site)[1] for _ in range(2))
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookies))
    return told, [Event("duplicate", "visitor"), Event("refused", "visitor", None, "BadCookie")]


def scene_of_a_child_without_its_parent(world):
    visitor = world.carried()
    site = Site(visitor, visitor.spawn("user"))
    _, cookies = world.begun(site)
    [cookie] = [pair for pair in cookies.split("; ") if "user" in pair]
    told = world.told(lambda: world.visit(site, lambda visitor, user: dict(user), HTTP_COOKIE=cookie))
    return told, [Event("refused", "visitor/user", None, "ParentInvalid")]


def scene_of_a_form_from_elsewhere(world):
    handler = world.carried()
    browser = Browser(chain(handler, Csrf(handler))(plain_app(lambda request: None)))
    told = world.told(lambda: browser.request(method="POST"))
    return told, [Event("refused", "visitor", None, "csrf")]


def scene_of_two_requests_of_which_one_logs_out(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)

    def act(session):
        session["n"] = 1
        world.visit(site, lambda same: same.revoke(), site.another_browser(), HTTP_COOKIE=cookie)

    told = world.told(lambda: world.visit(site, act, HTTP_COOKIE=cookie))
    assert site.answer.code == 409
    return told, [Event("revoked", "visitor", handle), Event("conflict", "visitor", handle)]


def scene_of_a_store_that_is_down(world):
    site = Site(world.stored(with_outage("anonymous")))
    _, cookie = world.begun(site)
    world.store.down()
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    return told, [Event("outage", "visitor", None, "StoreUnavailable")]


def scene_of_a_write_that_fails(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)
    world.store.fail(verb="apply")
    told = world.told(lambda: world.visit(site, lambda session: session.update(n=1), HTTP_COOKIE=cookie))
    assert site.answer.code == 503
    return told, [Event("outage", "visitor", handle, "StoreUnavailable")]


def scene_of_a_touch_that_fails(world):
    site = Site(world.stored(with_idle_timeout(600)))
    handle, cookie = world.begun(site)
    world.clock.advance(120)
    world.store.fail(verb="apply")
    told = world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    assert site.answer.code == 200
    return told, [Event("untouched", "visitor", handle, "StoreUnavailable")]


def streamed(handler, before, behind):
    """Return a browser of an application that acts on the session before the headers and behind them."""

    def app(request, start_response):
        before(handler.session(request))
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"begun"
        behind(handler.session(request))

    return Browser(handler.link(app))


def scene_of_a_late_write_that_fails(world):
    handler = world.stored()
    handle, cookie = world.begun(Site(handler))
    browser = streamed(handler, dict, lambda session: session.update(n=1))
    world.store.fail(verb="apply")
    told = world.told(lambda: browser.get(HTTP_COOKIE=cookie))
    return told, [
        Event("outage", "visitor", handle, "StoreUnavailable"),
        Event("late", "visitor", handle, "StoreUnavailable"),
    ]


def scene_of_a_first_look_behind_the_headers(world):
    handler = world.carried()
    _, cookie = world.begun(Site(handler))
    browser = streamed(handler, lambda session: None, dict)
    return world.told(lambda: browser.get(HTTP_COOKIE=cookie)), [Event("late", "visitor", None, "vary")]


SCENES = {name.removeprefix("scene_of_"): scene for name, scene in globals().items() if name.startswith("scene_of_")}
each_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


@each_scene
def test_a_request_tells_what_it_did(world, scene):
    told, expected = scene(world)
    assert Counter(told) == Counter(expected)


@each_scene
def test_opentelemetry_counts_what_a_request_told(world, meter, scene):
    scene(world)
    assert meter.counted() == Counter((event.kind, event.handler, event.reason) for event in world.events)


@each_scene
def test_lg_1_nobody_is_told_an_id_a_token_a_user_or_data(world, meter, caplog, scene):
    with caplog.at_level(logging.DEBUG):
        scene(world)
    told = [repr(world.events), meter.metric().to_json(), caplog.text, *(repr(vars(line)) for line in caplog.records)]
    assert len(caplog.records) == len(world.events)
    assert [secret for secret in world.secrets if any(secret in text for text in told)] == []


@each_scene
def test_lg_2_each_event_is_one_line_of_the_log(world, caplog, scene):
    with caplog.at_level(logging.DEBUG):
        scene(world)
    assert [(line.sessiontree_kind, line.sessiontree_handle) for line in caplog.records] == [
        (event.kind, event.handle) for event in world.events
    ]
    assert [line for line in caplog.records if len(line.getMessage().splitlines()) != 1] == []


# -- what is told is what happened ------------------------------------------------------------------------


def of_kind(told, *kinds):
    return [event for event in told if event.kind in kinds]


def attempt(action):
    """Return an action that survives what a store fails at or refuses."""

    def act(*sessions):
        with suppress(StoreUnavailable, SessionGone):
            action(*sessions)

    return act


IN_A_REQUEST = {
    "load": dict,
    "apply": lambda session: session.incr("n"),
    "create": lambda session: (session.regenerate(), session.update(n=1)),
    "revoke": lambda session: session.revoke(),
    "find": lambda session: session.children(),
}


@pytest.mark.parametrize(("verb", "action"), IN_A_REQUEST.items(), ids=IN_A_REQUEST)
def test_whatever_a_store_fails_at_in_a_request_is_told_as_an_outage(world, verb, action):
    site = Site(world.stored())
    _, cookie = world.begun(site)
    world.store.fail(verb=verb)
    told = world.told(lambda: world.visit(site, attempt(action), HTTP_COOKIE=cookie))
    assert of_kind(told, "outage")


def test_a_commit_that_cannot_end_what_was_replaced_is_told_as_an_outage(world):
    site = Site(world.stored())
    _, cookie = world.begun(site)
    world.store.fail(verb="revoke")
    told = world.told(lambda: world.visit(site, lambda session: session.regenerate(), HTTP_COOKIE=cookie))
    assert site.answer.code == 503
    assert of_kind(told, "outage")


OUTSIDE = {
    "sessions": lambda handler: handler.sessions(ANN),
    "revoke_all": lambda handler: handler.revoke_all(ANN),
    "revoke": lambda handler: handler.revoke("a" * 32),
    "sweep": lambda handler: handler.sweep(),
}


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE)
def test_whatever_a_store_fails_at_outside_a_request_is_told_as_an_outage(world, call):
    handler = world.stored()
    world.store.fail()
    told = world.told(lambda: attempt(call)(handler))
    assert of_kind(told, "outage")


@pytest.mark.parametrize("verb", ["revoke", "renew"])
def test_a_list_of_revocations_that_fails_is_told_as_an_outage(world, verb):
    site = Site(world.revocable())
    _, cookie = world.begun(site)
    world.store.fail(verb="create")
    told = world.told(lambda: world.visit(site, attempt(methodcaller(verb)), HTTP_COOKIE=cookie))
    assert of_kind(told, "outage")
    assert not of_kind(told, "renewed", "revoked", "listed")


def test_a_store_that_is_damaged_is_told_as_an_outage(world):
    site = Site(world.stored())
    _, cookie = world.begun(site)
    world.store.fail(error=StoreCorrupt("The store is damaged."), verb="load")
    with pytest.raises(StoreCorrupt):
        world.told(lambda: world.visit(site, dict, HTTP_COOKIE=cookie))
    assert of_kind(world.events, "outage") == [Event("outage", "visitor", None, "StoreCorrupt")]


def test_a_second_renewal_at_the_same_time_is_a_conflict_on_a_list_of_revocations_too(world):
    site = Site(world.revocable())
    _, cookie = world.begun(site)

    def act(session):
        session.renew()
        world.visit(site, lambda same: same.renew(), site.another_browser(), HTTP_COOKIE=cookie)

    told = world.told(lambda: world.visit(site, act, HTTP_COOKIE=cookie))
    assert site.answer.code == 409
    assert len(of_kind(told, "conflict")) == 1


def test_a_logout_after_a_refused_write_is_told(world):
    site = Site(world.stored())
    handle, cookie = world.begun(site)

    def act(session):
        dict(session)
        world.visit(site, lambda same: same.renew(), site.another_browser(), HTTP_COOKIE=cookie)
        attempt(lambda: session.incr("n"))()
        session.revoke()

    told = world.told(lambda: world.visit(site, act, HTTP_COOKIE=cookie))
    assert of_kind(told, "revoked") == [Event("revoked", "visitor", handle)]


def test_a_session_that_no_cookie_can_hold_was_never_created(world):
    site = Site(world.carried())
    with pytest.raises(CookieTooLarge):
        world.visit(site, lambda session: session.update(a="a" * 5000))
    assert world.events == []


def test_a_response_that_fails_tells_of_no_child_that_its_parent_ended(world):
    visitor = world.stored()
    site = Site(visitor, visitor.spawn("user"))
    _, cookie = world.begun(site)
    site.status = "500 Internal Server Error"

    def replace(visitor, user):
        assert dict(user)
        visitor.regenerate()
        assert not dict(user)

    told = world.told(lambda: world.visit(site, replace, HTTP_COOKIE=cookie))
    site.status = "200 OK"
    assert world.visit(site, lambda visitor, user: dict(user), HTTP_COOKIE=cookie)
    assert told == []


def test_a_logout_refuses_nobody(world):
    """A child that nobody looked at ends with its parent, and its token is forgotten in the same response."""
    visitor = world.stored()
    site = Site(visitor, visitor.spawn("user"))
    _, cookie = world.begun(site)
    told = world.told(lambda: world.visit(site, lambda visitor, user: visitor.revoke(), HTTP_COOKIE=cookie))
    assert len(site.answer.cookies) == 2
    assert of_kind(told, "refused") == []


def test_a_request_that_brings_nothing_is_refused_nothing(world):
    """A child of one fixed id has no token: without a parent it is absent, and nobody tried anything."""
    visitor = world.stored()
    site = Site(visitor, visitor.spawn("cart", server_only, fixed_id("cart")), visitor.spawn("user"))
    assert world.told(lambda: world.visit(site, lambda *sessions: [dict(session) for session in sessions])) == []


# -- the words ------------------------------------------------------------------------------------------


def calls_of_emit():
    """Yield what stands for the kind and for the reason in each call of ``emit`` in the library."""
    for path in Path(events.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "emit":
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                arguments = dict(zip(("handler", "kind", "handle", "reason"), node.args, strict=False)) | named
                yield f"{path.name}:{node.lineno}", arguments["kind"], arguments.get("reason")


def table():
    """Return the rows of the table of kinds in the module's docstring: what is said of each kind."""
    head, *rows = re.findall(r"^    (\S.*(?:\n {14,}\S.*)*)", events.__doc__, re.MULTILINE)
    assert head.startswith("kind")
    return {row.split()[0]: row for row in rows}


def test_the_table_says_what_every_kind_is_and_each_has_a_level():
    said = {
        constant.value
        for _, kind, _ in calls_of_emit()
        for constant in ast.walk(kind)
        if isinstance(constant, ast.Constant) and constant.value is not None
    }
    assert len(said) > 10
    assert said <= set(table())
    assert set(table()) == set(events._LEVELS)


def test_every_kind_is_driven_by_a_request_in_these_tests(meter):
    driven = {event.kind for scene in SCENES.values() for event in scene(World(meter))[1]}
    # What happens to a cache and its feed is driven in test_cached.
    assert driven | {"cache", "feed"} == set(table())


def test_every_reason_is_a_word_of_a_closed_set_or_the_class_of_an_error():
    """What an event says of why must not hold data, nor grow without bound."""
    calls, others = list(calls_of_emit()), []
    assert len(calls) > 10
    for place, _, reason in calls:
        if isinstance(reason, ast.Constant):
            if reason.value not in REASONS:
                others.append((place, reason.value))
        elif isinstance(reason, ast.JoinedStr):
            others.append((place, ast.unparse(reason)))
    assert others == []


def test_the_table_names_every_reason():
    words = set(re.findall(r'"([^"]+)"', "\n".join(table().values())))
    assert words == REASONS


# -- OpenTelemetry --------------------------------------------------------------------------------------


def test_opentelemetry_has_one_counter_named_by_its_conventions(meter):
    meter.listener(Event("created", "visitor", "a" * 32))
    metric = meter.metric()
    assert (metric.name, metric.unit, metric.data.is_monotonic) == ("sessiontree.session.events", "{event}", True)


def test_opentelemetry_is_told_no_handle_and_no_empty_reason(meter):
    for number in range(100):
        meter.listener(Event("created", "visitor", f"{number:032}"))
    meter.listener(Event("refused", "visitor", "b" * 32, "BadCookie"))
    assert meter.attributes() == [
        {KIND: "created", PATH: "visitor"},
        {KIND: "refused", PATH: "visitor", REASON: "BadCookie"},
    ]


def test_a_reason_with_data_in_it_is_counted_as_another(meter):
    for reason in ("3 tokens", "ann@example.org", "no such key: 'canary'", "", "a\nb"):
        meter.listener(Event("corrupt", "visitor", None, reason))
    assert meter.counted() == {("corrupt", "visitor", "_OTHER"): 5}


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_listener_that_was_made_before_the_application_set_up_its_provider_counts():
    code = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sessiontree.handlers import Event
from sessiontree.handlers.telemetry import OpenTelemetryListener
listener = OpenTelemetryListener()
listener(Event("created", "visitor"))
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
listener(Event("renewed", "visitor"))
[scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
[point] = scope.metrics[0].data.data_points
print(scope.scope.name, dict(point.attributes), point.value)
"""
    assert in_a_new_process(code).strip() == f"sessiontree { ({KIND: 'renewed', PATH: 'visitor'}) } 1"


def test_a_plain_import_loads_neither_opentelemetry_nor_logging():
    code = "import sys, json, sessiontree; print(json.dumps(list(sys.modules)))"
    loaded = set(json.loads(in_a_new_process(code)))
    assert "sessiontree.handlers.events" in loaded
    assert not loaded & {"opentelemetry", "logging", "sessiontree.handlers.telemetry"}


# -- logs -----------------------------------------------------------------------------------------------


def logged(caplog, listener, *told):
    with caplog.at_level(logging.DEBUG):
        for event in told:
            listener(event)
    return caplog.records


class Kept(logging.Handler):
    """Keeps lines as a plain formatter writes them."""

    def __init__(self):
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_lg_2_no_value_begins_a_new_line_of_the_log(handler, handle, reason):
    logger, kept = logging.getLogger("sessiontree.test.lines"), Kept()
    logger.addHandler(kept)
    LoggingListener(logger)(Event("refused", handler, handle, reason))
    logger.removeHandler(kept)
    [line] = kept.lines
    assert len(line.splitlines()) == 1
    assert line.startswith("WARNING session refused ")


def test_a_logged_event_carries_its_parts_for_structured_logs(caplog):
    listener = LoggingListener()
    lines = logged(
        caplog, listener, Event("created", "visitor/user", "a" * 32), Event("refused", "visitor", None, "csrf")
    )
    parts = [
        (line.name, line.sessiontree_kind, line.sessiontree_handler, line.sessiontree_handle, line.sessiontree_reason)
        for line in lines
    ]
    assert parts == [
        ("sessiontree.events", "created", "visitor/user", "a" * 32, None),
        ("sessiontree.events", "refused", "visitor", None, "csrf"),
    ]


def test_what_has_to_be_mended_is_an_error_and_what_was_turned_away_a_warning(caplog):
    lines = logged(caplog, LoggingListener(), *(Event(kind, "visitor") for kind in table()))
    levels = {line.sessiontree_kind: line.levelname for line in lines}
    assert {kind for kind, level in levels.items() if level == "ERROR"} == {"outage", "corrupt"}
    assert {kind for kind, level in levels.items() if level == "WARNING"} == {
        "refused", "duplicate", "late", "conflict", "untouched", "cache", "feed",
    }  # fmt: skip
    assert set(levels.values()) == {"ERROR", "WARNING", "INFO"}


def test_a_kind_can_have_a_level_of_ones_own(caplog):
    listener = LoggingListener(levels={"refused": logging.DEBUG, "revoked": logging.CRITICAL})
    lines = logged(caplog, listener, *(Event(kind, "visitor") for kind in ("refused", "revoked", "outage")))
    assert [line.levelname for line in lines] == ["DEBUG", "CRITICAL", "ERROR"]
    assert logged(caplog, LoggingListener(), Event("refused", "visitor"))[-1].levelname == "WARNING"


@pytest.mark.parametrize(
    "arguments",
    [("sessiontree",), (None, {"refuse": 10}), (None, {"refused": "DEBUG"}), (None, {"refused": True}), (print,)],
)
def test_a_logging_listener_is_checked_when_it_is_made(arguments):
    with pytest.raises(ConfigError):
        LoggingListener(*arguments)


def test_with_logger_logs_as_a_logging_listener_does(caplog):
    logger = logging.getLogger("sessiontree.test")
    own = {"args", "created", "msecs", "relativeCreated", "taskName"}
    lines = []
    for option in (with_logger(logger), with_events(LoggingListener(logger))):
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            Site(clocked("visitor", option)[0]).visit(dict, HTTP_COOKIE="__Host-visitor=junk")
        [line] = caplog.records
        lines.append(
            {name: value for name, value in vars(line).items() if name not in own} | {"text": line.getMessage()}
        )
    assert lines[0] == lines[1]


# -- those who are told ---------------------------------------------------------------------------------


def failing(event):
    raise ZeroDivisionError(event.kind)


class Refusing(logging.Filter):
    """A filter that has a fault of its own."""

    def filter(self, record):
        raise ZeroDivisionError


def broken_logger(name):
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    if not logger.filters:
        logger.addFilter(Refusing())
    return logger


def test_lc_9_a_listener_that_raises_reaches_no_request_and_is_logged(world, caplog):
    """Whatever is done with a session, by whichever request, has the outcome that it has without a listener."""
    site = Site(world.stored().configure(with_events(failing), with_logger(None)))
    _, cookie = world.begun(site)
    for action, code in ((dict, 200), (lambda session: session.renew(), 200), (lambda session: session.revoke(), 200)):
        world.visit(site, action, HTTP_COOKIE=cookie)
        assert site.answer.code == code
        cookie = site.browser.jar.header() or cookie
    assert world.visit(site, dict, HTTP_COOKIE=cookie) == {}
    assert {line.name for line in caplog.records} == {"sessiontree.events"}
    assert {line.levelname for line in caplog.records} == {"ERROR"}
    assert {line.exc_info[0] for line in caplog.records} == {ZeroDivisionError}
    assert [line for line in caplog.records if len(line.getMessage().splitlines()) != 1] == []


def test_a_listener_that_raises_is_logged_where_the_events_are(caplog):
    handler, _ = clocked("visitor", with_events(failing), with_logger(logging.getLogger("sessiontree.test")))
    with caplog.at_level(logging.INFO):
        Site(handler).visit(lambda session: session.update(n=1))
    assert [(line.name, line.levelname) for line in caplog.records] == [
        ("sessiontree.test", "ERROR"),
        ("sessiontree.test", "INFO"),
    ]


def test_a_logger_that_raises_reaches_no_request_and_is_logged_elsewhere(caplog):
    site = Site(clocked("visitor", with_logger(broken_logger("sessiontree.test.broken")))[0])
    site.visit(lambda session: session.update(n=1))
    assert (site.answer.code, len(site.answer.cookies)) == (200, 1)
    assert [(line.name, line.levelname) for line in caplog.records] == [("sessiontree.events", "ERROR")]


def test_a_logger_that_cannot_even_tell_of_a_failure_reaches_no_request():
    broken = with_logger(broken_logger("sessiontree.test.broken"))
    site = Site(clocked("visitor", with_events(failing), broken)[0])
    site.visit(lambda session: session.update(n=1))
    assert (site.answer.code, len(site.answer.cookies)) == (200, 1)


def test_a_meter_that_raises_reaches_no_request(caplog):
    class Broken:
        def create_counter(self, *arguments, **more):
            return self

        def add(self, *arguments, **more):
            raise ZeroDivisionError

    site = Site(clocked("visitor", with_events(OpenTelemetryListener(Broken())))[0])
    site.visit(lambda session: session.update(n=1))
    assert (site.answer.code, len(site.answer.cookies)) == (200, 1)
    assert len(caplog.records) == 1


def test_each_listener_is_told_in_order_whatever_the_others_raise(caplog):
    told = []
    listener = each_of(
        failing, lambda event: told.append(("first", event)), failing, lambda event: told.append(("last", event))
    )
    site = Site(clocked("visitor", with_events(listener))[0])
    site.visit(dict, HTTP_COOKIE="__Host-visitor=junk")
    event = Event("refused", "visitor", None, "BadCookie")
    assert told == [("first", event), ("last", event)]
    [line] = caplog.records
    assert isinstance(line.exc_info[1], ExceptionGroup)
    assert [type(failure) for failure in line.exc_info[1].exceptions] == [ZeroDivisionError] * 2


def test_a_handler_that_tells_several_is_a_value_all_the_same():
    option = with_events(each_of(failing, LoggingListener()))
    one, other = Handler("visitor", SECRET, option), Handler("visitor", SECRET, option)
    assert (one, hash(one)) == (other, hash(other))


def test_each_of_takes_only_what_can_be_called():
    each_of()(Event("created", "visitor"))
    with pytest.raises(ConfigError):
        each_of(print, "print")
