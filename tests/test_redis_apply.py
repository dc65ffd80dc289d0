"""What a script does to a record is what ``records.changed`` does, whatever the record and the change.

The same records and changes go to a MemoryStore, which runs that function and nothing else, and to the server. Both
must answer alike, raise alike, and hold the same record afterwards.
"""

import itertools
import os

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import valkey
from support import SOAK

from sessiontree import SessionError, UsageError
from sessiontree.clock import FOREVER
from sessiontree.records import KEEP, LARGEST, Changes, Json, Record, as_value, packed, unpacked
from sessiontree.stores.conformance.tools import fresh_handle, js, json_values, key_names
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.redis.record import EXACT, MOST_FIELDS
from sessiontree.testing import FakeClock

NUMBERS = itertools.count(1)
NOW = 1_893_456_000_000
PROOFS = [bytes([number]) * 32 for number in range(4)]
ENOUGH = settings(deadline=None, max_examples=60 * SOAK, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request):
    return valkey.started(request.param)


@pytest.fixture(scope="module")
def stores(server):
    clock = FakeClock()
    assert clock.now() == NOW
    prefix = f"apply-{os.getpid()}-{next(NUMBERS)}"
    made = MemoryStore(clock=clock), RedisStore.from_url(server.url, prefix=prefix, clock=clock)
    yield made
    for store in made:
        store.close()


# -- what is tried --------------------------------------------------------------------------------

keys = st.sampled_from(["a", "b", "n", "", "é", 'q"\\', "l", "h", "t", "$bytes", "code", "\n"]) | key_names
around = st.integers(-3, 3).map(NOW.__add__)
far = st.sampled_from([FOREVER, FOREVER - 1, FOREVER - 3, NOW + 10**9, EXACT - 1, EXACT, EXACT + 1, 1])
deadlines = around | far
no_deadline = st.just(0)
integers = (
    st.integers(-5, 5)
    | st.sampled_from([sign * (edge + by) for sign in (1, -1) for edge in (2**31, 2**53, 2**62) for by in (-1, 0, 1)])
    | st.sampled_from([-(2**63), 2**63 - 1, 2**63, 2**64 - 1, 10**15, -(10**15), 10**16])
)
contents = (
    integers.map(js)
    | json_values.map(js)
    | st.binary(max_size=80)
    | st.sampled_from([js("x" * 300), js(-0.0), js(1e300)])
)
fields = st.dictionaries(keys, st.tuples(contents, no_deadline | no_deadline | deadlines), max_size=6)
labels = st.dictionaries(st.sampled_from(["subject", "worker", "", "sub", 'a"b']) | key_names, key_names, max_size=3)
proofs = st.sampled_from(PROOFS)
lives = st.sampled_from([FOREVER, FOREVER - 2, NOW + 10**9]) | around


@st.composite
def records(draw):
    data = draw(fields)
    return {
        "path": draw(st.sampled_from(["user", "visitor/user"])),
        "created": draw(st.integers(0, NOW)),
        "absolute": draw(lives),
        "own": draw(st.just(FOREVER) | lives),
        "idle": draw(st.just(FOREVER) | lives),
        "proof": PROOFS[0],
        "seen": draw(around | st.sampled_from([0, FOREVER, EXACT])),
        "version": draw(st.integers(1, 9) | st.sampled_from([2**52 - 1, 2**52, 2**52 + 1, 2**62])),
        "authenticated": draw(st.sampled_from([0, NOW, FOREVER])),
        "previous": draw(st.sampled_from([b"", PROOFS[3]])),
        "grace": draw(st.sampled_from([0, NOW + 1, FOREVER])),
        "labels": orjson.dumps(wanted).decode() if (wanted := draw(labels)) else "",
        "agent": draw(key_names),
        "address": draw(st.sampled_from(["", "::1"])),
        "fields": packed(
            {key: as_value(content) for key, (content, _) in data.items()},
            {key: deadline for key, (_, deadline) in data.items() if deadline},
        ),
    }


