"""What PostgreSQL does to a record is what ``records.changed`` does in memory: the same result, the same error."""

from contextlib import closing

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.postgres import KINDS, run_sql, server
from support import SOAK

pytest.importorskip("psycopg_pool")

from sessiontree import SessionError, SessionGone
from sessiontree.clock import FOREVER, FakeClock
from sessiontree.records import FORM, KEEP, Changes, Json, Record, as_value, packed
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, fresh_handle, js, json_values
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.postgres import PostgresStore

SCHEMA = "differential"
NOW = 1_893_456_000_000
LARGEST = 400
HUGE = (1 << 64) - 1

KEYS = ("a", "n", "m", "é\0", 'q":"', "", "$bytes", "\t\n", "x" * 30)
NUMBERS = (0, 1, -1, 41, 1 << 31, (1 << 63) - 1, 1 << 63, HUGE, HUGE - 1, -(1 << 63), 1 - (1 << 63))
keys = st.sampled_from(KEYS)
contents = (
    st.sampled_from(NUMBERS).map(js)
    | json_values.map(js)
    | st.binary(max_size=9)
    | st.sampled_from(
        [js("x" * 150), js("\t"), js({"$bytes": "AA=="}), js(1.0), js(-0.0), js("1"), Json(b"-0"), js(1e300)]
    )
)
# Deadlines around the times at which things happen: NOW, and up to 9 ms later.
times = st.just(0) | st.integers(NOW - 2, NOW + 12) | st.sampled_from([1, FOREVER - 1, FOREVER, -5])
ends = st.sampled_from([FOREVER] * 7 + [NOW, NOW + 1, NOW + 4, NOW + 8])
proofs = st.sampled_from([PROOF, OTHER_PROOF, b"r" * 32])
names = st.sampled_from(["subject", "parent", "w\0", "\x01" * 500])
values = st.sampled_from(["bob", "eve", "", "b\0b", "é" * 300, 'q":"'])
fields = st.dictionaries(keys, st.tuples(contents, times), max_size=5)


@st.composite
def records(draw):
    data = draw(fields)
    garbage = draw(st.integers(0, 30)) == 7
    labels = draw(st.dictionaries(names, values, max_size=2))
    return Record(
        fresh_handle(), draw(st.sampled_from(["user", "a/b", "é\0"])), draw(st.integers(0, NOW)), draw(ends),
        draw(ends), draw(ends), PROOF, draw(st.integers(NOW - 5, NOW + 5)), draw(st.integers(1, 9)),
        authenticated=draw(st.integers(0, 9)), previous=draw(st.sampled_from([b"", OTHER_PROOF])),
        grace=draw(times), labels=orjson.dumps(labels).decode() if labels else "",
        agent=draw(st.text("a\0é", max_size=3)),
        fields=b'{"cut' if garbage else packed(
            {key: as_value(content) for key, (content, _) in data.items()},
            {key: deadline for key, (_, deadline) in data.items() if deadline},
        ),
        form=FORM + (draw(st.integers(0, 30)) == 7),
    )  # fmt: skip


def seldom(strategy, nothing):
    return st.one_of(st.just(nothing), st.just(nothing), st.just(nothing), strategy)


changes = st.builds(
    Changes,
    sets=seldom(st.dictionaries(keys, st.tuples(contents, st.just(0)), max_size=6), {})
    | seldom(st.dictionaries(keys, st.tuples(contents, times | st.just(KEEP)), max_size=3), {}),
    deletes=seldom(st.lists(keys, max_size=3).map(tuple), ()),
    adds=seldom(st.dictionaries(keys, st.sampled_from([*NUMBERS, 7, -7, -HUGE]), max_size=2), {}),
    expects=seldom(st.dictionaries(keys, st.none() | contents, max_size=2), {}),
    seen=seldom(st.integers(NOW - 9, NOW + 9), None),
    own=seldom(ends, None),
    idle=seldom(ends, None),
    proof=seldom(proofs, None),
    grace=times,
    authenticated=seldom(st.integers(0, 9), None),
    labels=seldom(st.dictionaries(names, st.none() | values, max_size=2), {}),
)
wanted = st.sampled_from(["current"] * 9 + [OTHER_PROOF, b"short"])
laters = st.sampled_from([0, 0, 0, 1, 3])


