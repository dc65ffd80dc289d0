"""Secrets: what may be one, the sub-keys made of it, the ring's rotation, and that none is ever shown."""

import ast
import base64
import copy
import hashlib
import hmac
import inspect
import io
import logging
import pickle
import re
from itertools import combinations, product
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from support import OTHER_SECRET, SECRET

from sessiontree import ConfigError, Handler, KeyRing, cli, keys
from sessiontree.handlers import CookieCodec
from sessiontree.keys import HourlyKeys, derived
from sessiontree.testing import FakeClock

quick = settings(deadline=None, max_examples=60)
PATHS = ("visitor", "visitor/user", "user", "user/visitor", "visitoruser", "")
PURPOSES = ("session/signed", "session/sealed", "csrf", "store id", "cache", "log", "application")


def secret(number: int) -> bytes:
    return hashlib.sha256(b"secret %d" % number).digest()


# -- what may be a secret -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16, 31])
@pytest.mark.parametrize("kind", [bytes, bytes.decode])
def test_cr_7_a_secret_below_32_bytes_is_refused(size, kind):
    with pytest.raises(ConfigError, match=rf"has {size} bytes and needs 32"):
        KeyRing(kind(bytes(range(40, 40 + size))))


def test_cr_7_32_bytes_are_enough():
    assert len(KeyRing(bytes(range(40, 72))).ids) == 1


def test_cr_7_what_counts_are_bytes_not_characters():
    assert KeyRing("äöüßéèêëñçåøæœúó")  # 16 characters, 32 bytes
    with pytest.raises(ConfigError, match="31 bytes"):
        KeyRing("äöüßéèêëñçåøæœú0")


@pytest.mark.parametrize(
    "keys",
    [None, 5, 32, 1.5, True, object(), {SECRET}, {SECRET: 1}, bytearray(SECRET), memoryview(SECRET), iter([SECRET])],
)
@pytest.mark.parametrize("make", [KeyRing, lambda keys: KeyRing([keys]), lambda keys: Handler("a", keys)])
def test_cr_7_a_secret_of_another_type_is_a_type_error(make, keys):
    with pytest.raises(TypeError) as caught:
        make(keys)
    assert type(caught.value) is ConfigError


def test_cr_7_a_str_that_is_no_valid_text_is_refused():
    with pytest.raises(ConfigError, match="valid text"):
        KeyRing("\ud800" + "0123456789abcdefghijklmnopqrstuvwxyz")


# Published in documentation, examples and default settings; every one is long enough to pass for a secret.
KNOWN = [
    b"\x02\x01thisismyscretkey\x01\x02\\e\\y\\y\\h-padded-to-32",
    "CHANGE_ME_TO_A_COMPLEX_RANDOM_SECRET",
    "YOUR_OWN_RANDOM_GENERATED_SECRET_KEY",
    "USE_YOUR_OWN_SECURE_RANDOM_KEY - your own random text",
    "TEST_NON_DEV_SECRET TEST_NON_DEV_SECRET",
    "temporary_key_temporary_key_1234567",
    "django-insecure-w$z8#k1@m3!q5^t7&u9*i0(o-p_a+s=d",
    "notAGreatSecret notAGreatSecret, really",
    "changemechangemechangemechangeme-01",
    "Change-This-To-Something-Long-And-Random",
    "please change me in production, thank you!",
    "replace_me_with_a_long_random_string_1234",
    "REPLACE-THIS-WITH-YOUR-SECRET-VALUE-0123",
    "your-secret-key-here-minimum-32-characters",
    "your_secret_goes_here_0123456789abcdef",
    "<your-256-bit-secret, base64 encoded, here>",
    "your-key-here-0123456789abcdefghijkl",
    "a-string-secret-at-least-256-bits-long",
    "supersecretkey-supersecretkey-1234567890",
    "super_secret_key_that_nobody_will_ever_guess",
    "thisisasecretkeythatisverylongindeed",
    "This Is My Secret, and it is 32 bytes long",
    "this-is-not-a-secret-at-all-0123456789",
    "insert-secret-here-0123456789abcdef",
    "insert your own secret string here, please",
    "put-your-unique-phrase-here-put-it-here",
    "placeholder-placeholder-0123456789abc",
    "do-not-use-in-production-0123456789",
    "insecure-secret-for-local-development-only",
    "insecure_key_for_tests_0123456789abcd",
    "not-secure-at-all-0123456789abcdefghij",
    "some-secret-key-0123456789abcdefghijk",
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    b"192B9BDD22AB9ED4D12E236C78AFCB9A393EC15F71BBF5DC987D54727823BCBF",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "your-super-secret-jwt-token-with-at-least-32-characters-long",
    "sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3BlbkFJLK7U",
    "hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=",
    "255d861b-5ea1-5996-9aa3-922530ec40b1",
    "6116487b-cda1-52c2-b5b5-c8022c45e263",
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: repr(known)[:40])
def test_cr_8_a_published_secret_is_refused(known):
    with pytest.raises(ConfigError, match="placeholder"):
        KeyRing(known)


