"""Values to bytes and back: exactly as they were, or a TypeError when they are written."""

import dataclasses
import enum
import json
import math
import string
from collections import Counter, OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from itertools import cycle
from pathlib import PurePosixPath
from types import MappingProxyType
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import Site, clocked

from sessiontree.errors import TooLarge
from sessiontree.serializer import DEEPEST, IMMUTABLE, CustomFields, JsonSerializer, Serializer

JSON = JsonSerializer()
quick = settings(deadline=None, max_examples=60)
TAGS = ["bytes", "datetime", "date", "timedelta", "decimal", "uuid", "set", "tuple", "dict", "", "unknown"]

# -- what is kept -------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
zones = st.one_of(
    st.none(),
    st.just(UTC),
    # An offset below a second has a test of its own.
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
    .filter(lambda offset: not offset or abs(offset) >= timedelta(seconds=1))
    .map(timezone),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Monrovia"]).map(
        ZoneInfo
    ),
)
integers = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1), st.sampled_from([-(1 << 63), (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
)
hashable = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    st.floats(allow_nan=False, allow_infinity=False),
    text,
    st.binary(max_size=8),
    st.dates(),
    st.datetimes(),
    st.builds(lambda when, fold, zone: when.replace(fold=fold, tzinfo=zone), st.datetimes(), st.integers(0, 1), zones),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
)
keys = st.one_of(text, st.sampled_from([f"${tag}" for tag in TAGS]))
hashable = st.one_of(hashable, st.lists(hashable, max_size=3).map(tuple))
values = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(hashable, max_size=3),
        st.dictionaries(keys, inner, max_size=2),
        st.dictionaries(keys, inner, min_size=1, max_size=1),
    ),
    max_leaves=8,
)


