"""Tokens: verified before anything is parsed, one spelling each, one purpose each, no fallback, unchanged for ever."""

import ast
import base64
import binascii
import hashlib
import hmac
import inspect
import json
import os
import random
import re
import string
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import cryptography_vectors
import orjson
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from hypothesis import given, settings
from hypothesis import strategies as st
from support import OTHER_SECRET, SECRET, SOAK, Answer, Site, environ, plain_app, run

import sessiontree
from sessiontree import (
    BadCookie,
    Csrf,
    Handler,
    KeyRing,
    RejectedError,
    with_absolute_timeout,
    with_clock,
    with_encryption,
    with_events,
    with_idle_timeout,
    with_logger,
    with_max_age,
    with_serializer,
)
from sessiontree.errors import CookieTooLarge
from sessiontree.handlers import CookieCodec, codec, encoding
from sessiontree.handlers import token as token_module
from sessiontree.handlers.codec import LARGEST_TOKEN, SealedTokens, SignedTokens, token_codec
from sessiontree.handlers.remembered import Remembered
from sessiontree.serializer import IMMUTABLE, JsonSerializer
from sessiontree.testing import FakeClock

PACKAGE = Path(sessiontree.__file__).parent
GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_tokens.json").read_text())
BASE64 = string.ascii_letters + string.digits + "+/"
JSON = JsonSerializer()
NOW = FakeClock().now()

quick = settings(deadline=None, max_examples=60)
both = pytest.mark.parametrize("sealed", [False, True], ids=["signed", "sealed"])


@pytest.fixture(params=["binascii", "pybase64"])
def base64_of_choice(request, monkeypatch):
    """Run a test once with each of the two implementations of base64."""
    if request.param == "pybase64":
        pytest.importorskip("pybase64", reason="the speed extra is not installed")
    encode, decode = getattr(encoding, f"_{request.param}")()
    monkeypatch.setattr(codec, "encode", encode)
    monkeypatch.setattr(codec, "decode", decode)


def tokens(*, sealed, keys=SECRET, purpose="session", path="visitor", clock=None):
    return token_codec(KeyRing.of(keys), purpose, path, sealed=sealed, clock=clock or FakeClock())


def opened(made, token) -> bytes:
    """Return the content without the blanks that may stand behind it."""
    return made.open(token).rstrip(b" ")


def comes_back(made, content) -> bool:
    """Seal and open; up to two blanks may stand behind the content."""
    back = made.open(made.seal(content))
    return back[: len(content)] == content and back[len(content) :] in (b"", b" ", b"  ")


def refused(made, token) -> bool:
    try:
        made.open(token)
    except BadCookie as error:
        return str(error) == "The token does not verify."
    return False


def body_of(token: str) -> bytes:
    return base64.b64decode(token.rpartition(".")[2], validate=True)


def with_body(token: str, body: bytes) -> str:
    """Return the token with another body, padded with ``=`` if it must be."""
    return token.rpartition(".")[0] + "." + base64.b64encode(body).decode()


# -- the format, written a second time from its description ---------------------------------------


def subkey(purpose: str, path: str, secret: bytes = SECRET, version: str = "v1") -> bytes:
    fields = [field.encode() for field in (version, purpose, "", path)]
    info = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\1", "sha256")


def padded(content: bytes, overhead: int) -> bytes:
    """Add blanks so that the whole body is a multiple of three bytes."""
    return content + b" " * (-(len(content) + overhead) % 3)


def signed_by_hand(content: bytes, *, path="visitor", cut=32, version="v1", key=None) -> str:
    """Make a signed token of one's own, its tag cut to this many bytes."""
    content = padded(content, cut)
    mac = hmac.digest(key or subkey("session/signed", path, version=version), content, "sha256")
    return f"{version}.{KeyRing(SECRET).ids[0]}.{base64.b64encode(content + mac[:cut]).decode()}"


def epoch_key(epoch: bytes, path: str) -> bytes:
    master = subkey("session/sealed", path)
    info = b"".join(len(field).to_bytes(4, "big") + field for field in (b"epoch", epoch.hex().encode()))
    return hmac.digest(hmac.digest(bytes(32), master, "sha256"), info + b"\1", "sha256")