@pytest.mark.parametrize(
    "weak",
    [
        b"\0" * 32, b"a" * 64, "0" * 40, "ab" * 20, "123456789" * 4, "0123456789" * 4, "abcdefghijklmnop" * 2,
        "12345678901234567890123456789012", "keyboard cat " * 3, "deadbeef" * 8, "0123456789abcdef" * 4 + "01",
        "secretsecretsecretsecretsecretsecret", "passwordpasswordpasswordpassword",
        bytes(range(9)) * 4, bytes(range(16)) * 8,
    ],
)  # fmt: skip
def test_cr_8_a_secret_of_few_or_repeating_bytes_is_refused(weak):
    with pytest.raises(ConfigError):
        KeyRing(weak)


def test_cr_8_ten_distinct_bytes_are_the_fewest():
    nine = bytes(40 + (number * number + number // 7) % 9 for number in range(63))
    assert len(set(nine)) == 9
    with pytest.raises(ConfigError, match="fewer than 10 distinct"):
        KeyRing(nine)
    assert KeyRing(nine + b"z")


@quick
@given(st.binary(min_size=32, max_size=32).map(lambda seed: hashlib.sha512(seed).digest()))
def test_cr_8_a_random_secret_is_taken_in_every_usual_spelling(raw):
    for spelling in (raw, raw[:32], raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw[:32])):
        assert KeyRing(spelling)


def test_cr_8_there_is_no_default_secret():
    for call in (Handler, KeyRing, CookieCodec):
        required = [p for p in inspect.signature(call).parameters.values() if p.default is p.empty]
        assert {"keys", "secrets"} & {p.name for p in required}
    with pytest.raises(TypeError):
        Handler("visitor")


@pytest.mark.parametrize("position", [0, 1])
def test_cr_8_one_bad_secret_in_a_ring_refuses_the_ring(position):
    ring = [SECRET, OTHER_SECRET]
    ring[position] = b"x" * 40
    with pytest.raises(ConfigError):
        KeyRing(ring)


# -- lists of secrets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bare", ["one secret as text, of more than 32 bytes", b"one secret as bytes, of more than 32."]
)
def test_cr_9_a_bare_secret_is_one_key_and_never_a_list_of_letters(bare):
    assert len(KeyRing(bare).ids) == 1
    assert KeyRing(bare) == KeyRing([bare])
    with pytest.raises(ConfigError):
        KeyRing(list(bare))


def test_cr_9_a_token_made_with_one_letter_as_key_is_refused():
    ring = KeyRing("old-secret-old-words-and-more-of-both")
    mac = hmac.digest(b"o", b"data", "sha256")
    forged = f"{ring.ids[0]}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert not ring.verify(b"data", forged, "links")