def exact(value: object) -> object:
    """Return the value with everything that equality overlooks: types, signs of zero, folds, zones, exponents."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [exact(item) for item in value]
    if kind is set:
        return kind, sorted(map(repr, map(exact, value)))
    if kind is dict:
        return kind, [(key, exact(item)) for key, item in value.items()]
    if kind is datetime:
        zone = value.tzinfo
        return kind, value.replace(tzinfo=None), value.fold, type(zone), str(zone), value.utcoffset(), value.tzname()
    if kind is Decimal:
        return kind, value.as_tuple()
    return kind, repr(value)


@quick
@given(values)
def test_st_3_whatever_is_taken_comes_back_exactly(value):
    assert exact(JSON.loads(JSON.dumps(value))) == exact(value)


@quick
@given(values)
def test_un_1_a_second_round_changes_nothing(value):
    assert JSON.dumps(JSON.loads(JSON.dumps(value))) == JSON.dumps(value)


KEPT = {
    "none": None,
    "true is no 1": [True, 1, 1.0],
    "false is no 0": [False, 0, 0.0],
    "minus zero": [-0.0, 0.0],
    "smallest int": -(1 << 63),
    "largest int": (1 << 64) - 1,
    "smallest float": 5e-324,
    "largest float": 1.7976931348623157e308,
    "17 digits": 0.1 + 0.2,
    "a float that is whole": 1e22,
    "tuple is no list": [(1, 2), [1, 2], ()],
    "empty": [[], {}, set(), (), "", b""],
    "bytes": bytes(range(256)),
    "nul and astral text": "\0 \N{SNOWMAN} \U0001f36a",
    "text not normalised": ["\u00e9", "e\u0301", "\ufb01", "\u212a"],
    "separators": "\u2028\u2029\x7f\x85",
    "decimal exponents": [Decimal("1.10"), Decimal("1.1"), Decimal("1E+3"), Decimal("-0"), Decimal("0E-9")],
    "decimal beyond the context": Decimal("1." + "1" * 60),
    "naive": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - naive is the case
    "microseconds": datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=UTC),
    "odd offset": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-5, minutes=-31, seconds=-7, microseconds=-3))),
    "first of all times": datetime.min.replace(fold=1),  # noqa: DTZ901 - naive is the case
    "last of all times": datetime.max,  # noqa: DTZ901 - naive is the case
    "both folds": [datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin")) for fold in (0, 1)],
    "a time that never was": datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
    "naive fold": datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001 - naive is the case
    "local mean time": datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    "utc by name is not utc": [datetime(2026, 1, 1, tzinfo=zone) for zone in (UTC, ZoneInfo("UTC"))],
    "a date is no datetime": [date(2026, 1, 1), datetime(2026, 1, 1)],  # noqa: DTZ001 - naive is the case
    "timedeltas": [timedelta.min, timedelta.max, timedelta(microseconds=-1), timedelta(0)],
    "uuids": [UUID(int=0), UUID(int=(1 << 128) - 1)],
    "sets": [{1, "1", b"1", None}, {(1, (2, "x"))}, {datetime(2026, 1, 1, tzinfo=UTC)}],
    "order of keys": {"b": 1, "a": 2, "": 3},
}


@pytest.mark.parametrize("value", KEPT.values(), ids=KEPT)
def test_st_3_every_kind_of_value_comes_back_exactly(value):
    assert exact(JSON.loads(JSON.dumps(value))) == exact(value)
    fields = {"$bytes": value}
    assert exact(JSON.unpack(JSON.pack(fields, plain=False))[0]) == exact(fields)


@pytest.mark.parametrize("offset", [timedelta(microseconds=1), timedelta(microseconds=-1), timedelta(milliseconds=999)])
def test_st_3_an_offset_below_a_second_comes_back_exactly_or_is_refused(offset):
    """``datetime.fromisoformat`` takes it for UTC."""
    value = datetime(2026, 1, 1, tzinfo=timezone(offset))
    with suppress(TypeError):
        assert exact(JSON.loads(JSON.dumps(value))) == exact(value)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("content", ["x", [], ["x"], {}, None, 5, {"$bytes": "eA=="}, b"x", {1}])
def test_un_1_a_dict_that_looks_like_a_tag_is_data_at_any_depth(tag, content):
    key = f"${tag}"
    for value in ({key: content}, {"a": [{key: content}]}, {key: {key: {key: content}}}, {key: content, "other": 1}):
        assert exact(JSON.loads(JSON.dumps(value))) == exact(value)
        assert exact(JSON.unpack(JSON.pack(value, plain=False))[0]) == exact(value)
        if all(map(JSON.admit, value.values())):
            assert exact(JSON.unpack(JSON.pack(value, plain=True))[0]) == exact(value)


@pytest.mark.parametrize("value", ['{"$bytes":"eA=="}', '{"$', '\\{"$', b'{"$', ['{"$tuple":[]}']])
def test_un_1_text_that_spells_a_tag_is_text(value):
    assert exact(JSON.loads(JSON.dumps(value))) == exact(value)
    fields = {'{"$tuple": []}': value, '{"$': 1}
    assert exact(JSON.unpack(JSON.pack(fields, plain=False))[0]) == exact(fields)


@pytest.mark.parametrize(
    "key", ["__proto__", "_permanent", "exp", "auth_time", "id", "iat", "$", "e", "s", "a", "f", ""]
)
def test_un_1_no_key_is_reserved(key):
    assert JSON.loads(JSON.dumps({key: {key: 1}})) == {key: {key: 1}}
    assert JSON.unpack(JSON.pack({key: 1}, plain=True))[0] == {key: 1}


def test_st_3_equal_sets_give_equal_bytes():
    upwards, downwards = set(range(0, 400, 10)), set()
    downwards.update(range(390, -1, -10))
    assert JSON.dumps(upwards) == JSON.dumps(downwards)
    assert JSON.dumps({"b", "a", 1, None}) == JSON.dumps({None, 1, "a", "b"})


def test_a_value_in_a_zone_that_this_machine_lacks_is_the_same_instant(monkeypatch):
    value = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    raw = JSON.dumps(value).replace(b"Europe/Berlin", b"Europe/Nowhere")
    back = JSON.loads(raw)
    assert back == value
    assert back.utcoffset() == timedelta(hours=2)


def test_the_wire_format_never_changes_from_release_to_release():
    """Golden bytes: what an older release wrote must be read for as long as its sessions may live."""
    golden = {
        b'{"$bytes":"AP8="}': b"\0\xff",
        b'{"$datetime":["2026-10-25T02:30:00+01:00",1,"Europe/Berlin"]}': KEPT["both folds"][1],
        b'{"$datetime":["2026-01-02T03:04:05.000001+00:00",0,null]}': KEPT["microseconds"],
        b'{"$date":"2026-01-02"}': date(2026, 1, 2),
        b'{"$timedelta":[-1,86399,999999]}': timedelta(microseconds=-1),
        b'{"$decimal":"1.10"}': Decimal("1.10"),
        b'{"$uuid":"00000000000000000000000000000005"}': UUID(int=5),
        b'{"$tuple":[1,{"$tuple":[]}]}': (1, ()),
        b'{"$set":["a",1]}': {1, "a"},
        b'{"$dict":{"$bytes":"x"}}': {"$bytes": "x"},
        b'[null,true,1.5,"x",{"a":{}}]': [None, True, 1.5, "x", {"a": {}}],
    }
    for raw, value in golden.items():
        assert JSON.dumps(value) == raw
        assert exact(JSON.loads(raw)) == exact(value)


# -- what is refused ----------------------------------------------------------------------------


def subclass(kind, *arguments):
    return type("Sub", (kind,), {"__slots__": ()})(*arguments)


class Colour(enum.Enum):
    RED = "red"


class Weight(enum.IntEnum):
    HEAVY = 1


class Shade(enum.StrEnum):
    DARK = "dark"


@dataclasses.dataclass
class Point:
    x: int = 1


class Liar:
    """Says that it is a list, as proxies do."""

    __class__ = list

    def __iter__(self):
        return iter([1])


class Zone(tzinfo):
    def utcoffset(self, when):
        return timedelta(hours=1)


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind is the case

REFUSED = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "int of 65 bits": 1 << 64,
    "negative int of 65 bits": -(1 << 63) - 1,
    "huge int": 10**5000,
    "decimal nan": Decimal("NaN"),
    "decimal signalling nan": Decimal("sNaN1"),
    "decimal infinity": Decimal("-Infinity"),
    "lone surrogate": "a\ud800",
    "low surrogate": "\udfff",
    "str of a subclass": subclass(str, "x"),
    "int of a subclass": subclass(int, 1),
    "float of a subclass": subclass(float, 1.5),
    "bytes of a subclass": subclass(bytes, b"x"),
    "list of a subclass": subclass(list, [1]),
    "tuple of a subclass": subclass(tuple, (1,)),
    "dict of a subclass": subclass(dict, {"a": 1}),
    "set of a subclass": subclass(set, {1}),
    "datetime of a subclass": type("Sub", (datetime,), {})(2026, 1, 1),
    "uuid of a subclass": type("Sub", (UUID,), {})(int=1),
    "decimal of a subclass": subclass(Decimal, "1"),
    "named tuple": Pair(1, 2),
    "ordered dict": OrderedDict(a=1),
    "default dict": defaultdict(list),
    "counter": Counter("a"),
    "mapping proxy": MappingProxyType({"a": 1}),
    "int key": {1: "a"},
    "keys that JSON would merge": {1: "a", "1": "b"},
    "none key": {None: 1},
    "bool key": {True: 1},
    "bytes key": {b"a": 1},
    "tuple key": {("a",): 1},
    "key of a subclass": {subclass(str, "a"): 1},
    "key with a lone surrogate": {"\ud800": 1},
    "bytearray": bytearray(b"x"),
    "memoryview": memoryview(b"x"),
    "frozenset": frozenset({1}),
    "set of a frozenset": {frozenset({1})},
    "range": range(3),
    "generator": (item for item in "a"),
    "dict view": {}.keys(),
    "enum": Colour.RED,
    "int enum": Weight.HEAVY,
    "str enum": Shade.DARK,
    "dataclass": Point(),
    "orjson fragment": orjson.Fragment(b'{"a":1}'),
    "time": time(1, 2),
    "fraction": Fraction(1, 2),
    "complex": 1j,
    "path": PurePosixPath("/x"),
    "ellipsis": ...,
    "class": int,
    "function": print,
    "object": object(),
    "exception": ValueError("x"),
    "what only claims to be a list": Liar(),
    "datetime in a zone of its own make": datetime(2026, 1, 1, tzinfo=Zone()),
    "fixed zone with a name": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_st_3_what_would_not_come_back_exactly_is_a_type_error(name):
    value = REFUSED[name]
    for wrapped in (value, [value], {"a": value}, (1, value), {"a": [{"b": (value,)}]}):
        with pytest.raises(TypeError):
            JSON.dumps(wrapped)
        with pytest.raises(TypeError):
            JSON.admit(wrapped)
        with pytest.raises(TypeError):
            JSON.pack({"k": wrapped}, plain=False)


@pytest.mark.parametrize(
    ("value", "hint"), [(Pair(1, 2), "plain tuple"), (Weight.HEAVY, "plain int"), (time(), "first")]
)
def test_the_error_says_what_to_convert_to(value, hint):
    with pytest.raises(TypeError, match=f"{type(value).__name__}.*{hint}"):
        JSON.dumps([value])


def nested(depth, wrap=lambda value: [value]):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap", [lambda value: [value], lambda value: (value,), lambda value: {"a": value}, lambda value: {"$a": value}]
)
def test_st_2_a_value_nests_at_most_32_deep(wrap):
    assert DEEPEST == 32
    value = nested(32, wrap)
    assert exact(JSON.loads(JSON.dumps(value))) == exact(value)
    for depth in (33, 34, 100, 900):
        with pytest.raises(TypeError, match="nests deeper than 32"):
            JSON.dumps(nested(depth, wrap))


def test_st_2_what_holds_itself_is_a_type_error():
    loop = []
    loop.append(loop)
    ring = {"a": [1]}
    ring["a"].append(ring)
    for value in (loop, ring, (loop,)):
        with pytest.raises(TypeError, match="holds itself"):
            JSON.dumps(value)
        with pytest.raises(TypeError, match="holds itself"):
            JSON.admit(value)


def test_one_list_in_two_places_comes_back_as_two():
    twice = [1]
    assert JSON.loads(JSON.dumps([twice, twice])) == [[1], [1]]


def test_st_5_more_than_1_mib_is_too_large():
    fits = "x" * ((1 << 20) - 2)
    assert len(JSON.dumps(fits)) == 1 << 20
    assert JSON.loads(JSON.dumps(fits)) == fits
    for call in (
        JSON.dumps,
        lambda value: JSON.pack({"a": value}, plain=True),
        lambda value: JSON.pack({"a": value}, plain=False),
    ):
        with pytest.raises(TooLarge, match=r"1048577|10485\d\d"):
            call(fits + "x")


# -- reading what somebody else wrote -------------------------------------------------------------

GARBAGE = {
    "nothing": b"",
    "200,000 open lists": b"[" * 200_000,
    "200,000 open objects": b'{"a":' * 200_000,
    "int of 5,000 digits": b"9" * 5000,
    "nan": b"NaN",
    "infinity": b"-Infinity",
    "float out of range": b"1e999",
    "utf-16": '{"a":1}'.encode("utf-16"),
    "utf-8 with a mark": b"\xef\xbb\xbf{}",
    "lone surrogate": b'"\\ud800"',
    "no utf-8": b'"\xff"',
    "two documents": b"{} {}",
    "comment": b"{}//",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "unknown tag": b'{"$unknown":1}',
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE)
def test_st_2_what_is_no_json_of_ours_is_a_value_error(raw):
    with pytest.raises(ValueError, match=r"."):
        JSON.loads(raw)
    with pytest.raises(ValueError, match=r"."):
        JSON.unpack(b'{"a":' + raw + b"}")


contents = st.one_of(
    st.none(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(string.printable),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(string.ascii_letters), st.integers(), max_size=2),
    st.sampled_from([[[]], [1e300]]),
)


@quick
@given(st.sampled_from(TAGS), contents)
@example("decimal", "x")
@example("uuid", 5)
@example("set", [[]])
@example("timedelta", [10**18])
@example("datetime", ["2026-01-01T00:00:00", 0, 5])
@example("datetime", ["2026-01-01T00:00:00", 0, "../../etc/passwd"])
@example("dict", [])
@example("tuple", 5)
@example("bytes", "é")
def test_st_2_a_tag_with_content_of_another_kind_is_a_value_error(tag, content):
    raw = json.dumps({f"${tag}": content}).encode()
    with suppress(ValueError):
        JSON.loads(raw)


@quick
@given(st.binary())
def test_st_2_arbitrary_bytes_are_a_value_or_a_value_error(raw):
    with suppress(ValueError):
        JSON.loads(raw)


@pytest.mark.parametrize("depth", [100, 450, 1000])
def test_st_2_tagged_data_of_any_depth_is_a_value_or_a_value_error(depth):
    raw = b"[" * depth + b'{"$tuple":[]}' + b"]" * depth
    with suppress(ValueError):
        JSON.loads(raw)


@pytest.mark.parametrize("raw", [b"5", b"null", b"[]", b'"x"', b"true", b'[{"$tuple":[]}]', b'"{\\"$"'])
def test_st_2_the_top_level_of_a_session_is_an_object(raw):
    """A signed ``5`` made another library raise in every request that carried it."""
    with pytest.raises(ValueError, match=r"."):
        JSON.unpack(raw)


# -- the fast way and the slow way agree ----------------------------------------------------------


@quick
@given(st.dictionaries(keys, values, max_size=4))
def test_what_was_packed_comes_back_whether_plain_or_not(fields):
    plain = all(map(JSON.admit, fields.values()))
    slow = JSON.pack(fields, plain=False)
    assert exact(JSON.unpack(slow)[0]) == exact(fields)
    if plain:
        assert JSON.pack(fields, plain=True) == slow


@quick
@given(values)
def test_admit_tells_plain_json_from_what_needs_tags(value):
    if JSON.admit(value):
        assert exact(orjson.loads(orjson.dumps(value))) == exact(value)
        assert JSON.unpack(JSON.pack({"k": value}, plain=True)) == ({"k": value}, True)
    else:
        assert b'{"$' in JSON.dumps(value)


@quick
@given(st.dictionaries(keys, values, max_size=3))
def test_unpack_never_calls_tagged_data_plain(fields):
    """A session that came as plain and is written unchanged is packed the fast way."""
    back, plain = JSON.unpack(JSON.pack(fields, plain=False))
    if plain:
        assert JSON.pack(back, plain=True) == JSON.pack(fields, plain=False)


@pytest.mark.parametrize("fields", [{"\ud800": 1}, {1: 1}, {"k": "\ud800"}])
def test_what_json_cannot_hold_is_a_type_error_on_the_fast_way_too(fields):
    with pytest.raises(TypeError):
        JSON.pack(fields, plain=True)


# -- serializers are values -----------------------------------------------------------------------


def test_all_json_serializers_are_equal():
    assert JsonSerializer() == JSON
    assert hash(JSON) == hash(JsonSerializer())
    assert object() != JSON
    assert isinstance(JSON, Serializer)


@quick
@given(hashable)
def test_what_is_called_immutable_cannot_change_in_place(value):
    assume(type(value) in IMMUTABLE)
    hash(value)
    for kind in (list, dict, set, bytearray, tuple):
        assert kind not in IMMUTABLE


class Own:
    """A serializer of the user's."""

    def __init__(self, back=None):
        self.back = back

    def dumps(self, value):
        return json.dumps(value).encode()

    def loads(self, data):
        return json.loads(data) if self.back is None else self.back