@st.composite
def exchanges(draw):
    """Return what ``update_key`` does: a content for the one that is there, which seldom is another than expected."""
    key = draw(keys)
    expects = draw(seldom(st.fixed_dictionaries({key: st.none() | contents}), {}))
    change = Changes(
        sets={key: (draw(contents), KEEP)},
        expects=expects,
        seen=draw(seldom(st.integers(NOW - 9, NOW + 9), None)),
        idle=draw(seldom(ends, None)),
    )
    return draw(wanted), change, draw(laters), [] if expects else [key]


steps = st.lists(st.tuples(wanted, changes, laters, st.lists(keys, max_size=2)) | exchanges(), max_size=6)


@pytest.fixture(scope="module", params=KINDS if SOAK > 1 else KINDS[:1])
def url(request):
    found = server(request.param).url
    with closing(PostgresStore.from_url(found, schema=SCHEMA)) as store:
        store.create_schema()
    yield found
    run_sql(found, f"DROP SCHEMA {SCHEMA} CASCADE")


def outcome(call):
    """Return what the call returned, or the class of what it raised."""
    try:
        result = call()
    except (SessionError, TypeError, ValueError) as error:
        return type(error)
    return result if not hasattr(result, "sums") else (int(result), dict(result.sums))


def sight(record):
    """Return all there is to see of a record, however it is packed."""
    if record is None:
        return None
    try:
        data = {
            key: (type(content), content, deadline) for key, (content, deadline) in record.contents(-(1 << 62)).items()
        }
    except ValueError:
        return None
    return record._replace(fields=b"", labels=""), data, dict(record.label)


def with_known(model, handle, change, known):
    """Return changes that expect what is there of these keys, so that comparisons hold now and then."""
    record = model.load(handle) if not model._get(handle) or model._get(handle).form == FORM else None
    try:
        found = {} if record is None else record.contents(model.clock.now())
    except ValueError:
        return change
    return change._replace(expects={**change.expects, **{key: found.get(key, (None,))[0] for key in known}})


def current(model, handle, proof):
    record = model._get(handle)
    return proof if proof != "current" else PROOF if record is None else record.proof


def check_is_same(model, store, record):
    found = [outcome(lambda each=each: sight(each.load(record.handle))) for each in (model, store)]
    assert found[0] == found[1]
    for name, value in {**record.label, "subject": "bob", "parent": "eve"}.items():
        assert model.count(name, value) == store.count(name, value), (name, value)


def applied(store, write):
    """Apply by itself, or, where the store is to, with others."""
    if not store.together:
        return store.apply(*write)
    result, other = store.apply_many([write, (fresh_handle(), PROOF, Changes())])
    assert type(other) is SessionGone
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.parametrize("way", ["prepared", "together", "unprepared"])
def test_every_change_ends_as_in_memory(url, way):
    clock, prepared = FakeClock(NOW / 1000), way != "unprepared"
    store = PostgresStore.from_url(url, schema=SCHEMA, clock=clock, largest=LARGEST, prepared=prepared, timeout=20)
    store.together = way == "together"

    @settings(
        deadline=None, max_examples=(100 if way == "prepared" else 50) * SOAK, suppress_health_check=list(HealthCheck)
    )
    @given(records(), steps)
    def check(record, steps):
        clock.advance(NOW / 1000 - clock.now() / 1000)
        model = MemoryStore(clock=clock, largest=LARGEST)
        ways = [(lambda each, write: each.apply(*write), model), (applied, store)]
        made = [outcome(lambda each=each: each.create(record)) for each in (model, store)]
        assert made[0] == made[1]
        for wanted, changed, later, known in steps:
            clock.advance(later / 1000)
            write = (
                record.handle,
                current(model, record.handle, wanted),
                with_known(model, record.handle, changed, known),
            )
            done = [outcome(lambda each=each, call=call, write=write: call(each, write)) for call, each in ways]
            assert done[0] == done[1], write
            check_is_same(model, store, record)
        store.revoke_where("subject", "bob")
        store.revoke_where("parent", "eve")
        store.revoke(record.handle)

    with closing(store):
        check()


def one(**contents):
    """Return packed fields; a tuple is a content and a deadline."""
    pairs = {key: each if isinstance(each, tuple) else (each, 0) for key, each in contents.items()}
    values = {key: as_value(content) for key, (content, _) in pairs.items()}
    return packed(values, {key: deadline for key, (_, deadline) in pairs.items() if deadline})