@pytest.mark.parametrize("collection", [list, tuple])
def test_a_ring_keeps_the_order_of_its_secrets(collection):
    ring = KeyRing(collection([SECRET, OTHER_SECRET]))
    assert ring.ids == KeyRing(SECRET).ids + KeyRing(OTHER_SECRET).ids


def test_an_empty_ring_is_refused():
    with pytest.raises(ConfigError, match="1 to 64"):
        KeyRing([])


def test_cr_15_the_size_of_a_ring_is_capped():
    assert len(KeyRing([secret(number) for number in range(64)]).ids) == 64
    with pytest.raises(ConfigError, match="1 to 64"):
        KeyRing([secret(number) for number in range(65)])


@pytest.mark.parametrize("twice", [[SECRET, OTHER_SECRET, SECRET], [b"one and the same secret, 0123456789"] * 2])
def test_a_secret_that_is_there_twice_is_refused(twice):
    with pytest.raises(ConfigError, match="twice"):
        KeyRing(twice)


def test_a_secret_that_is_there_as_text_and_as_bytes_is_there_twice():
    text = "one secret of text and of bytes, 012345"
    with pytest.raises(ConfigError, match="twice"):
        KeyRing([text, text.encode()])


def test_of_takes_a_ring_as_it_is_and_makes_one_of_anything_else():
    ring = KeyRing(SECRET)
    assert KeyRing.of(ring) is ring
    assert KeyRing.of(SECRET) == KeyRing.of([SECRET]) == KeyRing.of((SECRET,)) == ring


# -- sub-keys -----------------------------------------------------------------------------------


