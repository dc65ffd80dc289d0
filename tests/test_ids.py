"""Identifiers: where their randomness comes from, what they look like, and what may be one."""

import ast
import base64
import os
import re
import secrets
import subprocess
import sys
import threading
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SECRET, SOAK, Site, clocked, environ, plain_app, run

import sessiontree
from sessiontree import Handler, NoID, NoSession, with_id_generator
from sessiontree.handlers import ids
from sessiontree.handlers.ids import generated_id, handle_bytes, handle_text, new_handle, new_id, uuid4, uuid7

PACKAGE = Path(sessiontree.__file__).parent
MODULES = [
    path
    for folder in (".", "handlers", "stores", "caches")
    for path in sorted((PACKAGE / folder).glob("*.py"))
]  # fmt: skip
HOSTILE = [
    "..", "../x", "..poc", "/etc/passwd", "\\\\host\\share", "C:", "a/b", "%2e%2e", "%00", "\uff1a", "\ufb01", "\u212a",
    "\u00b2", "\u0663", "\n", "x\n", "\r\nSet-Cookie: a=b", "*", "{}", "' or 1=1 --", "\ud800", "\ufeff", "a" * 100_000,
    "null", "None", "undefined", "[]", "0", "-1", "true", "v1", "v1.", "v1..", ".", "...",
]  # fmt: skip


# -- randomness -----------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Record every read of randomness through ``secrets``, the size and what it gave."""
    record: list[tuple[int, bytes]] = []
    draw = secrets.token_bytes

    def token_bytes(size=None):
        raw = draw(size)
        record.append((size, raw))
        return raw

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    return record


def test_id_1_an_id_is_32_fresh_bytes_of_the_system_and_nothing_else(drawn):
    made = new_id()
    [(size, raw)] = drawn
    assert size == 32
    assert base64.urlsafe_b64decode(made + "=") == raw


def test_id_1_a_handle_is_20_fresh_bytes_of_the_system_and_nothing_else(drawn):
    made = new_handle()
    assert drawn == [(20, made)]


def test_id_1_a_session_draws_its_id_and_its_handle_of_their_own(drawn):
    site = Site(clocked()[0])
    made = site.visit(lambda session: (session.update(a=1), session.id, session.handle))
    by_size = {size: raw for size, raw in drawn if size in (20, 32)}
    assert base64.urlsafe_b64decode(made[1] + "=") == by_size[32]
    assert made[2] == handle_text(by_size[20])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_id_1_no_module_imports_a_weak_source_of_randomness(path):
    """Uuid serves the seed's generators in ids.py and a value type in the serializer, nothing else."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.partition(".")[0])
    if path.parent.name in {"conformance", "bench"}:
        imported -= {"random"}  # A load, or a walk, that a seed makes again; nothing drawn there is a secret.
    assert not imported & {"random", "numpy", "faker"}
    if path.relative_to(PACKAGE).as_posix() not in {"handlers/ids.py", "serializer.py"}:
        assert "uuid" not in imported


def test_id_1_ids_are_unique_and_every_bit_of_them_is_even():
    number = 1_000_000 // 20 * SOAK
    made = {new_id() for _ in range(number)}
    assert len(made) == number
    raw = b"".join(base64.urlsafe_b64decode(one + "=") for one in made)
    assert len(raw) == 32 * number
    # Chi-square over byte values, 255 degrees of freedom: 400 is passed once in 10^7 runs.
    expected = len(raw) / 256
    assert sum((count - expected) ** 2 / expected for count in Counter(raw).values()) < 400
    for place in range(32):
        column = raw[place::32]
        for bit in range(8):
            ones = sum(count for value, count in Counter(column).items() if value >> bit & 1)
            assert abs(ones - number / 2) < 6 * (number / 4) ** 0.5


def gathered(make, threads: int, number: int) -> list[str]:
    """Make this many in each of several threads."""
    made: list[list[str]] = [[] for _ in range(threads)]

    def work(mine):
        mine += [make() for _ in range(number)]

    workers = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [one for mine in made for one in mine]


def forked(work) -> str:
    """Run the work in a forked child and return the text that it gave."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as out:
                out.write(work())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as out:
        text = out.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return text