def test_a_serializer_of_the_users_is_asked_for_every_value_and_all_fields():
    fields = CustomFields(Own())
    assert fields.admit({"a": 1}) is False
    with pytest.raises(TypeError):
        fields.admit(object())
    raw = fields.pack({"a": [1]}, plain=True)
    assert b'{"a": [1]}' in raw
    for blanks in (b"", b" ", b"  "):
        assert fields.unpack(raw + blanks) == ({"a": [1]}, False)


@pytest.mark.parametrize("back", [5, [], "x", [("a", 1)]])
def test_a_serializer_that_gives_back_no_dict_is_a_type_error(back):
    with pytest.raises(TypeError, match="gave back"):
        CustomFields(Own(back)).unpack(CustomFields(Own()).pack({}, plain=False))


def test_un_1_no_key_of_the_application_reaches_a_field_of_ours():
    site = Site(clocked()[0])
    names = [
        "id",
        "handle",
        "parent",
        "created",
        "absolute",
        "exp",
        "iat",
        "auth_time",
        "authenticated",
        "subject",
        "s",
        "e",
    ]
    site.visit(lambda session: session.update(dict.fromkeys(names, 0)))
    before = site.visit(lambda session: (session.id, session.handle, session.expires_in, session.subject))
    site.visit(lambda session: session.update(dict.fromkeys(names, "forged")))
    after = site.visit(lambda session: (session.id, session.handle, session.expires_in, session.subject))
    assert after == before
    assert site.visit(lambda session: (dict(session), session.fresh_within(10**9))) == (
        dict.fromkeys(names, "forged"),
        False,
    )


@pytest.mark.parametrize(
    "raw",
    [b'{"a":', b"{}}", b'{"a":[]}', b'{"a":{"b":1}}', b'{"a":{"$bytes":"YQ=="}}', b'{"a":"[text]"}', b'{"a":"{text}"}'],
)
def test_only_fields_that_cannot_change_in_place_are_shared(raw):
    assert JSON.shared(raw) is None


@pytest.mark.parametrize(("number", "shared"), [(0, True), (1, True), (32, True), (33, False)])
def test_only_few_fields_are_shared(number, shared):
    fields = dict(zip(map(str, range(number)), cycle([1, -0.5, "text", True, None, 1 << 63]), strict=False))
    assert JSON.shared(JSON.pack(fields, plain=True)) == (fields if shared else None)