def transcribed_hkdf(master: bytes, *fields: str) -> bytes:
    """RFC 5869 for one block, with the fields as length-prefixed context, from the standard library alone."""
    info = b"".join(len(field.encode()).to_bytes(4, "big") + field.encode() for field in fields)
    extracted = hmac.digest(bytes(32), master, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def vectors(name: str, border: str) -> list[dict[str, bytes]]:
    """Read a file of ``NAME = hex`` blocks."""
    with cryptography_vectors.open_vector_file(name, "r") as file:
        blocks = file.read().split(border)
    found = [dict(re.findall(r"^(\w{2,}) *= *([0-9a-f]*)$", block, re.MULTILINE)) for block in blocks]
    return [{key: bytes.fromhex(text) for key, text in one.items() if key not in {"Len", "COUNT"}} for one in found]


HKDF_VECTORS = [one for one in vectors("KDF/rfc-5869-HKDF-SHA256.txt", "COUNT") if "OKM" in one]
HMAC_VECTORS = [one for one in vectors("HMAC/rfc-4231-sha256.txt", "\n\n") if "MD" in one]


def test_the_vectors_were_read():
    assert len(HKDF_VECTORS) == 3
    assert len(HMAC_VECTORS) >= 6


@pytest.mark.parametrize("vector", HKDF_VECTORS)
def test_cr_10_the_key_derivation_is_that_of_rfc_5869(vector):
    """The published vectors, through the class that the ring uses."""
    size = len(vector["OKM"])
    assert HKDF(SHA256(), size, vector["salt"], vector["info"]).derive(vector["IKM"]) == vector["OKM"]


def test_cr_10_the_ring_derives_without_salt_as_in_rfc_5869_a_3():
    [vector] = [one for one in HKDF_VECTORS if not one["salt"]]
    assert keys._hkdf(vector["IKM"], vector["info"]) == vector["OKM"][:32]


@pytest.mark.parametrize("vector", HMAC_VECTORS)
def test_cr_3_the_mac_is_that_of_rfc_4231(vector):
    """The published vectors, through both implementations that the package uses."""
    expected = vector["MD"]
    assert hmac.digest(vector["Key"], vector["Msg"], "sha256")[: len(expected)] == expected
    mac = HMAC(vector["Key"], SHA256())
    mac.update(vector["Msg"])
    assert mac.finalize()[: len(expected)] == expected


def test_cr_10_sub_keys_and_ids_never_change_from_release_to_release():
    """Golden values: a change of any logs out everybody."""
    ring = KeyRing(SECRET)
    assert ring.ids == ("hbsm7ten",)
    [(name, subkey)] = ring.subkeys("session/signed", "visitor/user")
    assert name == "hbsm7ten"
    assert subkey.hex() == "5269118fe9328f206867195b7cab35d52492c5f22d78b4d006ed0d00da2acff6"
    [(_, staging)] = KeyRing(SECRET, realm="staging").subkeys("session/signed", "visitor/user")
    assert staging.hex() == "dc4f99e1034673bbadaa6c9bfe6c12c0e5ef6f8bae7b0025b64f7e3a8aef8911"
    assert ring.sign(b"data", "purpose") == "hbsm7ten.ZFL8pcoeDEgOAM3ejTzf5JZhevB0JyUoA_l3GAa3oaY"


@quick
@given(purpose=st.text(st.characters(exclude_categories=["Cs"])), realm=st.sampled_from(["", "staging", "ä"]))
def test_cr_10_a_sub_key_is_hkdf_of_its_whole_context(purpose, realm):
    ring = KeyRing([SECRET, OTHER_SECRET], realm=realm)
    expected = [transcribed_hkdf(master, "v1", purpose, realm, "a/b") for master in (SECRET, OTHER_SECRET)]
    assert [subkey for _, subkey in ring.subkeys(purpose, "a/b")] == expected
    assert derived(SECRET, "epoch", purpose) == transcribed_hkdf(SECRET, "epoch", purpose)


def test_cr_10_one_key_has_one_purpose():
    rings = [KeyRing(SECRET), KeyRing(OTHER_SECRET), KeyRing(SECRET, realm="staging")]
    contexts = list(product(rings, PURPOSES, PATHS, ("v1", "v2")))
    subkeys = {ring.subkeys(purpose, path, form=form)[0][1] for ring, purpose, path, form in contexts}
    assert len(subkeys) == len(contexts)
    assert {len(subkey) for subkey in subkeys} == {32}


def test_cr_10_a_master_is_never_used_as_a_key_itself(monkeypatch):
    used: list[bytes] = []

    class Spy:
        def digest(self, key, *rest):
            used.append(key)
            return hmac.digest(key, *rest)

        compare_digest = staticmethod(hmac.compare_digest)

    monkeypatch.setattr(keys, "hmac", Spy())
    ring = KeyRing(SECRET)
    assert ring.verify(b"data", ring.sign(b"data", "links"), "links")
    assert len(used) == 2
    assert SECRET not in used


field = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@quick
@given(st.lists(field, max_size=5), st.lists(field, max_size=5))
def test_cr_11_no_two_contexts_are_the_same_bytes(one, other):
    assert (keys._context(*one) == keys._context(*other)) == (one == other)


@quick
@given(st.lists(field, min_size=1, max_size=4), st.data())
def test_cr_11_a_border_moved_between_two_fields_is_another_context(fields, data):
    """The way ambiguous concatenations are attacked: the same letters, cut elsewhere."""
    joined = "".join(fields)
    cuts = sorted(data.draw(st.integers(0, len(joined))) for _ in fields[1:])
    other = [joined[start:end] for start, end in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    assert (keys._context(*fields) == keys._context(*other)) == (fields == other)


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "bc"), ("ab", "c")), (("", "abc"), ("abc", "")), (("a", ""), ("", "a"))]
)
def test_cr_11_purpose_and_path_do_not_run_together(one, other):
    ring = KeyRing(SECRET)
    assert ring.subkeys(*one) != ring.subkeys(*other)


def test_cx_4_deployments_of_another_realm_share_no_sub_key():
    one, other = KeyRing(SECRET, realm="one"), KeyRing(SECRET, realm="other")
    assert one != other
    assert one.subkeys("session/signed", "visitor") != other.subkeys("session/signed", "visitor")
    assert not other.verify(b"data", one.sign(b"data", "links"), "links")