def sealed_by_hand(content: bytes, *, path="visitor", cut=16, place=b"\0\1", epoch=NOW // 3_600_000) -> str:
    """Make a sealed token of one segment, its tag cut to this many bytes."""
    content = padded(content, 4 + 12 + cut)
    name, nonce = epoch.to_bytes(4, "big"), bytes(range(12))
    encryptor = Cipher(AES(epoch_key(name, path)), GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(place)
    text = encryptor.update(content) + encryptor.finalize()
    return f"v1.{KeyRing(SECRET).ids[0]}.{base64.b64encode(name + nonce + text + encryptor.tag[:cut]).decode()}"


@pytest.mark.parametrize("content", [b"", b"x", b"content", bytes(range(256)) * 4])
def test_the_formats_are_what_their_description_says(content):
    assert opened(tokens(sealed=False), signed_by_hand(content)) == content
    assert opened(tokens(sealed=True), sealed_by_hand(content)) == content
    assert tokens(sealed=False).seal(content) == signed_by_hand(content)


def test_a_long_sealed_token_is_two_segments_under_a_pair_of_nonces():
    content = bytes(range(250)) * 11
    raw = body_of(tokens(sealed=True).seal(content))
    epoch, first, rest = raw[:4], raw[4:16], raw[16:]
    second = first[:-1] + bytes([first[-1] ^ 1])
    cipher = AESGCM(epoch_key(epoch, "visitor"))
    plain = cipher.decrypt(first, rest[:2047], b"\0\2") + cipher.decrypt(second, rest[2047:], b"\1\2")
    assert plain == padded(content, 4 + 12 + 16 + 16)


# -- one token, one content -----------------------------------------------------------------------


@both
@pytest.mark.usefixtures("base64_of_choice")
def test_every_size_of_content_comes_back(sealed):
    made = tokens(sealed=sealed)
    for size in [*range(0, 3000, 1 if SOAK > 1 else 7), *range(2005, 2060), *range(2980, 3010)]:
        content = os.urandom(8) * (size // 8 + 1)
        token = made.seal(content[:size])
        assert re.fullmatch(r"v1\.[a-z2-7]{8}\.(?:[A-Za-z0-9+/]{4})+", token)
        assert token.startswith(made.current)
        assert comes_back(made, content[:size])


@both
@quick
@given(content=st.binary(max_size=200))
def test_any_content_comes_back(sealed, content):
    made = tokens(sealed=sealed)
    assert comes_back(made, content)


@both
def test_one_codec_serves_many_threads(sealed):
    made, wrong = tokens(sealed=sealed), []

    def work(number):
        for turn in range(100):
            content = b"%d %d" % (number, turn) * (number * 60 + 1)
            if not comes_back(made, content):
                wrong.append(content)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_sealed_token_shows_nothing_and_is_another_text_each_time():
    made = tokens(sealed=True)
    one, other = made.seal(b"content" * 9), made.seal(b"content" * 9)
    assert body_of(one)[16:] != body_of(other)[16:]
    assert b"content" not in body_of(one)


# -- CR-1: verified before anything is parsed -----------------------------------------------------


@both
@pytest.mark.parametrize("size", [0, 40, 2500])
@pytest.mark.usefixtures("base64_of_choice")
def test_cr_1_every_flipped_bit_is_refused(sealed, size):
    made = Remembered(tokens(sealed=sealed), bytes)
    token = made.seal(b"\0" * size)
    made.open(token)  # So that the memory of good tokens is asked too.
    places = range(len(token)) if size < 100 or SOAK > 1 else [*range(40), *range(40, len(token), 97)]
    for place, bit in product(places, range(8)):
        letter = chr(ord(token[place]) ^ 1 << bit)
        assert refused(made, token[:place] + letter + token[place + 1 :]), (place, bit)


@both
@pytest.mark.parametrize("size", [40, 2500])
def test_cr_1_every_flipped_bit_of_the_body_is_refused(sealed, size):
    made = tokens(sealed=sealed)
    token = made.seal(b"\0" * size)
    made.open(token)
    body = body_of(token)
    places = range(len(body)) if size < 100 or SOAK > 1 else [*range(30), *range(30, len(body), 53), *range(-40, 0)]
    for place, bit in product(places, range(8)):
        changed = bytearray(body)
        changed[place] ^= 1 << bit
        assert refused(made, with_body(token, bytes(changed))), (place, bit)


@pytest.fixture
def parsed(monkeypatch):
    """Record everything that is parsed out of tokens."""
    seen = []

    def spy(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments, **named: seen.append(name) or original(*arguments, **named))

    spy(JsonSerializer, "loads")
    spy(JsonSerializer, "unpack")
    spy(JsonSerializer, "shared")
    spy(token_module, "_read_rest")
    return seen


def broken(token: str) -> list[str]:
    """Return texts that hold all of the token's content and do not verify."""
    head, _, body = token.rpartition(".")
    raw = body_of(token)
    return [
        f"{head}.{body[:-4]}{'AAAA' if body[-4:] != 'AAAA' else 'BBBB'}",
        with_body(token, raw[:-1] + bytes([raw[-1] ^ 1])),
        with_body(token, raw + bytes(3)),
        f"{head[:-1]}{'a' if head[-1] != 'a' else 'b'}.{body}",
        body,
        base64.b64encode(b'{"user":"admin"}').decode(),
    ]


@both
def test_cr_1_nothing_is_parsed_before_the_token_verifies(sealed, parsed):
    options = [with_encryption()] if sealed else []
    handler = Handler("visitor", SECRET, *options)
    site = Site(handler)
    site.visit(lambda session: session.update(user="zoe"))
    token = site.browser.jar.get("__Host-visitor")
    parsed.clear()
    for bad in broken(token):
        assert site.visit(dict, site.another_browser(), HTTP_COOKIE=f"__Host-visitor={bad}") == {}
    assert parsed == []
    assert site.visit(dict) == {"user": "zoe"}
    assert "shared" in parsed


@both
def test_cr_1_nothing_is_parsed_by_the_codec_alone_before_the_text_verifies(sealed, parsed):
    made = CookieCodec("prefs", SECRET, encrypted=sealed)
    for bad in broken(made.encode({"user": "zoe"})):
        with pytest.raises(BadCookie):
            made.decode(bad)
    assert parsed == []


# -- what a token says is read once ---------------------------------------------------------------


def cookie_of(site: Site) -> str:
    return f"__Host-visitor={site.browser.jar.get('__Host-visitor')}"


ONCE = {"user": "zoe", "visits": 7, "ratio": 0.5, "admin": False, "note": None}


@both
def test_what_a_token_says_is_parsed_once_for_all_requests_that_bring_it(sealed, parsed):
    site = Site(Handler("visitor", SECRET, *([with_encryption()] if sealed else [])))
    site.visit(lambda session: session.update(ONCE))
    parsed.clear()
    assert [site.visit(dict) for _ in range(5)] == [ONCE] * 5
    assert parsed == ["shared"]


@both
def test_no_request_sees_what_another_one_did_to_the_values_of_the_same_token(sealed):
    site = Site(Handler("visitor", SECRET, *([with_encryption()] if sealed else [])))
    site.visit(lambda session: session.update(ONCE))
    cookie = cookie_of(site)

    def spoil(session):
        session["user"] = "eve"
        session["extra"] = 1
        del session["visits"]

    for act in (spoil, lambda session: session.clear(), lambda session: session.revoke()):
        site.visit(act, site.another_browser(), HTTP_COOKIE=cookie)
        assert site.visit(dict, site.another_browser(), HTTP_COOKIE=cookie) == ONCE


@pytest.mark.parametrize(
    "value",
    [[1], {"a": 1}, {1, 2}, (1, [2]), [], {}, "a [bracket]", "a {brace}", b"bytes", timedelta(1)],
    ids=repr,
)
def test_values_that_could_change_in_place_are_each_requests_own(value):
    site = Site(Handler("visitor", SECRET))
    site.visit(lambda session: session.update(value=value, plain=1))
    cookie = cookie_of(site)
    kept = []
    for _ in range(2):
        site.visit(lambda session: kept.append(session["value"]), site.another_browser(), HTTP_COOKIE=cookie)
    one, other = kept
    assert one == other == value
    assert type(one) in IMMUTABLE or one is not other
    if isinstance(one, list):
        one.append("spoilt")
        assert site.visit(lambda session: session["value"], site.another_browser(), HTTP_COOKIE=cookie) == value


def test_many_values_are_not_kept_parsed(parsed):
    site = Site(Handler("visitor", SECRET))
    many = {f"k{number}": number for number in range(33)}
    site.visit(lambda session: session.update(many))
    parsed.clear()
    assert site.visit(dict) == site.visit(dict) == many
    assert parsed == ["shared", "unpack", "unpack"]


def test_values_of_a_serializer_of_the_users_are_each_requests_own():
    class Lists:
        def dumps(self, value):
            return orjson.dumps(value)

        def loads(self, data):
            return {key: [value] for key, value in orjson.loads(data).items()}

    site = Site(Handler("visitor", SECRET, with_serializer(Lists())))
    site.visit(lambda session: session.update(a=1))
    cookie = cookie_of(site)
    for _ in range(3):
        assert site.visit(lambda session: session["a"].append(2) or session["a"], HTTP_COOKIE=cookie) == [1, 2]


# -- CR-3, CR-4, CR-5: the primitives -------------------------------------------------------------


@pytest.mark.parametrize("cut", [31, 30, 24, 16, 10, 4, 1, 0])
def test_cr_3_a_cut_tag_is_refused(cut):
    made = tokens(sealed=False)
    assert opened(made, signed_by_hand(b"content")) == b"content"
    assert refused(made, signed_by_hand(b"content", cut=cut))
    # Also where the rest of the content would be long enough to stand for the missing bytes.
    assert refused(made, signed_by_hand(b"content" * 30, cut=cut))


@pytest.mark.parametrize("algorithm", ["sha1", "md5", "sha224", "sha384", "sha512"])
def test_cr_3_a_tag_of_another_hash_is_refused(algorithm):
    content = padded(b"content", 32)
    mac = hmac.digest(subkey("session/signed", "visitor"), content, algorithm)
    for tag in (mac, mac[:32], mac.ljust(32, b"\0")):
        token = with_body(tokens(sealed=False).current, content + tag)
        assert refused(tokens(sealed=False), token)


@cache
def gcm_vectors(name: str) -> list[dict[str, str]]:
    """Return the vectors of 256-bit keys with our sizes of nonce and tag: 96 and 128 bits."""
    with cryptography_vectors.open_vector_file(f"ciphers/AES/GCM/{name}.rsp", "r") as file:
        sections = re.split(r"\n(?=\[Keylen)", file.read())
    ours = [section for section in sections if "[IVlen = 96]" in section and "[Taglen = 128]" in section]
    blocks = [block for section in ours for block in section.split("\n\n") if "Key = " in block]
    return [{**dict(re.findall(r"^(\w+) = ?(\w*)$", block, re.MULTILINE)), "fail": "FAIL" in block} for block in blocks]


def test_cr_4_sealing_is_that_of_the_published_vectors():
    vectors = gcm_vectors("gcmEncryptExtIV256")
    assert len(vectors) > 100
    for one in vectors:
        key, nonce, plain, more, text, tag = (
            bytes.fromhex(one[name]) for name in ("Key", "IV", "PT", "AAD", "CT", "Tag")
        )
        assert codec.AESGCM(key).encrypt(nonce, plain, more) == text + tag


def test_cr_4_opening_is_that_of_the_published_vectors():
    vectors = gcm_vectors("gcmDecrypt256")
    assert sum(one["fail"] for one in vectors) > 50
    for one in vectors:
        cipher = codec.AESGCM(bytes.fromhex(one["Key"]))
        nonce, text, more = (bytes.fromhex(one[name]) for name in ("IV", "CT", "AAD"))
        text += bytes.fromhex(one["Tag"])
        if one["fail"]:
            with pytest.raises(InvalidTag):
                cipher.decrypt(nonce, text, more)
        else:
            assert cipher.decrypt(nonce, text, more) == bytes.fromhex(one["PT"])


def test_cr_4_the_key_has_256_bits(monkeypatch):
    sizes = []
    monkeypatch.setattr(sessiontree.keys, "AESGCM", lambda key: sizes.append(len(key)) or AESGCM(key))
    made = tokens(sealed=True)
    made.open(made.seal(b"content"))
    assert set(sizes) == {32}


@pytest.mark.parametrize(
    ("part", "start", "end"), [("epoch", 0, 4), ("nonce", 4, 16), ("text", 16, -16), ("tag", -16, None)]
)
def test_cr_4_a_change_of_any_part_is_refused(part, start, end):
    made = tokens(sealed=True)
    token = made.seal(b"content " * 8)
    body = body_of(token)
    for change in (
        bytes.swapcase,
        lambda raw: raw[::-1],
        lambda raw: bytes(len(raw)),
        os.urandom,
        lambda raw: raw[1:] + raw[:1],
    ):
        changed = change(body[start:end]) if change is not os.urandom else os.urandom(len(body[start:end]))
        if changed != body[start:end]:
            assert refused(made, with_body(token, body[:start] + changed + (b"" if end is None else body[end:])))


@pytest.mark.parametrize("place", [b"", b"\0", b"\0\2", b"\1\1", b"\1\2", b"\0\0", b"\0\1\0"])
def test_cr_4_other_associated_data_is_refused(place):
    assert refused(tokens(sealed=True), sealed_by_hand(b"content", place=place))


@pytest.mark.parametrize("cut", range(16))
def test_cr_5_a_short_tag_made_with_the_right_key_is_refused(cut):
    made = tokens(sealed=True)
    assert opened(made, sealed_by_hand(b"content")) == b"content"
    assert refused(made, sealed_by_hand(b"content", cut=cut))
    assert refused(made, sealed_by_hand(b"content" * 9, cut=cut))


# -- CR-6: nonces ---------------------------------------------------------------------------------


def nonces(number: int, made: SealedTokens | None = None) -> list[str]:
    made = made or tokens(sealed=True)
    return [body_of(made.seal(b"content"))[4:16].hex() for _ in range(number)]


def test_cr_6_no_nonce_repeats():
    number = 100_000 // 20 * SOAK
    assert len(set(nonces(number))) == number


def test_cr_6_no_nonce_repeats_across_codecs_and_threads():
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(nonces(700))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(made) == 2800


def test_cr_6_no_nonce_repeats_after_a_fork():
    """The pool that the parent has begun is not the child's to use."""
    made = nonces(10)
    shares = []
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, " ".join(nonces(400)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as out:
            shares.append(out.read().split())
        os.waitpid(child, 0)
    made += nonces(400)
    assert [len(share) for share in shares] == [400] * 3
    every = [*made, *(one for share in shares for one in share)]
    assert len(set(every)) == len(every)


def test_cr_6_the_pool_is_random_bytes_of_the_system(monkeypatch):
    monkeypatch.setattr(encoding, "_nonces", [])
    monkeypatch.setattr(encoding.os, "urandom", lambda size: bytes(index // 12 % 256 for index in range(size)))
    assert len({encoding.nonce() for _ in range(200)}) == 200


@pytest.mark.parametrize(
    "call",
    [
        SealedTokens.sealer,
        SealedTokens(KeyRing(SECRET), "purpose", "path", FakeClock()).seal,
        SealedTokens.__init__,
        CookieCodec.encode,
        CookieCodec.__init__,
        encoding.nonce,
        with_encryption,
        token_codec,
    ],
)
def test_cr_6_nobody_can_pass_a_nonce(call):
    assert not {
        name for name in inspect.signature(call).parameters if "nonce" in name or "iv" in name or "salt" in name
    }


def test_cr_6_every_hour_has_a_key_of_its_own(monkeypatch):
    made_with = []
    monkeypatch.setattr(sessiontree.keys, "AESGCM", lambda key: made_with.append(key) or AESGCM(key))
    clock = FakeClock()
    made = tokens(sealed=True, clock=clock)
    old = []
    for _ in range(5):
        old += [made.seal(b"content"), made.seal(b"content")]
        clock.advance(3600)
    assert len(set(made_with) - {bytes(32)}) == 5
    assert [opened(made, token) for token in old] == [b"content"] * 10


@pytest.mark.parametrize("now", [-1, -3600, -0.001, -3601, 0])
def test_cr_6_a_clock_before_1970_never_seals_under_a_key_that_everyone_knows(now):
    made = tokens(sealed=True, clock=FakeClock(now))
    try:
        body = body_of(made.seal(b"content"))
    except Exception:  # noqa: BLE001 - a refusal to seal is an answer, whatever its type
        return
    assert opened(made, with_body(made.current, body)) == b"content"
    for start in (0, 4):
        with pytest.raises(InvalidTag):
            AESGCM(bytes(32)).decrypt(body[start : start + 12], body[start + 12 :], b"\0\1")


# -- the memory of tokens that verified ------------------------------------------------------------


def remembered(*, sealed: bool) -> Remembered[bytes]:
    return Remembered(tokens(sealed=sealed), bytes)


@both
def test_cr_1_a_token_that_verified_before_lends_its_trust_to_no_other(sealed):
    """Whatever is remembered, a text that shares any part with a good token is refused."""
    made = remembered(sealed=sealed)
    token = made.seal(b"content " * 30)
    for _ in range(3):
        assert made.open(token)
    for size in (1, 8, 16, 32, 40, 43, 44, 64, 100, len(token) - 1):
        for other in (
            token[-size:],
            token[:size],
            "A" * size + token[size:],
            token[:-size] + "A" * size,
            token + token[-size:],
        ):
            assert other == token or refused(made, other)
            assert other == token or refused(made, other)
    assert made.open(token)


@both
def test_cr_1_nor_does_one_that_verified_long_ago(sealed):
    """As many others pass in between as make a memory forget, generation by generation."""
    made = remembered(sealed=sealed)
    token = made.seal(b"content")
    made.open(token)
    forged = f"{made.current}AAAA{token[len(made.current) + 4 :]}"
    for _ in range(1200):
        made.open(made.seal(b"x" * 1000))
        assert refused(made, forged)
    assert opened(made, token) == b"content"


def held(made) -> int:
    """Return how many characters and bytes a codec's dicts hold."""
    values = [getattr(made, name) for name in made.__slots__]
    return sum(len(repr(value)) for value in values if type(value) is dict)


@both
def test_cr_15_what_is_remembered_is_bounded_and_nothing_forged_is(sealed):
    made = remembered(sealed=sealed)
    start = held(made)
    for number in range(1500):
        assert refused(made, f"{made.current}{number:01000}")
    assert held(made) == start
    for number in range(4500):
        made.open(made.seal(b"%01000d" % number))
        assert number % 500 or held(made) < 3 << 20


# -- CR-10: one key, one purpose ------------------------------------------------------------------


def test_cr_10_no_two_uses_share_a_key_and_none_uses_the_master(monkeypatch):
    derived, used = [], []
    derive = sessiontree.keys._hkdf
    monkeypatch.setattr(
        sessiontree.keys, "_hkdf", lambda *given: derived.append((given, derive(*given))) or derived[-1][1]
    )
    mac = codec.HMAC
    monkeypatch.setattr(codec, "HMAC", lambda key, *rest: used.append(key) or mac(key, *rest))
    monkeypatch.setattr(sessiontree.keys, "AESGCM", lambda key: used.append(key) or AESGCM(key))
    visitor = Handler("visitor", SECRET)
    user = visitor.spawn("user")
    for handler in (visitor, user, visitor.configure(with_encryption()), user.configure(with_encryption())):
        with pytest.raises(BadCookie, match="form"):
            handler.codec.open(handler.codec.seal(b"content"))
        Csrf(handler)
    for encrypted in (False, True):
        CookieCodec("visitor", SECRET, encrypted=encrypted).encode({})
    contexts = {info for (_, info), _ in derived}
    assert len({key for _, key in derived}) == len(set(derived)) >= len(contexts)
    assert len(used) >= 6
    assert SECRET not in used
    assert set(used) <= {key for _, key in derived}
    assert len({bytes(key) for key in used if used.count(key) == 1}) >= 4


# -- CR-12, CR-13: no choice and no fallback ------------------------------------------------------


@both
@pytest.mark.parametrize(
    "version", ["v0", "v2", "v10", "V1", "v", "", "none", "HS256", "alg", "*", "\0", "v1\0", " v1"]
)
def test_cr_12_the_token_chooses_no_algorithm(sealed, version):
    made = tokens(sealed=sealed)
    _, name, body = made.seal(b"content").split(".")
    assert refused(made, f"{version}.{name}.{body}")
    assert refused(made, f"{version}{name}.{body}")


def test_cr_12_a_tag_made_for_another_version_is_refused():
    token = signed_by_hand(b"content", version="v2")
    assert refused(tokens(sealed=False), token)
    assert refused(tokens(sealed=False), "v1" + token[2:])


def test_cr_12_a_token_without_tag_is_refused():
    for made in (tokens(sealed=False), tokens(sealed=True)):
        for body in (b"", b"content  ", bytes(3), bytes(12), bytes(18), bytes(30), bytes(33), bytes(48), bytes(63)):
            assert refused(made, made.current + base64.b64encode(body).decode())
        for text in ("", ".", "..", made.current, made.current.rstrip(".")):
            assert refused(made, text)


@pytest.mark.parametrize(("made_sealed", "read_sealed"), [(False, True), (True, False)])
def test_cr_13_signed_and_sealed_are_never_taken_for_each_other(made_sealed, read_sealed):
    assert refused(tokens(sealed=read_sealed), tokens(sealed=made_sealed).seal(b"content"))
    text = CookieCodec("prefs", SECRET, encrypted=made_sealed).encode({"a": 1})
    with pytest.raises(BadCookie):
        CookieCodec("prefs", SECRET, encrypted=read_sealed).decode(text)


def test_cr_13_with_encryption_nothing_weaker_is_read():
    clock = FakeClock()
    plain = Handler("visitor", SECRET, with_clock(clock))
    site = Site(plain)
    site.visit(lambda session: session.update(user="admin"))
    signed = site.browser.jar.get("__Host-visitor")
    sealed = Site(plain.configure(with_encryption()))
    raw = b'{"user":"admin"}'
    for value in [
        signed,
        raw.decode(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        f"v0.{signed[3:]}",
        with_body(signed, body_of(signed)[:-32]),
        sealed.handler.codec.current + base64.b64encode(raw + bytes(2)).decode(),
    ]:
        assert sealed.visit(dict, sealed.another_browser(), HTTP_COOKIE=f"__Host-visitor={value}") == {}
        assert sealed.answer.cookies == []


def test_cr_13_without_the_cryptography_package_nothing_starts():
    code = "import sys; sys.modules['cryptography'] = None; import sessiontree"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "cryptography" in done.stderr


# -- CR-14, CR-15, CR-16: rotation ----------------------------------------------------------------


@both
def test_cr_14_a_token_of_an_old_key_is_signed_anew_when_it_is_read(sealed):
    options = [with_clock(FakeClock()), *([with_encryption()] if sealed else [])]
    old = Handler("visitor", SECRET, *options)
    rolled = Handler("visitor", [OTHER_SECRET, SECRET], *options)
    new = Handler("visitor", OTHER_SECRET, *options)
    site = Site(old)
    site.visit(lambda session: session.update(user="zoe"))
    after = Site(rolled)
    after.browser.jar = site.browser.jar
    assert after.visit(dict) == {"user": "zoe"}
    [line] = after.answer.cookies
    assert line.startswith(f"__Host-visitor=v1.{KeyRing(OTHER_SECRET).ids[0]}.")
    assert after.visit(dict) == {"user": "zoe"}
    assert after.answer.cookies == []
    last = Site(new)
    last.browser.jar = after.browser.jar
    assert last.visit(dict) == {"user": "zoe"}


@both
def test_cr_14_a_removed_key_is_refused_at_once(sealed):
    old = tokens(sealed=sealed)
    token = old.seal(b"content")
    assert opened(tokens(sealed=sealed, keys=[OTHER_SECRET, SECRET]), token) == b"content"
    assert refused(tokens(sealed=sealed, keys=OTHER_SECRET), token)


@both
def test_cr_14_during_a_roll_out_every_node_takes_every_token(sealed):
    """Deploy [old, new], then [new, old]: at each step, nodes of two neighbouring rings serve one client."""
    steps = [[SECRET], [SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET], [OTHER_SECRET]]
    for one, other in pairwise(steps):
        a, b = tokens(sealed=sealed, keys=one), tokens(sealed=sealed, keys=other)
        shared = set(KeyRing(one).ids) & set(KeyRing(other).ids)
        for maker, reader in [(a, b), (b, a)]:
            token = maker.seal(b"content")
            if token.split(".")[1] in shared:
                assert opened(reader, token) == b"content"
    future = tokens(sealed=sealed, keys=[SECRET, OTHER_SECRET])
    assert future.seal(b"content").startswith(tokens(sealed=sealed).current)


@both
def test_cr_14_a_token_under_the_id_of_another_key_of_the_ring_is_refused(sealed):
    ring = [SECRET, OTHER_SECRET]
    made = tokens(sealed=sealed, keys=ring)
    token = made.seal(b"content")
    first, second = KeyRing(ring).ids
    assert refused(made, token.replace(first, second))


class Counting:
    """Counts the verifications of what it wraps."""

    def __init__(self, inner, counts):
        self._inner, self._counts = inner, counts

    def copy(self):
        return Counting(self._inner.copy(), self._counts)

    def verify(self, tag):
        self._counts.append("verify")
        return self._inner.verify(tag)

    def decrypt(self, *given):
        self._counts.append("decrypt")
        return self._inner.decrypt(*given)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@both
def test_cr_15_a_bad_token_costs_one_check_however_long_the_ring_is(sealed, monkeypatch):
    counts = []
    for module, name in ((codec, "HMAC"), (sessiontree.keys, "AESGCM")):
        kind = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, kind=kind: Counting(kind(*given), counts))
    ring = [bytes((number, *range(40, 80))) for number in range(50)]
    made = tokens(sealed=sealed, keys=ring)
    token = made.seal(b"content")
    counts.clear()
    assert refused(made, with_body(token, body_of(token)[:-1] + b"?"))
    assert len(counts) == 1
    assert refused(made, token.replace(token.split(".")[1], "aaaaaaaa"))
    assert refused(made, "junk")
    assert len(counts) == 1
    assert tokens(sealed=sealed, keys=ring[25:]).open(tokens(sealed=sealed, keys=ring[40]).seal(b"x")).rstrip() == b"x"
    assert len(counts) == 2


def epoch_keys(made: SealedTokens) -> int:
    return sum(len(each._kept) for each in made._keys.values())


def test_cr_15_forged_epochs_push_no_key_out_and_fill_nothing():
    made = tokens(sealed=True)
    token = made.seal(b"content")
    body = body_of(token)
    kept = epoch_keys(made)
    for epoch in range(0, 300_000, 200):
        assert refused(made, with_body(token, epoch.to_bytes(4, "big") + body[4:]))
    assert epoch_keys(made) == kept


def test_cr_15_the_keys_of_past_epochs_are_bounded():
    clock = FakeClock()
    made = tokens(sealed=True, clock=clock)
    token = made.seal(b"content")
    for _ in range(sessiontree.keys.KEPT_EPOCHS + 10):
        clock.advance(3600)
        made.seal(b"")
        assert epoch_keys(made) <= sessiontree.keys.KEPT_EPOCHS
    assert opened(made, token) == b"content"


def test_cr_16_two_formats_can_stand_side_by_side():
    """The version leads the token and is in every sub-key, so a next format shares nothing with this one."""
    ring = KeyRing(SECRET)
    assert ring.subkeys("session/signed", "visitor", form="v1") != ring.subkeys("session/signed", "visitor", form="v2")
    assert {tokens(sealed=sealed).current for sealed in (False, True)} == {f"v1.{ring.ids[0]}."}


@both
@pytest.mark.parametrize(("ahead", "opens"), [(0, True), (3600, True), (7200, False), (10**9, False)])
def test_tm_1_a_sealed_token_of_a_future_epoch_is_refused(sealed, ahead, opens):
    """A machine whose clock is an hour ahead is tolerated; signed tokens carry their times in the content."""
    theirs = FakeClock()
    theirs.advance(ahead)
    token = tokens(sealed=sealed, clock=theirs).seal(b"content")
    ours = tokens(sealed=sealed)
    if opens or not sealed:
        assert opened(ours, token) == b"content"
    else:
        assert refused(ours, token)


@pytest.mark.parametrize("epoch", [0, 1, 2**31, 2**32 - 1])
def test_tm_1_an_epoch_at_the_ends_of_its_range_is_judged(epoch):
    token = sealed_by_hand(b"content", epoch=epoch)
    if epoch <= NOW // 3_600_000 + 1:
        assert opened(tokens(sealed=True), token) == b"content"
    else:
        assert refused(tokens(sealed=True), token)


# -- TM-1, ST-2: verified, and still no session ---------------------------------------------------

VALUES = b'{"a":1}'


def content_of(*options, act=None) -> bytes:
    """Return what the token of a live session says, as far as its values and without them."""
    site = Site(Handler("visitor", SECRET, with_clock(FakeClock()), *options))
    site.visit(lambda session: (session.update(a=1), act and act(session)))
    content = site.handler.codec.open(site.browser.jar.get("__Host-visitor")).content.rstrip(b" ")
    assert content.endswith(VALUES)
    return content[: -len(VALUES)]


def visit_with(content: bytes, act=dict):
    """Make a request that carries this content under a valid signature."""
    site = Site(Handler("visitor", SECRET, with_clock(FakeClock())))
    result = site.visit(act, HTTP_COOKIE=f"__Host-visitor={tokens(sealed=False).seal(content)}")
    return result, site.answer


def test_a_session_put_together_again_is_one():
    assert visit_with(content_of() + VALUES)[0] == {"a": 1}


@both
@pytest.mark.parametrize(
    ("ahead", "lives"), [(-3600, True), (0, True), (60, True), (60.001, False), (3600, False), (10**9, False)]
)
def test_tm_1_a_session_from_further_in_the_future_than_the_skew_is_refused(sealed, ahead, lives):
    theirs = FakeClock()
    theirs.advance(ahead)
    site = Site(Handler("visitor", SECRET, with_clock(theirs), with_encryption(sealed)))
    site.visit(lambda session: session.update(a=1))
    ours = Site(Handler("visitor", SECRET, with_clock(FakeClock()), with_encryption(sealed)))
    token = site.browser.jar.get("__Host-visitor")
    assert ours.visit(dict, HTTP_COOKIE=f"__Host-visitor={token}") == ({"a": 1} if lives else {})
    assert ours.answer.cookies == []


LIVES = {"created": 0, "absolute": 50_000, "own": 70_000, "idle": 90_000}
"""When a session of these lives was created and ends, in milliseconds from now."""


@pytest.mark.parametrize("field", LIVES)
@pytest.mark.parametrize("stamp", [0, 1, NOW, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("first", ["absolute", "own", "idle"])
def test_tm_1_any_time_in_a_token_is_judged_without_an_exception(field, stamp, first):
    """Every place where this time stands in the token says another; the others stay."""
    lives = {**LIVES, first: 40_000}
    options = [with_max_age(lives["own"] / 1000)]
    if first != "idle":
        options.append(with_absolute_timeout(lives["absolute"] / 1000))
    else:
        options += [with_absolute_timeout(None), with_idle_timeout(lives["idle"] / 1000)]
    content = content_of(*options)
    changed = content.replace((NOW + lives[field]).to_bytes(8, "big"), stamp.to_bytes(8, "big"))
    result, answer = visit_with(changed + VALUES)
    assert answer.code == 200
    if field == "created":
        assert result == ({"a": 1} if stamp <= NOW else {})
    elif field == first:
        assert changed != content
        assert result == ({"a": 1} if stamp > NOW else {})


def foreign(head: bytes, rich: bytes) -> dict[str, bytes]:
    """Return contents that begin like a token's and are none; ``rich`` has extras: a subject, an expiry, a flash."""
    return {
        "nothing": b"",
        "one byte": head[:1],
        "another format": b"\xff" + head[1:] + VALUES,
        "no format": b"\0" + head[1:] + VALUES,
        "cut in the times": head[:12],
        "cut in the handle": head[:30],
        "cut in the id": head[:-5],
        "cut before the values": head,
        "an id longer than all": head.replace(b"\x2b", b"\xff", 1) + VALUES,
        "an id that is no text": head[:-4] + b"\xff" * 4 + VALUES,
        "values that are no JSON": head + b"{xx}",
        "values cut": head + VALUES[:-1],
        "values twice": head + VALUES + VALUES,
        "a number": head + b"5",
        "a list": head + b'["a"]',
        "a text": head + b'"a"',
        "null": head + b"null",
        "a tag": head + b'{"a":{"$unknown":1}}',
        "a tag of another kind": head + b'{"a":{"$decimal":"x"}}',
        "too deep": head + b'{"a":' + b"[" * 900 + b'{"$tuple":[]}' + b"]" * 900 + b"}",
        "extras longer than all": head + b"\0\xff\xff{}" + VALUES,
        "extras without length": head + b"\0",
        "extras that are no JSON": head + b"\0\0\2xx" + VALUES,
        "extras that are no object": head + b"\0\0\2[]" + VALUES,
        "extras that are null": head + b"\0\0\4null" + VALUES,
        "deadlines of another kind": re.sub(rb'\{"k":(\d+)\}', rb'["k":\1]', rich).replace(b'"k":', b'"k" ,') + VALUES,
        "a deadline that is no number": re.sub(rb'("k":)\d\d(\d+)', rb'\1"\2"', rich) + VALUES,
        "a subject of another kind": rich.replace(b'"zoe"', b"12345") + VALUES,
        "a stamp of another kind": re.sub(rb'("a":)\d\d(\d+)', rb'\1"\2"', rich) + VALUES,
        "flashes of another kind": rich.replace(b'[["message","hi"]]', b'{"message":["hi"]}') + VALUES,
        "a flash of one part": rich.replace(b'[["message","hi"]]', b'[["message___hi"]]') + VALUES,
        "a category of another kind": rich.replace(b'"message"', b"123456789") + VALUES,
        "good extras and bad values": rich + b"{xx}",
    }


def everything(session):
    """Give the session all that extras are for."""
    session.bind("zoe")
    session.put("k", 1, 60)
    session.delete("k")
    session.put("a", 1, 60)
    session.flash("hi")


FOREIGN = foreign(content_of(), content_of(act=everything).replace(b'{"a":1893', b'{"k":1893'))


def use(session):
    """Look at everything that a session shows, and write to it."""
    fields, subject = dict(session), session.subject
    _ = [session.get("a"), "a" in session, len(session), session.id, session.handle, session.new]
    flashes = session.flashes()
    _ = [session.fresh_within(60), session.expires_in, session.metadata.start, [session.ttl(key) for key in session]]
    session["b"] = 1
    return fields, subject, flashes


def test_the_foreign_contents_are_each_another():
    genuine = [content_of() + VALUES, content_of(act=everything) + VALUES]
    assert visit_with(genuine[1], use)[0] == ({"a": 1}, "zoe", [("message", "hi")])
    assert len(set(FOREIGN.values())) == len(FOREIGN)
    assert not set(genuine) & set(FOREIGN.values())


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_st_2_verified_content_of_another_shape_is_no_session_and_never_an_exception(content):
    """A newer release, or another serializer under the same keys, may have written it."""
    (fields, subject, flashes), answer = visit_with(content, use)
    assert answer.code == 200
    if fields != {"a": 1}:
        assert (fields, subject, flashes) == ({}, None, [])


# -- CR-17: one outcome, and golden tokens --------------------------------------------------------


def respond(handler, cookie) -> Answer:
    app = handler.link(plain_app(lambda request: dict(handler.session(request))))
    return run(app, environ(**({} if cookie is None else {"HTTP_COOKIE": cookie})))


@both
def test_cr_17_every_token_that_does_not_verify_gets_the_same_response(sealed):
    options = [with_clock(FakeClock()), *([with_encryption()] if sealed else [])]
    handler = Handler("visitor", [SECRET, OTHER_SECRET], *options)
    good = handler.codec.seal(content_of() + VALUES)
    head, _, body = good.rpartition(".")
    raw = body_of(good)
    values = {
        "bad tag": with_body(good, raw[:-1] + bytes([raw[-1] ^ 1])),
        "bad first byte": with_body(good, bytes([raw[0] ^ 1]) + raw[1:]),
        "cut": good[:-4],
        "longer": good + "AAAA",
        "no base64": f"{head}.{body[:-1]}!",
        "padded": f"{head}.{body}====",
        "unknown key": tokens(sealed=sealed, keys=bytes(range(50, 90))).seal(b"content"),
        "other key of the ring": good.replace(KeyRing(SECRET).ids[0], KeyRing(OTHER_SECRET).ids[0]),
        "other handler": tokens(sealed=sealed, path="user").seal(b"content"),
        "other realm": tokens(sealed=sealed, keys=KeyRing(SECRET, realm="staging")).seal(b"content"),
        "other purpose": tokens(sealed=sealed, purpose="csrf").seal(b"content"),
        "other format": tokens(sealed=not sealed).seal(b"content"),
        "other version": "v2" + good[2:],
        "too long": handler.codec.current + "A" * 5000,
        "empty": "",
        "junk": "junk",
        "not ascii": "\xe9",
    }
    anonymous = respond(handler, None)
    assert anonymous.cookies == []
    for name, value in values.items():
        assert respond(handler, f"__Host-visitor={value}") == anonymous, name
    assert respond(handler, f"__Host-visitor={good}").text == "{'a': 1}"


@both
def test_cr_17_the_error_never_says_why(sealed):
    made = tokens(sealed=sealed)
    good = made.seal(b"content")
    raised = []
    for bad in ["", "junk", good[:-4], good + "AAAA", "v2" + good[2:], good[:-1] + "!", "A" * 5000, "\xe9", "\ud800"]:
        with pytest.raises(BadCookie) as caught:
            made.open(bad)
        raised.append(
            (type(caught.value), caught.value.args, caught.value.__suppress_context__ or not caught.value.__context__)
        )
    assert set(raised) == {(BadCookie, ("The token does not verify.",), True)}


def test_lg_1_what_is_told_of_a_refused_token_holds_nothing_of_it(caplog):
    events = []
    logger = __import__("logging").getLogger("refused tokens")
    handler = Handler("visitor", SECRET, with_events(events.append), with_logger(logger))
    with caplog.at_level("DEBUG"):
        respond(handler, "__Host-visitor=v1.canary\xe9.canary")
    assert [event.kind for event in events] == ["refused"]
    assert "canary" not in caplog.text + repr(events)
    assert caplog.text


PLAIN = {"user": "Zoë", "n": [1, 2.5, None, True], "nested": {"a": {"b": []}}}
RICH = {
    "raw": b"\x00\xff",
    "when": datetime(2030, 1, 1, tzinfo=UTC),
    "price": Decimal("1.10"),
    "ids": {1, "a"},
    "pair": (1, ("x",)),
    "$bytes": {"$bytes": "data"},
}
BIG = {"text": "ab" * 1100, "user": "Zoë"}
SESSIONS = {
    "root": (["visitor"], "", PLAIN, None),
    "root of every type": (["visitor"], "", RICH, None),
    "root of two segments": (["visitor"], "", BIG, None),
    "root with all extras": (
        ["visitor"],
        "",
        {"otp": "123456"},
        lambda session: (session.bind("zoë"), session.put("otp", "123456", 600)),
    ),
    "root that lasts": (["visitor"], "", {}, lambda session: session.touch(max_age=3600)),
    "child": (["visitor", "user"], "", PLAIN, None),
    "grandchild in a realm": (["visitor", "user", "sudo"], "staging", RICH, None),
}
TEXTS = {"prefs": PLAIN, "every type": RICH, "two segments": BIG, "nothing/ä": {}}


def golden_chain(release, case) -> tuple[list[Handler], FakeClock]:
    clock = FakeClock(release["now"])
    ring = KeyRing(release["secret"], realm=case["realm"])
    handlers = [Handler(case["names"][0], ring, with_clock(clock), with_encryption(case["sealed"]))]
    for name in case["names"][1:]:
        handlers.append(handlers[-1].spawn(name))
    return handlers, clock


def looked_at(release, case) -> dict:
    """Read the case's tokens thirty seconds later and return what the last session says."""
    handlers, clock = golden_chain(release, case)
    clock.advance(30)
    site = Site(*handlers)

    def look(*sessions):
        last = sessions[-1]
        return {
            "data": JSON.dumps(dict(last)).decode(),
            "ttl": {key: last.ttl(key) for key in last if last.ttl(key) is not None},
            **{name: getattr(last, name) for name in ("id", "handle", "subject", "expires_in")},
        }

    header = "; ".join(f"__Host-{name}={token}" for name, token in case["tokens"].items())
    seen = site.visit(look, HTTP_COOKIE=header)
    assert site.answer.cookies == []
    return seen


def session_case(release, label: str, *, sealed: bool) -> dict:
    names, realm, values, act = SESSIONS[label]
    case = {"label": f"{'sealed' if sealed else 'signed'} {label}", "sealed": sealed, "realm": realm, "names": names}
    site = Site(*golden_chain(release, case)[0])
    site.visit(
        lambda *sessions: ([one.update(level=one.handler.name) for one in sessions], sessions[-1].update(values))
    )
    site.visit(lambda *sessions: act and act(sessions[-1]))
    case["tokens"] = {name: site.browser.jar.get(f"__Host-{name}") for name in names}
    return {**case, "seen": looked_at(release, case)}


def golden_codec(release, case) -> CookieCodec:
    return CookieCodec(case["name"], release["secret"], encrypted=case["encrypted"], clock=FakeClock(release["now"]))


def text_case(release, name: str, *, encrypted: bool) -> dict:
    case = {"name": name, "encrypted": encrypted, "expiries": {"user": 5} if "user" in TEXTS[name] else {}}
    text = golden_codec(release, case).encode(TEXTS[name], case["expiries"])
    return {**case, "text": text, "values": JSON.dumps(TEXTS[name]).decode()}


def golden_release() -> dict:
    """Return an entry for the golden file in the format of this release; entries are added, none is ever changed."""
    release = {"secret": hashlib.sha256(b"golden tokens of sessiontree").hexdigest(), "now": NOW // 1000}
    release["handlers"] = [
        session_case(release, label, sealed=sealed) for sealed in (False, True) for label in SESSIONS
    ]
    release["codecs"] = [text_case(release, name, encrypted=on) for on in (False, True) for name in TEXTS]
    return release


golden_sessions = pytest.mark.parametrize(
    ("release", "case"),
    [
        pytest.param(release, case, id=f"{name} {case['label']}")
        for name, release in GOLDEN.items()
        for case in release["handlers"]
    ],
)
golden_texts = pytest.mark.parametrize(
    ("release", "case"),
    [
        pytest.param(release, case, id=f"{name} {'sealed' if case['encrypted'] else 'signed'} {case['name']}")
        for name, release in GOLDEN.items()
        for case in release["codecs"]
    ],
)


@golden_sessions
@pytest.mark.usefixtures("base64_of_choice")
def test_cr_17_the_sessions_of_every_release_are_read_for_ever(release, case):
    assert looked_at(release, case) == case["seen"]


@golden_texts
@pytest.mark.usefixtures("base64_of_choice")
def test_cr_17_the_texts_of_every_release_are_read_for_ever(release, case):
    made = golden_codec(release, case)
    values, expiries = made.decode(case["text"])
    assert JSON.dumps(values) == case["values"].encode()
    assert expiries == case["expiries"]
    if not case["encrypted"]:
        assert made.encode(values, expiries) == case["text"]


def test_cr_17_the_golden_file_has_every_kind_of_token():
    fresh = golden_release()
    for release in GOLDEN.values():
        assert [case["label"] for case in release["handlers"]] == [case["label"] for case in fresh["handlers"]]
        assert [case["text"] for case in release["codecs"] if not case["encrypted"]] == [
            case["text"] for case in fresh["codecs"] if not case["encrypted"]
        ]


def mutated(token: str, draw: random.Random) -> str:
    """Change the token in one of the ways that attackers and transports do."""
    place, other = draw.randrange(len(token)), draw.randrange(len(token))
    start, end = sorted((place, other))
    letter = draw.choice(BASE64 + "=-_.,% \t\n\"'\0\x80é")
    return draw.choice(
        [
            token[:place] + letter + token[place + 1 :],
            token[:place] + letter + token[place:],
            token[:place] + token[place + 1 :],
            token[:place],
            token[place:],
            token[:start] + token[end:],
            token[:start] + token[start:end] * 2 + token[end:],
            token[:start] + token[start:end][::-1] + token[end:],
            token[:start] + token[start:end].swapcase() + token[end:],
            token[end:] + token[:end],
            token + draw.choice(BASE64) * draw.randrange(1, 9),
            token.translate({ord("+"): "-", ord("/"): "_"}),
            token + "=" * draw.randrange(1, 5),
        ]
    )


def test_cr_17_every_mutation_of_a_golden_token_is_refused():
    draw = random.Random(SOAK)
    every = []
    for release in GOLDEN.values():
        for case in release["handlers"]:
            handlers, _ = golden_chain(release, case)
            every += [(handler.codec, case["tokens"][handler.name]) for handler in handlers]
        for case in release["codecs"]:
            every.append((golden_codec(release, case)._tokens, case["text"]))
    for _ in range(10_000 // 20 * SOAK):
        made, token = draw.choice(every)
        other = mutated(token, draw)
        assert other == token or refused(made, other), (token, other)


# -- CR-18: one spelling --------------------------------------------------------------------------


@both
@pytest.mark.usefixtures("base64_of_choice")
@pytest.mark.parametrize("size", range(1, 13))
def test_cr_18_the_body_is_whole_groups_of_base64_without_a_spare_bit(sealed, size):
    made = tokens(sealed=sealed)
    body = made.seal(b"x" * size).rpartition(".")[2]
    assert len(body) % 4 == 0
    assert "=" not in body
    assert base64.b64encode(base64.b64decode(body)).decode() == body


@both
@pytest.mark.usefixtures("base64_of_choice")
def test_cr_18_another_spelling_of_the_same_token_is_refused(sealed):
    made = tokens(sealed=sealed)
    token = next(one for one in (made.seal(b"%d" % n * 40) for n in range(99)) if "+" in one and "/" in one)
    head, _, body = token.rpartition(".")
    spellings = [
        token + "=", token + "==", token + "====", token + "A", token + "AA", token + "AAA", token + "AAAA",
        token + "\n", token + "\r\n", token + " ", token + "\t", token + "\0", token + ";", token + ",", token + '"',
        " " + token, "\n" + token, '"' + token + '"', token.upper(), token.lower(), token.swapcase(), "V" + token[1:],
        token.replace("+", "-"), token.replace("/", "_"), token.translate({43: "-", 47: "_"}),
        token.replace("+", "%2B"), token.replace("/", "%2F"), token.replace("+", " "), token.replace(".", "%2E"),
        f"{head}.{head}.{body}", f"{head}..{body}", f"{head}.{body}.", f"{head}.{body}.{body}", f"{head}{body}",
        f"{head.upper()}.{body}", token.replace("A", "\u0410"), token.replace("a", "\u0430"), token[:-4] + "====",
        "".join(chr(ord(letter) + 0xFEE0) if letter in BASE64 else letter for letter in token),
    ]  # fmt: skip
    for spelling in spellings:
        assert spelling == token or refused(made, spelling), spelling
    for place in range(len(head) + 1, len(token) + 1):
        for extra in (" ", "\n", "\r", "\t", "=", "-", "\0", "\x0b", "."):
            assert refused(made, token[:place] + extra + token[place:])


@both
@quick
@given(data=st.data())
def test_cr_18_no_other_text_verifies(sealed, data):
    made = tokens(sealed=sealed)
    token = signed_by_hand(b"content") if not sealed else sealed_by_hand(b"content")
    assert opened(made, token) == b"content"
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, len(token)))
    other = token[:start] + data.draw(st.one_of(st.text(max_size=6), st.text(BASE64, max_size=6))) + token[end:]
    assert other == token or refused(made, other)


def test_cr_18_spare_bits_of_base64_never_decide():
    """31 bytes have 16 spellings that strict decoders take; bodies of whole groups have one."""
    body = base64.b64encode(bytes(31)).decode()
    spellings = [body[:-3] + letter + "==" for letter in BASE64]
    taken = [one for one in spellings if binascii.a2b_base64(one, strict_mode=True) == bytes(31)]
    assert len(taken) == 16
    for made, by_hand in ((tokens(sealed=False), signed_by_hand), (tokens(sealed=True), sealed_by_hand)):
        for size in range(6):
            token = by_hand(b"x" * size)
            equal = [letter for letter in BASE64 if not refused(made, token[:-1] + letter)]
            assert equal == [token[-1]]


# -- CR-20, CR-21: what the package imports -------------------------------------------------------

MODULES = [
    path for folder in (".", "handlers", "stores", "caches", "cli") for path in sorted((PACKAGE / folder).rglob("*.py"))
    if folder != "." or path.parent == PACKAGE
]  # fmt: skip
HOME_GROWN = {"Crypto", "nacl", "jwt", "jose", "itsdangerous", "passlib", "rsa", "ecdsa", "pyaes", "fernet", "crypt"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "random"}
COMPRESSION = {"zlib", "gzip", "bz2", "lzma", "brotli", "zstandard", "snappy", "lz4"}


def imports(path: Path) -> set[str]:
    """Return the absolute imports of a module, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def test_the_modules_were_found():
    assert len(MODULES) > 20


@each_module
def test_cr_20_a_module_imports_the_standard_library_and_declared_packages_only(path):
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    extras = [
        line
        for name, lines in project["optional-dependencies"].items()
        if name not in {"test", "bench"}
        for line in lines
    ]
    declared = {re.match(r"[A-Za-z0-9_]+", line)[0].lower() for line in project["dependencies"] + extras}
    # What the extras bring along under names of their own: psycopg[pool], redis[hiredis].
    declared |= {"psycopg_pool", "hiredis"}
    if path.parent.name == "conformance":
        declared |= {"pytest", "hypothesis"}  # The suite for stores is for those who test one.
    roots = {name.partition(".")[0] for name in imports(path)}
    assert roots <= set(sys.stdlib_module_names) | declared
    if path.parent.name in {"conformance", "bench"}:
        roots -= {"random"}  # A load, or a walk, that a seed makes again; nothing drawn there is a secret.
    assert not roots & (HOME_GROWN | UNSAFE)


@each_module
def test_cr_20_the_only_primitives_are_sha_256_hmac_hkdf_and_aes_gcm(path):
    ours = {
        "cryptography.exceptions.InvalidSignature",
        "cryptography.exceptions.InvalidTag",
        "cryptography.hazmat.primitives.ciphers.aead.AESGCM",
        "cryptography.hazmat.primitives.hashes.SHA256",
        "cryptography.hazmat.primitives.hmac.HMAC",
        "cryptography.hazmat.primitives.kdf.hkdf.HKDF",
    }
    assert {name for name in imports(path) if name.startswith("cryptography")} <= ours
    weak = re.compile(r"(?i)\b(md5|sha1|sha224|des|rc4|ecb|cbc|ctr)\b")
    names = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert not [name for name in names if weak.fullmatch(name)]


@each_module
def test_cr_21_no_module_compresses(path):
    assert not {name.partition(".")[0] for name in imports(path)} & COMPRESSION


@both
@quick
@given(content=st.binary(min_size=1, max_size=300))
def test_cr_21_the_length_of_a_token_says_the_length_of_its_content_and_nothing_else(sealed, content):
    made = tokens(sealed=sealed)
    assert len(made.seal(content)) == len(made.seal(bytes(len(content))))


# -- segments -------------------------------------------------------------------------------------


def segments(token: str) -> tuple[bytes, list[bytes]]:
    body = body_of(token)
    return body[:16], [body[start : start + 2047] for start in range(16, len(body), 2047)]


@pytest.mark.parametrize("size", [2100, 2500, 2999])
def test_the_segments_of_a_token_keep_their_places(size):
    made = tokens(sealed=True)
    token = made.seal(os.urandom(size - 1) + b"x")
    head, parts = segments(token)
    assert len(parts) == 2
    for order in ([], [0], [1], [1, 0], [0, 0], [1, 1], [0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0, 1]):
        assert refused(made, with_body(token, head + b"".join(parts[place] for place in order))), order
    second = head[:15] + bytes([head[15] ^ 1])
    for order in ([0], [1], [1, 0], [0, 1]):
        assert refused(made, with_body(token, second + b"".join(parts[place] for place in order))), order
    assert made.open(with_body(token, head + b"".join(parts)))


def test_a_segment_of_another_token_fits_nowhere():
    made = tokens(sealed=True)
    one, other = (segments(made.seal(os.urandom(2600))) for _ in range(2))
    token = made.seal(b"")
    for head, first, second in [(one, one, other), (one, other, one), (other, one, one), (one, other, other)]:
        assert refused(made, with_body(token, head[0] + first[1][0] + second[1][1]))


@pytest.mark.parametrize("size", range(2015, 2036))
def test_a_token_at_the_border_of_a_segment_comes_back_and_cannot_be_cut(size):
    made = tokens(sealed=True)
    content = os.urandom(size - 1) + b"x"
    token = made.seal(content)
    assert opened(made, token) == content
    body = body_of(token)
    for end in (16, 32, 16 + 2031, 16 + 2047, len(body) - 16, len(body) - 3, len(body) - 1):
        assert body[:end] == body or refused(made, with_body(token, body[:end]))


@both
def test_the_longest_token_is_taken_and_one_longer_is_not_even_tried(sealed, monkeypatch):
    made = tokens(sealed=sealed)
    size = max(size for size in range(2900, 3060) if len(made.seal(bytes(size))) <= LARGEST_TOKEN)
    assert LARGEST_TOKEN == 4093
    assert opened(made, made.seal(bytes(size))) == bytes(size)
    tried = []
    monkeypatch.setattr(codec, "decode", lambda text: tried.append(text) or b"")
    assert refused(made, made.seal(bytes(size + 4)))
    assert refused(made, "A" * (LARGEST_TOKEN + 1))
    assert tried == []


# -- CX: only the diagonal verifies ---------------------------------------------------------------


def test_cx_1_cx_3_cx_4_a_token_verifies_for_its_own_use_only():
    uses = product(
        ["session", "csrf", "cookie codec", "session/", ""],
        ["visitor", "visitor/user", "user", "user/visitor", "visitoruser", "visitor/", "Visitor", ""],
        ["", "staging", "v1"],
        [False, True],
    )
    made = [
        tokens(purpose=purpose, path=path, keys=KeyRing(SECRET, realm=realm), sealed=sealed)
        for purpose, path, realm, sealed in uses
    ]
    texts = [one.seal(b"content") for one in made]
    for column, one in enumerate(made):
        for row, text in enumerate(texts):
            if row == column:
                assert opened(one, text) == b"content"
            else:
                assert refused(one, text), (row, column)


def test_cx_1_no_handlers_session_is_anothers():
    """Two trees under one secret, with names that swap places, signed and sealed."""
    clock = FakeClock()
    sites = []
    for sealed in (False, True):
        options = [with_clock(clock), with_encryption(sealed)]
        visitor, user = Handler("visitor", SECRET, *options), Handler("user", SECRET, *options)
        sites += [[visitor], [user], [visitor, visitor.spawn("user")], [user, user.spawn("visitor")], [visitor, user]]
    sites += [
        [Handler("visitor", KeyRing(SECRET, realm="staging"), with_clock(clock))],
        [Handler("visitor", OTHER_SECRET, with_clock(clock))],
    ]
    held = {}
    for chain in sites:
        site = Site(*chain)
        site.visit(lambda *sessions: [session.update(mine=session.handler.path) for session in sessions])
        last = chain[-1]
        held.setdefault((last.path, last.config.encrypted, last.config.keys), []).append(
            {handler.name: site.browser.jar.get(f"__Host-{handler.name}") for handler in chain}
        )
    # Offer every token under every handler's cookie name; parents come with their own good token.
    for chain in sites:
        last = chain[-1]
        mine = (last.path, last.config.encrypted, last.config.keys)
        for use, offers in held.items():
            for offer in offers:
                own = held[mine][0]
                cookies = {
                    **{name: own[name] for name in own if name != last.name},
                    last.name: list(offer.values())[-1],
                }
                if use == mine and offer is not own:
                    continue
                header = "; ".join(f"__Host-{name}={token}" for name, token in cookies.items())
                site = Site(*chain)
                got = site.visit(lambda *sessions: dict(sessions[-1]), HTTP_COOKIE=header)
                assert got == ({"mine": last.path} if use == mine else {}), (use, mine)


@both
def test_cx_3_tokens_of_other_purposes_are_no_session(sealed):
    clock = FakeClock()
    handler = Handler("visitor", SECRET, with_clock(clock), with_encryption(sealed))
    site = Site(handler)
    csrf = site.visit(lambda session: Csrf(handler).token(make_environ(site)))
    content = content_of() + VALUES
    offers = [
        csrf,
        KeyRing(SECRET).sign(content, "session"),
        KeyRing(SECRET).sign(content, "session/signed"),
        "v1." + KeyRing(SECRET).sign(content, "visitor"),
        CookieCodec("visitor", SECRET, encrypted=sealed, clock=clock).encode({"a": 1}),
        CookieCodec("session", SECRET, encrypted=sealed, clock=clock).encode({"a": 1}),
        tokens(sealed=sealed, purpose="remember me").seal(content),
        tokens(sealed=sealed, purpose="oauth state").seal(content),
    ]
    for offer in offers:
        with pytest.raises(RejectedError):
            handler.load(environ(HTTP_COOKIE=f"__Host-visitor={offer}"))
    assert handler.load(environ(HTTP_COOKIE=f"__Host-visitor={tokens(sealed=sealed).seal(content)}"))["a"] == 1


def make_environ(site):
    """Return a request that carries the browser's cookies, outside any chain."""
    return environ(HTTP_COOKIE=site.browser.jar.header())


@both
def test_cx_3_a_sessions_token_is_no_text_of_a_codec_of_the_same_name(sealed):
    clock = FakeClock()
    handler = Handler("visitor", SECRET, with_clock(clock), with_encryption(sealed))
    token = handler.codec.seal(b"[{},{}]")
    with pytest.raises(BadCookie):
        CookieCodec("visitor", SECRET, encrypted=sealed, clock=clock).decode(token)


# -- CookieCodec ----------------------------------------------------------------------------------


@both
@quick
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.one_of(st.integers(0, 9), st.binary(max_size=5)),
    )
)
def test_a_codec_gives_both_maps_back(sealed, values):
    made = CookieCodec("prefs", SECRET, encrypted=sealed)
    expiries = {key: number for number, key in enumerate(values)}
    assert made.decode(made.encode(values, expiries)) == (values, expiries)
    assert made.decode(made.encode(values)) == (values, {})


def test_a_codec_keeps_the_names_apart():
    text = CookieCodec("prefs", SECRET).encode({"a": 1})
    assert CookieCodec("prefs", [OTHER_SECRET, SECRET]).decode(text) == ({"a": 1}, {})
    assert CookieCodec("prefs", KeyRing(SECRET)).decode(text) == ({"a": 1}, {})
    for other in (
        CookieCodec("pref", SECRET),
        CookieCodec("prefs", OTHER_SECRET),
        CookieCodec("prefs", KeyRing(SECRET, realm="x")),
    ):
        with pytest.raises(BadCookie):
            other.decode(text)


def test_an_encrypted_codec_shows_nothing():
    text = CookieCodec("prefs", SECRET, encrypted=True).encode({"colour": "red"})
    assert b"colour" not in body_of(text)
    assert b"colour" in body_of(CookieCodec("prefs", SECRET).encode({"colour": "red"}))


@both
@pytest.mark.parametrize("text", [None, 5, b"v1.a.b", [], "", "v1", "\ud800"])
def test_whatever_is_no_text_of_the_codec_is_a_bad_cookie(sealed, text):
    with pytest.raises(BadCookie):
        CookieCodec("prefs", SECRET, encrypted=sealed).decode(text)


@both
@pytest.mark.parametrize("values", [{1: 2}, {"a": object()}, {"a": float("nan")}, {"\ud800": 1}])
def test_what_would_not_come_back_is_a_type_error(sealed, values):
    with pytest.raises(TypeError):
        CookieCodec("prefs", SECRET, encrypted=sealed).encode(values)


@both
@pytest.mark.parametrize("size", [4000, 40_000, 400_000, 700_000, 1_000_000])
def test_ck_12_more_than_a_cookie_holds_is_too_large(sealed, size):
    with pytest.raises(CookieTooLarge):
        CookieCodec("prefs", SECRET, encrypted=sealed).encode({"a": "x" * size})


@both
def test_ck_12_the_longest_text_is_one_that_a_browser_keeps(sealed):
    made = CookieCodec("prefs", SECRET, encrypted=sealed)
    longest = 0
    for size in range(2900, 3070):
        try:
            text = made.encode({"a": "x" * size})
        except CookieTooLarge:
            continue
        longest = max(longest, len(text))
        assert made.decode(text)[0] == {"a": "x" * size}
    assert LARGEST_TOKEN - 4 < longest <= LARGEST_TOKEN


@pytest.mark.parametrize("name", [None, 5, b"prefs", "\ud800"])
def test_the_name_of_a_codec_is_valid_text(name):
    with pytest.raises((TypeError, ValueError)):
        CookieCodec(name, SECRET)


# -- base64 of choice -----------------------------------------------------------------------------


def imported_with(choice: str) -> subprocess.CompletedProcess[str]:
    code = "from sessiontree.handlers import encoding; print(encoding.encode.__module__)"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SESSIONTREE_BASE64": choice},
    )


def test_pybase64_is_used_only_where_it_was_asked_for():
    pytest.importorskip("pybase64", reason="the speed extra is not installed")
    assert "pybase64" not in imported_with("binascii").stdout
    assert "pybase64" in imported_with("pybase64").stdout


def test_an_unknown_base64_is_a_config_error():
    done = imported_with("base85")
    assert done.returncode != 0
    assert "SESSIONTREE_BASE64 must be binascii or pybase64" in done.stderr


def test_a_missing_pybase64_is_a_config_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybase64", None)
    with pytest.raises(sessiontree.ConfigError, match="speed extra"):
        encoding._pybase64()


def test_the_codecs_meet_their_protocol():
    ring = KeyRing(SECRET)
    assert isinstance(token_codec(ring, "session", "a", sealed=False, clock=FakeClock()), SignedTokens)
    assert isinstance(token_codec(ring, "session", "a", sealed=True, clock=FakeClock()), SealedTokens)


@both
@pytest.mark.parametrize("size", range(5))
def test_a_serializer_of_the_users_gets_back_its_own_bytes_exactly(sealed, size):
    """Whatever the token needs for its padding stays in the token."""
    given, taken = [], []

    class Own:
        def dumps(self, value):
            given.append(json.dumps(value).encode() + b" " * size)
            return given[-1]

        def loads(self, data):
            taken.append(data)
            return json.loads(data)

    site = Site(Handler("visitor", SECRET, with_clock(FakeClock()), with_encryption(sealed), with_serializer(Own())))
    for number in range(4):
        site.visit(lambda session, number=number: session.update(a="x" * number))
        written = given[-1]
        assert site.visit(dict) == {"a": "x" * number}
        assert taken[-1] == written


def test_a_serializer_of_the_users_is_asked_for_verified_data_only():
    seen = []

    class Own:
        def dumps(self, value):
            return json.dumps(value).encode()

        def loads(self, data):
            seen.append(data)
            return json.loads(data)

    site = Site(Handler("visitor", SECRET, with_clock(FakeClock()), with_serializer(Own())))
    site.visit(lambda session: session.update(a=1))
    token = site.browser.jar.get("__Host-visitor")
    for bad in broken(token):
        site.visit(dict, site.another_browser(), HTTP_COOKIE=f"__Host-visitor={bad}")
    assert seen == []
    assert site.visit(dict) == {"a": 1}
    assert seen == [b'{"a": 1}']