ROOM = LARGEST - len(one(k=js("")))
SET = {"a": (js(1), 0)}
SOON = one(a=(js(1), NOW), b=js(1), n=(js(5), NOW + 1), over=(js(1), NOW - 1))
LABELLED = {"labels": '{"subject":"bob","w\\u0000":"b"}', "previous": b"x" * 32, "grace": 7, "authenticated": 5}
NUMERALS = (
    js(HUGE), js(-(1 << 63)), Json(b"-0"), Json(b"99999999999999999999"), Json(b"-9999999999999999999"),
    Json(b"18446744073709551616"), js("1"), js(1.0), js(True), js([1]), b"1",
)  # fmt: skip
LOOKALIKES = (b"\0", js({"$bytes": "AA=="}), js("x"), js("xy"), js(1), js(1.0), js(11), js(None))
NESTED = ("a", '"a', 'a"', 'a":1', "a:", ":", "", "\\", "é", "\t", "\ta")
EVERY_KIND = (
    Changes(), Changes(idle=FOREVER), Changes(sets=SET), Changes(adds={"n": 1}), Changes(labels={"subject": "x"}),
    Changes(proof=OTHER_PROOF), Changes(authenticated=7), Changes(expects={"a": None}),
    Changes(sets={"a": (js(1), KEEP)}, expects={"a": None}),
)  # fmt: skip


def corners_of_keys():
    """Yield attributes of a record, and changes that are made one after the other."""
    # Integers, and what merely looks like one.
    for content in NUMERALS:
        for number in (0, 1, -1, HUGE, -HUGE):
            yield {"fields": one(n=content)}, Changes(adds={"n": number})
            yield {}, Changes(sets={"n": (content, 0)}), Changes(adds={"n": number})
            yield {"fields": one(n=js(1))}, Changes(sets={"n": (content, 0)}, adds={"n": number})
    # Several ways at once to one key.
    for changes in (
        Changes(deletes=("n",), adds={"n": 2}), Changes(deletes=("m",), adds={"m": 2}), Changes(adds={"m": 2, "n": 3}),
        Changes(deletes=("n", "n", "m"), sets={"n": (js(1), 0)}), Changes(deletes=("n",), sets={"n": (js(1), NOW + 5)}),
        Changes(sets={"m": (js(1), 0)}), Changes(sets={"m": (js(1), NOW)}),
        Changes(sets={"m": (js(1), 0)}, adds={"m": 2}), Changes(sets={"m": (js(1), KEEP)}, adds={"m": 2}),
        Changes(sets={"m": (js(1), KEEP)}, deletes=("m",)), Changes(sets={"m": (js(1), KEEP), "n": (js(1), KEEP)}),
        Changes(sets={"m": (js(1), KEEP)}), Changes(sets={"m": (js(1), KEEP)}, expects={"m": js(7)}),
        Changes(sets={"m": (js(1), KEEP)}, expects={"n": js(5)}),
        Changes(sets={"m": (js(1), KEEP)}, expects={"m": js(7), "n": js(5)}, labels={"subject": "x"}),
        Changes(adds={"n": True}), Changes(adds={"n": 1.5}),
    ):  # fmt: skip
        yield {"fields": one(n=js(5), m=(js(7), NOW + 9))}, changes
    # Keys whose time comes just now, is over, or is not there.
    for key in ("a", "b", "n", "over", "none"):
        for expected in (None, js(1), js(5), b"1"):
            yield {"fields": SOON}, Changes(sets={key: (js(2), KEEP)}, expects={key: expected})
    for changes in (
        Changes(sets={"b": (js(2), 0)}), Changes(sets=SET), Changes(deletes=("n",)),
        Changes(sets={"a": (js(2), KEEP), "n": (js(2), KEEP)}),
        Changes(deletes=("n", "a", "over")),
        Changes(adds={"a": 1, "n": 1, "over": 1}), Changes(expects={"a": None, "over": None, "n": js(5)}),
        Changes(expects={"a": js(1)}), Changes(expects={"n": None}), Changes(sets={"a": (js(2), NOW + 3)}),
        Changes(sets={str(each): (js(1), 0) for each in range(9)}), *EVERY_KIND,
    ):  # fmt: skip
        yield {"fields": SOON}, changes
    # What looks like another kind, or begins or ends like another key.
    for content in LOOKALIKES:
        for expected in (*LOOKALIKES, None):
            yield {"fields": one(a=content)}, Changes(sets={"b": (js(1), 0)}, expects={"a": expected})
            yield {"fields": one(a=content)}, Changes(sets={"a": (b"new", KEEP)}, expects={"a": expected})
    for key in NESTED:
        others = {"fields": one(**{other: js(1) for other in NESTED if other != key})}
        for changes in (
            Changes(deletes=(key,)), Changes(sets={key: (js("z"), 0)}), Changes(sets={key: (js("z"), NOW + 3)}),
            Changes(adds={key: 1}), Changes(expects={key: js(1)}), Changes(expects={key: None}),
            Changes(sets={key: (js("z"), KEEP)}, expects={key: js(1)}),
            Changes(sets={key: (js("z"), KEEP)}, expects={key: None}),
        ):  # fmt: skip
            yield others, changes
            yield {"fields": one(**{other: js(1) for other in NESTED})}, changes