@pytest.mark.parametrize("realm", [None, 5, b"staging", ["staging"], "\ud800"])
def test_a_realm_is_valid_text(realm):
    with pytest.raises(ConfigError, match="realm"):
        KeyRing(SECRET, realm=realm)


# -- texts of secrets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "kLm8nO0pQ2rS4tU6vW8xY0zA2bC4dE6fG8hI0jK2lM4=",
        "zwölf Boxkämpfer jagen Viktor über den Deich",
    ],
)
def test_cr_19_a_str_secret_is_its_utf_8_bytes_and_never_decoded(text):
    assert KeyRing(text) == KeyRing(text.encode())
    if text.endswith("="):
        assert KeyRing(text) != KeyRing(base64.b64decode(text))
    elif text.isascii():
        assert KeyRing(text) != KeyRing(bytes.fromhex(text))


def test_cr_19_keygen_prints_32_random_bytes_that_a_ring_takes(capsys):
    printed = []
    for _ in range(2):
        assert cli.main(["keygen"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]
    for line in printed:
        assert line.endswith("\n")
        assert len(base64.urlsafe_b64decode(line.strip() + "=")) == 32
        assert KeyRing(line.strip())


# -- signatures for the application --------------------------------------------------------------


def test_a_signature_verifies_for_the_same_data_purpose_and_ring():
    ring = KeyRing(SECRET)
    signature = ring.sign(b"data", "links")
    assert ring.verify(b"data", signature, "links")
    assert KeyRing(SECRET).verify("data", signature, "links")
    name, _, mac = signature.partition(".")
    assert name == ring.ids[0]
    expected = hmac.digest(transcribed_hkdf(SECRET, "v1", "application", "", "links"), b"data", "sha256")
    assert base64.urlsafe_b64decode(mac + "=") == expected


@pytest.mark.parametrize(
    ("data", "purpose"), [(b"dat", "links"), (b"data ", "links"), (b"", "links"), (b"data", "link"), (b"data", "")]
)
def test_a_signature_verifies_for_nothing_else(data, purpose):
    ring = KeyRing(SECRET)
    assert not ring.verify(data, ring.sign(b"data", "links"), purpose)


def test_cx_3_the_application_can_sign_nothing_that_a_handler_would_take():
    ring = KeyRing(SECRET)
    application = {ring._subkey(SECRET, "application", purpose) for purpose in PURPOSES}
    ours = {subkey for purpose in PURPOSES for path in PATHS for _, subkey in ring.subkeys(purpose, path)}
    assert application & ours == {subkey for _, subkey in ring.subkeys("application", "")} & application == set()


def test_cr_14_the_first_key_signs_and_all_verify():
    old, new = KeyRing(SECRET), KeyRing([OTHER_SECRET, SECRET])
    assert new.verify("data", old.sign("data", "links"), "links")
    assert new.sign("data", "links").startswith(KeyRing(OTHER_SECRET).ids[0])
    assert not old.verify("data", new.sign("data", "links"), "links")
    assert not KeyRing(OTHER_SECRET).verify("data", old.sign("data", "links"), "links")


def test_cr_14_a_roll_out_in_two_steps_never_refuses_a_signature():
    first, second, third = (KeyRing(ring) for ring in ([SECRET], [SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET]))
    for one, other in [(first, second), (second, third)]:
        assert one.verify("data", other.sign("data", "links"), "links")
        assert other.verify("data", one.sign("data", "links"), "links")


@quick
@given(st.one_of(st.text(), st.binary(), st.none(), st.integers()))
def test_whatever_the_signature_is_the_answer_is_a_bool(signature):
    assert KeyRing(SECRET).verify(b"data", signature, "links") is False


@quick
@given(st.data())
def test_cr_2_a_changed_signature_is_refused(data):
    ring = KeyRing(SECRET)
    signature = ring.sign(b"data", "links")
    place = data.draw(st.integers(0, len(signature) - 1))
    letter = data.draw(st.characters().filter(lambda letter: letter != signature[place]))
    assert not ring.verify(b"data", signature[:place] + letter + signature[place + 1 :], "links")


@pytest.mark.parametrize("tail", ["=", "\n", " ", "A", ".", "é", "\0", "\ud800"])
def test_cr_18_a_signature_has_one_spelling(tail):
    ring = KeyRing(SECRET)
    assert not ring.verify(b"data", ring.sign(b"data", "links") + tail, "links")


def test_cr_2_signatures_are_compared_in_constant_time(monkeypatch):
    compared = []

    class Spy:
        digest = staticmethod(hmac.digest)

        def compare_digest(self, *pair):
            compared.append(pair)
            return hmac.compare_digest(*pair)

    ring = KeyRing(SECRET)
    signature = ring.sign(b"data", "links")
    monkeypatch.setattr(keys, "hmac", Spy())
    assert ring.verify(b"data", signature, "links")
    assert not ring.verify(b"data", signature[:-1] + "é", "links")
    assert len(compared) == 2
    assert all(type(side) is bytes for pair in compared for side in pair)


@pytest.mark.parametrize("data", [None, 5, 1.5, ["data"]])
def test_only_text_and_bytes_are_signed(data):
    """``bytes(5)`` is five zero bytes: a number must not be taken for them."""
    with pytest.raises(TypeError):
        KeyRing(SECRET).sign(data, "links")


@pytest.mark.parametrize("purpose", [None, 5, b"links"])
def test_a_purpose_is_text(purpose):
    with pytest.raises(TypeError):
        KeyRing(SECRET).sign(b"data", purpose)


# -- a ring is a value that tells nothing -------------------------------------------------------


def test_equal_rings_are_equal_and_hash_alike():
    assert KeyRing([SECRET, OTHER_SECRET]) == KeyRing((SECRET, OTHER_SECRET))
    assert hash(KeyRing([SECRET, OTHER_SECRET])) == hash(KeyRing((SECRET, OTHER_SECRET)))


def test_rings_of_other_secrets_order_size_or_realm_differ():
    rings = [
        KeyRing(SECRET),
        KeyRing(OTHER_SECRET),
        KeyRing([SECRET, OTHER_SECRET]),
        KeyRing([OTHER_SECRET, SECRET]),
        KeyRing(SECRET, realm="staging"),
    ]
    for one, other in combinations(rings, 2):
        assert one != other
    assert len(set(rings)) == len(rings)
    assert KeyRing(SECRET) != SECRET


def test_a_ring_cannot_be_changed():
    ring = KeyRing(SECRET)
    for name in ("ids", "extra"):
        with pytest.raises(AttributeError):
            setattr(ring, name, ())
    given = [SECRET]
    ring = KeyRing(given)
    given.append(OTHER_SECRET)
    assert len(ring.ids) == 1
    assert type(ring.ids) is tuple


def shown(secret: bytes) -> list[str]:
    """Every usual way to write the secret."""
    return [secret.hex(), base64.b64encode(secret).decode()[:40], repr(secret)[2:-1], str(list(secret))[1:-1]]


@pytest.mark.parametrize("realm", ["", "staging"])
def test_no_way_of_showing_a_ring_or_its_handler_shows_a_secret(realm):
    ring = KeyRing([SECRET, OTHER_SECRET], realm=realm)
    handler = Handler("visitor", ring)
    log = io.StringIO()
    logger = logging.Logger("shown")  # noqa: LOG001 - a logger of its own, whatever the suite configures
    logger.addHandler(logging.StreamHandler(log))
    for thing in (ring, handler, handler.config):
        logger.warning("%s %r", thing, thing)
        text = " ".join([repr(thing), str(thing), f"{thing}", f"{thing!r:>99}", ascii(thing), log.getvalue()])
        for master in (SECRET, OTHER_SECRET, *(subkey for _, subkey in ring.subkeys("session/signed", "visitor"))):
            assert not any(spelling in text for spelling in shown(master))
    assert repr(ring) == f"KeyRing(ids={list(ring.ids)})"


def test_vars_of_a_ring_show_nothing():
    with pytest.raises(TypeError):
        vars(KeyRing(SECRET))


@pytest.mark.parametrize("bad", [b"\x07tiny but very secret", "tiny but very secret"])
def test_the_error_about_a_bad_secret_does_not_show_it(bad):
    with pytest.raises(ConfigError) as caught:
        KeyRing(bad)
    assert "tiny" not in str(caught.value)
    assert "tiny" not in repr(caught.value.__context__)


def test_an_undecodable_secret_is_not_shown_by_the_error_it_came_from():
    with pytest.raises(ConfigError) as caught:
        KeyRing("very secret \ud800" * 4)
    assert caught.value.__suppress_context__
    assert "very" not in str(caught.value)


def test_a_copied_ring_is_the_same_ring():
    ring = KeyRing([SECRET, OTHER_SECRET], realm="staging")
    for twin in (copy.copy(ring), copy.deepcopy(ring), pickle.loads(pickle.dumps(ring))):  # noqa: S301 - our own bytes
        assert twin == ring
        assert twin.sign(b"data", "links") == ring.sign(b"data", "links")


def test_the_id_of_a_key_says_nothing_of_the_purpose_realm_or_path():
    """The id is public: it comes from a sub-key of its own, the same in every realm."""
    assert KeyRing(SECRET).ids == KeyRing(SECRET, realm="staging").ids
    expected = base64.b32encode(transcribed_hkdf(SECRET, "v1", "key id", "", "")[:5]).decode().lower()
    assert KeyRing(SECRET).ids == (expected,)


def secret_comparisons(source: str) -> list[str]:
    """Return the comparisons of something whose name says that its time must tell nothing."""
    secret_name = re.compile(r"(^|_)(mac|tag|digest|signature|secret|master|password|token|hash)s?$|^id$")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [side.func if isinstance(side, ast.Call) else side for side in (node.left, *node.comparators)]
            names = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
            if any(secret_name.search(name) for name in names):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line", ["mac == b''", "x != self._mac", "a.finalize() == tag", "csrf_token == given", "_mac(k) == m"]
)
def test_the_search_for_comparisons_finds_them(line):
    assert secret_comparisons(line) == [line]