@st.composite
def changes(draw, held=()):
    known = st.sampled_from(sorted(held)) if held else keys
    named = known | keys
    return Changes(
        sets=draw(st.dictionaries(named, st.tuples(contents, no_deadline | deadlines | st.just(KEEP)), max_size=3)),
        deletes=draw(st.just(()) | st.lists(named, max_size=2).map(tuple)),
        adds=draw(st.just({}) | st.dictionaries(named, integers, max_size=2)),
        expects=draw(st.just({}) | st.just({}) | st.dictionaries(named, st.none() | contents, max_size=2)),
        seen=draw(st.none() | around | st.just(FOREVER)),
        own=draw(st.none() | lives),
        idle=draw(st.none() | lives),
        proof=draw(st.none() | st.none() | proofs),
        grace=draw(st.sampled_from([0, NOW + 5, FOREVER])),
        authenticated=draw(st.none() | st.sampled_from([0, NOW, FOREVER])),
        labels=draw(st.just({}) | st.dictionaries(st.sampled_from(["subject", "", "sub"]), st.none() | key_names)),
    )


@st.composite
def histories(draw):
    """Return a record, and what is done to it: a change, the proof that comes with it, and how much later."""
    record = draw(records())
    held = set(unpacked(record["fields"])[0])
    size = len(record["fields"])
    steps = draw(
        st.lists(
            st.tuples(changes(held), st.none() | proofs, st.sampled_from([0, 0, 0, 1, 2, 3])), min_size=1, max_size=4
        )
    )
    largest = draw(st.just(LARGEST) | st.integers(size, size + 200))
    return record, steps, largest


# -- what must hold -------------------------------------------------------------------------------


def sight_of(store, handle):
    """Return a record as values, deadlines and all the rest, whatever the order of its keys."""
    record = store.load(handle)
    if record is None:
        return None
    return record._replace(fields=b"", labels=""), unpacked(record.fields), dict(record.label)


def outcome(store, handle, proof, change):
    try:
        version = store.apply(handle, proof, change)
    except (SessionError, TypeError, ValueError) as error:
        return type(error), str(error)
    return int(version), dict(version.sums)


def agree(stores, history):
    record, steps, largest = history
    clock = stores[0].clock
    clock.advance((NOW - clock.now()) / 1000)
    handle = fresh_handle()
    for store in stores:
        store.largest = largest
        store.create(Record(handle, **record))
    proof = record["proof"]
    for change, another, later in steps:
        before = sight_of(stores[0], handle)
        assert sight_of(stores[1], handle) == before
        clock.advance(later / 1000)
        given_proof = proof if another is None else another
        expected = outcome(stores[0], handle, given_proof, change)
        found = outcome(stores[1], handle, given_proof, change)
        assert _kind_of(found) == _kind_of(expected)
        after = sight_of(stores[0], handle)
        assert sight_of(stores[1], handle) == after
        assert is_due_in_time(stores[1], handle, after)
        if after:
            proof = after[0].proof
    for name in ("subject", "", "sub"):
        for value in {dict(orjson.loads(record.get("labels") or "{}")).get(name, "x"), *_values(steps, name)}:
            assert len({store.count(name, value) for store in stores}) == 1


def is_due_in_time(store, handle, sight):
    """Whether a sweep will look at the record when it has ended at the latest, and at none that is gone."""
    when = store._pool.read(b"ZSCORE", store._due, handle.encode("utf-8", "surrogatepass"))
    if sight is None:
        return when is None
    record = sight[0]
    ends = min(record.absolute, record.own, record.idle)
    return ends - store.clock.now() >= 2**52 or (when is not None and float(when) <= ends)


def _kind_of(answer):
    """A driver's word in an error may differ, ours not: which key it was, and what to do."""
    return answer if answer[0] is not TypeError else TypeError


def _values(steps, name):
    return {change.labels[name] for change, _, _ in steps if change.labels.get(name) is not None}


def test_a_script_and_python_make_the_same_of_any_change(stores):
    @ENOUGH
    @given(histories())
    def check(history):
        agree(stores, history)

    check()


def data_changes(**changes):
    return Changes(**changes)


