"""Coverage-guided fuzzing of everything that reads what strangers write.

``python fuzz_tokens.py TARGET [libFuzzer options]``. It needs atheris, writes nothing outside the
temporary folder that it makes, and stops after ten seconds unless the options say otherwise. Any
exception but the documented one is a crash, and so is a wrong answer.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sessiontree"]):
    from sessiontree.errors import BadCookie, ConfigError
    from sessiontree.handlers.codec import CookieCodec, SealedTokens, SignedTokens
    from sessiontree.handlers.cookie import MOST_DUPLICATES, CookiePolicy, CookieWriter, cookie_values, lasting
    from sessiontree.handlers.transport import HeaderTransport
    from sessiontree.keys import KeyRing
    from sessiontree.testing import CookieJar, FakeClock

RING = KeyRing(bytes(range(7, 200, 5)))
CLOCK = FakeClock()
SIGNED = SignedTokens(RING, "session", "visitor")
SEALED = SealedTokens(RING, "session", "visitor", CLOCK)
CODEC = CookieCodec("prefs", RING)
OPENED = {
    codec.seal(content): content for codec in (SIGNED, SEALED) for content in (b"", b"content", b'{"a":1}', b"x" * 2500)
}
TEXTS = {CODEC.encode(values): values for values in ({}, {"a": 1}, {"when": b"\0", "user": "zo\xeb"})}


def header(data: bytes) -> None:
    """Compare the scan of a Cookie header with the plain reading of RFC 6265bis."""
    text = data.decode("latin-1")
    pairs = [pair.partition("=") for pair in text.split(";")]
    for name in ("sid", "__Host-sid"):
        expected = [value.strip(" \t") for key, equals, value in pairs if equals and key.strip(" \t") == name]
        found = cookie_values(name=name, header=text)
        assert found == (expected[:MOST_DUPLICATES] if len(text) <= 16_384 else [])
    for name in ("X-Session", "Authorization"):
        assert len(HeaderTransport(name).tokens(text)) <= 1


def tokens(data: bytes) -> None:
    """Open no text but our own tokens."""
    text = data.decode("latin-1")
    for codec in (SIGNED, SEALED):
        try:
            content = codec.open(text)
        except BadCookie:
            continue
        assert content.rstrip() == OPENED[text].rstrip()


def codec(data: bytes) -> None:
    """Decode no text but our own."""
    text = data.decode("latin-1")
    try:
        values, expiries = CODEC.decode(text)
    except BadCookie:
        return
    assert (values, expiries) == (TEXTS[text], {})


def keys(data: bytes) -> None:
    """Take a secret or refuse it, and never show it."""
    half = len(data) // 2
    for secrets in (data, data.decode("latin-1"), data.decode("utf-8", "surrogateescape"), [data[:half], data[half:]]):
        try:
            ring = KeyRing(secrets)
        except ConfigError:
            continue
        assert ring.verify(data, ring.sign(data, "fuzz"), "fuzz")
        assert re.fullmatch(r"KeyRing\(ids=\[('[a-z2-7]{8}'(, )?){1,2}\]\)", repr(ring))


def policy(data: bytes) -> None:
    """Make of whatever the constructor takes a line that browsers keep, and a deletion that they obey."""
    given = atheris.FuzzedDataProvider(data)
    flags = {flag: given.ConsumeBool() for flag in ("http_only", "partitioned", "insecure_dev")}
    same_site = given.PickValueInList(["Lax", "Strict", "None", "lax"])
    name = given.PickValueInList(["", "__Host-", "__Secure-", "__Http-", "__Host-Http-"]) + given.ConsumeString(8)
    path = "/" + given.ConsumeString(8) if given.ConsumeBool() else given.ConsumeString(8)
    domain = given.ConsumeString(12) if given.ConsumeBool() else None
    try:
        made = CookiePolicy(name=name, path=path, domain=domain, same_site=same_site, **flags)
    except ConfigError:
        return
    writer = CookieWriter(made, name)
    line_of = f"{writer.before}token{writer.after}"
    for line in (line_of, line_of + lasting(60, 0), writer.erasure):
        assert re.fullmatch(r"[!-:<-~ ]+(; [!-:<-~ ]+)*", line, re.ASCII), line
    jar = CookieJar(CLOCK)
    where = {"host": made.domain or "example.org", "secure": not made.insecure_dev}
    assert jar.store(line_of, **where)
    jar.store(writer.erasure, **where)
    assert jar.cookies() == []


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "tokens": tokens,
    "codec": codec,
    "keys": keys,
    "policy": policy,
}
SEEDS: dict[str, list[bytes]] = {
    "header": [b"sid=x; a=b", b'a="b; sid=x; c=d"', b"__Host-sid=x;;sid = y\t", b"Bearer token", b"=sid=x"],
    "tokens": [token.encode() for token in OPENED],
    "codec": [text.encode() for text in TEXTS],
    "keys": [bytes(range(40)), b"correct horse battery staple, and more of it", b"changeme" * 5],
    "policy": [b"", bytes(range(64)), b"\1" * 40],
}


def main() -> None:
    """Fuzz one target in a folder of its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {Path(sys.argv[0]).name} {{{'|'.join(TARGETS)}}} [libFuzzer options]")
    name, options = sys.argv[1], sys.argv[2:]
    if not any(option.startswith(("-runs=", "-max_total_time=")) for option in options):
        options.append("-max_total_time=10")
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="sessiontree-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/", *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