def test_cr_2_no_module_compares_secrets_with_the_equality_operators():
    package = Path(keys.__file__).parent
    for path in [package / "keys.py", *sorted((package / "handlers").glob("*.py"))]:
        # The exceptions ask of a new secret whether it repeats itself, and of a token whether it is the very one that
        # was verified before: it was found by the end of its signature, which nobody can guess.
        allowed = ("master == (master[:n]", "known[0] ")
        found = [line for line in secret_comparisons(path.read_text()) if not line.startswith(allowed)]
        assert found == [], path.name


# -- a key for each hour --------------------------------------------------------------------------


def test_cr_15_a_key_that_is_kept_pushes_no_other_out(monkeypatch):
    monkeypatch.setattr(keys, "KEPT_EPOCHS", 3)
    hourly = HourlyKeys(SECRET, FakeClock())
    ciphers = {number.to_bytes(4, "big"): hourly.derive(number.to_bytes(4, "big")) for number in range(3)}
    for _ in range(2):
        for epoch, cipher in ciphers.items():
            hourly.keep(epoch, cipher)
    assert [hourly.known(epoch) for epoch in ciphers] == list(ciphers.values())


@pytest.mark.parametrize(("ahead", "is_to_come"), [(-(10**6), False), (0, False), (3600, False), (7200, True)])
def test_tm_1_this_hour_and_the_next_are_not_to_come(ahead, is_to_come):
    clock = FakeClock()
    hourly = HourlyKeys(SECRET, clock)
    clock.advance(ahead)
    _, epoch, _ = hourly.latest()
    clock.advance(-ahead)
    assert hourly.is_to_come(epoch) is is_to_come