def test_id_2_ids_are_unique_across_forks_and_threads():
    number = 10_000 // 20 * SOAK
    new_id()
    made = gathered(new_id, 8, number)
    for _ in range(8):
        made += forked(lambda: " ".join(gathered(new_id, 8, number // 8))).split()
    assert len(made) == 8 * number + 8 * 8 * (number // 8)
    assert len(set(made)) == len(made)


def test_id_2_ids_are_unique_across_spawned_processes():
    code = "from sessiontree.handlers.ids import new_id; print(*[new_id() for _ in range(200)])"
    made = [
        one
        for _ in range(2)
        for one in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    ]
    assert len(set(made)) == len(made) == 400


def test_id_2_the_module_keeps_no_state_between_ids():
    before = {name: repr(value) for name, value in vars(ids).items() if not name.startswith("__")}
    gathered(new_id, 2, 10)
    new_handle()
    uuid7()
    assert {name: repr(value) for name, value in vars(ids).items() if not name.startswith("__")} == before


# -- form -----------------------------------------------------------------------------------------


def test_id_3_an_id_has_one_length_and_one_alphabet():
    for _ in range(200):
        made = new_id()
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", made, re.ASCII)
        assert base64.urlsafe_b64encode(base64.urlsafe_b64decode(made + "=")).decode() == made + "="


@settings(deadline=None)
@given(st.binary(min_size=20, max_size=20))
def test_a_handle_is_shown_as_32_characters_of_lower_case_base32(raw):
    text = handle_text(raw)
    assert re.fullmatch(r"[a-z2-7]{32}", text, re.ASCII)
    assert base64.b32decode(text.upper()) == raw
    assert handle_bytes(text) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 31,
        "a" * 33,
        "A" * 32,
        "a" * 31 + "1",
        "a" * 31 + "=",
        "a" * 31 + chr(0x661),
        "a" * 31 + chr(0x212A),
        " " * 32,
        "a" * 32 + "\n",
        "0x" + "a" * 30,
        "a_" * 16,
        "+" + "a" * 31,
        b"a" * 32,
        None,
        7,
    ],
    ids=repr,
)
def test_what_no_handle_looks_like_is_refused(text):
    with pytest.raises(NoSession, match="32 characters"):
        handle_bytes(text)


def test_uuid4_is_one():
    made = uuid.UUID(uuid4())
    assert (made.version, made.variant) == (4, uuid.RFC_4122)
    assert uuid4() != uuid4()


def test_uuid7_is_one_and_orders_by_time(monkeypatch):
    for stamp in (0, 1, 1_893_456_000_000, (1 << 48) - 1):
        monkeypatch.setattr(ids.SystemClock, "now", lambda self, stamp=stamp: stamp)
        text = uuid7()
        made = uuid.UUID(text)
        assert str(made) == text
        assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, stamp)


def test_id_1_uuid7_draws_74_bits_beside_its_time():
    """Two of one millisecond share nothing but the time, the version and the variant."""
    ones, zeros = 0, 0
    for _ in range(300):
        value = uuid.UUID(uuid7()).int & (1 << 80) - 1
        ones, zeros = ones | value, zeros | ~value
    free = ones & zeros & (1 << 80) - 1
    assert free.bit_count() == 74


# -- what may be an id ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    ["", None, 5, b"id", ["id"], True, object(), type("Sub", (str,), {})("id"), "\ud800", "x" * 256, "\u00e9" * 128],
)
def test_id_3_what_no_id_can_be_is_refused_as_no_id(bad):
    with pytest.raises(NoID, match=r"mend|shorten"):
        generated_id(lambda: bad)


@pytest.mark.parametrize("good", ["x", "x" * 255, "\u00e9" * 127, "\0", "\n", " ", "a/b", "../x"])
def test_id_3_any_other_text_is_an_id_and_comes_back_as_it_was(good):
    assert generated_id(lambda: good) == good
    site = Site(clocked("visitor", with_id_generator(lambda: good))[0])
    assert site.visit(lambda session: (session.update(a=1), session.id)[1]) == good
    assert site.visit(lambda session: session.id) == good


@pytest.mark.parametrize("make", [uuid4, uuid7, new_id])
def test_every_generator_we_offer_serves_a_handler(make):
    site = Site(clocked("visitor", with_id_generator(make))[0])
    first = site.visit(lambda session: (session.update(a=1), session.id)[1])
    assert site.visit(lambda session: session.id) == first
    assert len(first) == len(make())


def test_id_4_an_id_generator_that_fails_is_an_error_of_its_own_and_begins_no_session():
    site = Site(clocked("visitor", with_id_generator(lambda: ""))[0])

    def act(session):
        with pytest.raises(NoID):
            session["a"] = 1
        return dict(session)

    assert site.visit(act) == {}
    assert site.answer.cookies == []


# -- ids from the client --------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(value)[:24])
def test_id_4_a_hostile_cookie_is_an_anonymous_request_and_never_an_exception(value):
    site = Site(clocked()[0])
    assert site.visit(
        lambda session: (session.id, session.new, dict(session)), HTTP_COOKIE=f"__Host-visitor={value}"
    ) == (
        None,
        True,
        {},
    )
    assert site.answer.code == 200
    assert site.answer.cookies == []


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(value)[:24])
def test_id_3_what_is_no_token_reaches_no_serializer(value):
    """Refused by its form or its MAC, before anything of it is looked up or parsed."""

    class Spy:
        calls = 0

        def dumps(self, value):
            return b"{}"

        def loads(self, data):
            Spy.calls += 1
            return {}

    handler = Handler("visitor", SECRET, sessiontree.with_serializer(Spy()))
    app = handler.link(plain_app(handler.loaded))
    for cookie in (value, f"v1.{handler.config.keys.ids[0]}.{value}"):
        assert run(app, environ(HTTP_COOKIE=f"__Host-visitor={cookie}")).text == "False"
    assert Spy.calls == 0


@pytest.mark.parametrize("name", ["visitor", "user", "Admin.area"])
def test_id_9_the_default_cookie_name_says_what_the_session_is_and_not_what_made_it(name):
    site = Site(clocked(name)[0])
    site.visit(lambda session: session.update(a=1))
    [line] = site.answer.cookies
    assert line.startswith(f"__Host-{name}=")


def test_id_9_no_header_names_the_library():
    site = Site(clocked()[0])
    site.visit(lambda session: session.update(a=1))
    shown = str(site.answer.headers).lower()
    assert "sessiontree" not in shown
    assert "python" not in shown
    assert not {name.lower() for name, _ in site.answer.headers} & {"server", "x-powered-by", "via"}


def test_id_9_the_cookie_name_is_yours_to_choose():
    site = Site(clocked("visitor", sessiontree.with_cookie(sessiontree.CookiePolicy(name="__Host-s")))[0])
    site.visit(lambda session: session.update(a=1))
    assert site.answer.cookies[0].startswith("__Host-s=")