def corners_of_records():
    """Yield the same for what is not about single keys."""
    # As large as can be, and a byte more.
    for before in (0, ROOM):
        for more in (-9, -1, 0, 1):
            for deadline in (0, FOREVER - 1):
                full = {"k": (js("y" * (ROOM + more)), deadline)}
                yield {"fields": one(k=js("x" * before))}, Changes(sets=full)
                yield {"fields": one(k=js("x" * before))}, Changes(sets={"l": full["k"]})
                room = LARGEST - len(one(k=(js(""), deadline))) + more
                yield {"fields": one(k=(js("x"), deadline))}, Changes(sets={"k": (js("y" * room), KEEP)})
                exchange = Changes(sets={"k": (js("y" * room), KEEP)}, expects={"k": js("x")})
                yield {"fields": one(k=(js("x"), deadline))}, exchange
    for number in (1, 1000):
        yield {"fields": one(k=js("x" * (ROOM - 6)), n=js(9))}, Changes(adds={"n": number})
    # A newer release's record, garbage, and what is over.
    over = ({"idle": NOW}, {"own": NOW}, {"absolute": NOW - 1})
    for kept in ({"form": FORM + 1}, {"fields": b'{"cut'}, {"fields": b"[]"}, *over):
        for changes in EVERY_KIND:
            yield kept, changes
    # Everything else about a session.
    for changes in (
        Changes(labels={"subject": "bob"}), Changes(labels={"subject": "bo"}), Changes(labels={"subject": "bobb"}),
        Changes(labels={"subject": None}), Changes(labels={"subject": None, "w\0": None, "none": None}),
        Changes(labels={"w\0": "é\0", "z": ""}), Changes(labels={"x" * 900: "y" * 900}), Changes(authenticated=0),
        Changes(proof=OTHER_PROOF, grace=NOW + 5), Changes(grace=9), Changes(seen=NOW - 99), Changes(seen=NOW + 99),
        Changes(own=NOW, idle=NOW + 1), Changes(own=NOW + 5, authenticated=3), Changes(seen=NOW - 99, adds={"n": 1}),
        Changes(seen=NOW + 99, adds={"n": 1}), *EVERY_KIND,
    ):  # fmt: skip
        yield LABELLED, changes
    yield {"labels": orjson.dumps({'"subject': "bob"}).decode()}, Changes(labels={"subject": "bob"})


@pytest.mark.parametrize("way", ["prepared", "together", "unprepared"])
def test_every_corner_ends_as_in_memory(url, way):
    clock = FakeClock(NOW / 1000)
    store = PostgresStore.from_url(url, schema=SCHEMA, clock=clock, largest=LARGEST, prepared=way != "unprepared")
    store.together = way == "together"
    model = MemoryStore(clock=clock, largest=LARGEST)
    calls = (lambda write: model.apply(*write), lambda write: applied(store, write))
    with closing(store):
        for more, *changes in (*corners_of_keys(), *corners_of_records()):
            lives = {"absolute": FOREVER, "own": FOREVER, "idle": FOREVER, **more}
            record = Record(fresh_handle(), "user", NOW - 5, proof=PROOF, seen=NOW - 5, **lives)
            for each in (model, store):
                each.create(record)
            for change in (*changes, changes[-1]):
                write = (record.handle, PROOF, change)
                done = [outcome(lambda call=call, write=write: call(write)) for call in calls]
                assert done[0] == done[1], (more, change)
                check_is_same(model, store, record)
            store.revoke(record.handle)
            model.revoke(record.handle)