@st.composite
def plain_histories(draw):
    """Return changes of fields alone to a living record, which is what the script does by itself."""
    data = draw(st.dictionaries(keys, st.tuples(contents, no_deadline | st.just(NOW + 2)), max_size=6))
    raw = packed(
        {key: as_value(content) for key, (content, _) in data.items()},
        {key: deadline for key, (_, deadline) in data.items() if deadline},
    )
    record = {
        "path": "user", "created": NOW, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOFS[0],
        "seen": NOW, "fields": raw,
    }  # fmt: skip
    named = st.sampled_from(sorted(data)) | keys if data else keys
    steps = draw(
        st.lists(
            st.builds(
                data_changes,
                sets=st.dictionaries(named, st.tuples(contents, st.sampled_from([0, 0, NOW + 2, KEEP])), max_size=3),
                deletes=st.lists(named, max_size=2).map(tuple),
                adds=st.just({}) | st.dictionaries(st.just("n"), integers, max_size=1),
                expects=st.just({}) | st.dictionaries(st.just("missing"), st.none()),
            ),
            min_size=1, max_size=6,
        )
    )  # fmt: skip
    largest = draw(st.just(LARGEST) | st.integers(len(raw), len(raw) + 100))
    return record, [(change, None, draw(st.sampled_from([0, 0, 0, 1]))) for change in steps], largest


def test_the_sizes_that_a_script_keeps_are_those_of_the_packed_fields(stores):
    @ENOUGH
    @given(plain_histories())
    def check(history):
        agree(stores, history)

    check()


@pytest.mark.parametrize("size", [MOST_FIELDS - 1, MOST_FIELDS, MOST_FIELDS + 1, 3 * MOST_FIELDS])
def test_any_number_of_keys_is_written_and_removed_at_once(stores, size):
    many = {f"key {number}": (js(number), 0) for number in range(size)}
    record = {
        "path": "user", "created": NOW, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOFS[0],
        "seen": NOW,
    }  # fmt: skip
    steps = [
        (Changes(sets=many), None, 0),
        (Changes(adds=dict.fromkeys(many, 1)), None, 0),
        (Changes(sets={key: (js(number + 1), KEEP) for number, key in enumerate(many)}), None, 0),
        (Changes(expects={key: js(number + 1) for number, key in enumerate(many)}), None, 0),
        (Changes(deletes=tuple(many)), None, 0),
    ]
    agree(stores, (record, steps, LARGEST))
    whole = packed({key: as_value(content) for key, (content, _) in many.items()})
    agree(stores, (record | {"fields": whole}, steps[1:], LARGEST))


@pytest.mark.parametrize(
    "change",
    [
        Changes(sets={"a\ud800": (js(1), 0)}), Changes(deletes=("a\ud800",)), Changes(adds={"a\ud800": 1}),
        Changes(expects={"a\ud800": None}), Changes(expects={"a\ud800": js(1)}), Changes(labels={"a\ud800": None}),
        Changes(labels={"subject": "a\ud800"}), Changes(deletes=("a", "a")), Changes(adds={"a": 1 << 70}),
        Changes(sets={"a": (js(1), 0)}, adds={"a": 1}), Changes(sets={"a": (js(1), 0)}, deletes=("a",)),
        Changes(sets={"a": (js(1), KEEP)}, adds={"a": 1}), Changes(sets={"a": (js(1), KEEP)}, deletes=("a",)),
        Changes(deletes=("a",), adds={"a": 1}), Changes(expects={"a": Json(b'{"$bytes":"AA=="}')}),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_no_script_can_do_is_done_or_refused_as_elsewhere(stores, change):
    record = {
        "path": "user", "created": NOW, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOFS[0],
        "seen": NOW, "fields": packed({"a": 41, "b": as_value(b"\0")}),
    }  # fmt: skip
    agree(stores, (record, [(change, None, 0)], LARGEST))


def test_a_record_whose_numbers_no_server_can_hold_is_refused(stores):
    with pytest.raises(UsageError):
        stores[1].create(Record(fresh_handle(), "user", 0, 1 << 64, 0, 0, PROOFS[0], 0))
    with pytest.raises(UsageError):
        stores[1].create(Record(fresh_handle(), "user", 0, 0, 0, 0, b"short", 0))
