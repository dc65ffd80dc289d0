"""The signatures that others write code against, spelled as the contract spells them: they call by keyword too."""

from inspect import Parameter, signature

import pytest
from support import SECRET

import sessiontree
from sessiontree import Csrf, Enforcer, Handler, KeyRing, Metadata, Session, SessionInfo
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.local import LocalCache
from sessiontree.caches.null import NullCache
from sessiontree.caches.protocol import Cache
from sessiontree.caches.tiered import TieredCache
from sessiontree.handlers.codec import CookieCodec
from sessiontree.stores import PerKey, open_store
from sessiontree.stores.layered import LayeredStore
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.postgres import PostgresStore
from sessiontree.stores.protocol import Store
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.sqlite import SqliteStore

FRONT = {
    "Handler": "name, keys, *options",
    "KeyRing": "secrets",
    "CookiePolicy": "name=None, domain=None, path='/', secure=True, http_only=True, same_site='Lax', "
    "partitioned=False, insecure_dev=False",
    "Metadata": "start, user_agent, ip_address",
    "SessionInfo": "handle, handler, subject, metadata, created, seen, expires_at",
    "Enforcer": "*handlers",
    "Csrf": "handler",
    "chain": "*links",
    "fixed_id": "id",
    "with_absolute_timeout": "timeout",
    "with_cache": "cache",
    "with_clock": "clock",
    "with_cookie": "policy",
    "with_eager": "",
    "with_encryption": "on=True",
    "with_events": "f",
    "with_header": "name",
    "with_id_generator": "f",
    "with_idle_timeout": "timeout",
    "with_logger": "logger",
    "with_max_age": "max_age",
    "with_max_sessions": "n, policy='refuse'",
    "with_outage": "answer, stale_for=None",
    "with_revocations": "store",
    "with_serializer": "s",
    "with_store": "store",
}

VERBS = {
    Handler: {
        "configure": "*options",
        "spawn": "name, *options",
        "spawned": "child",
        "link": "app",
        "session": "request",
        "loaded": "request",
        "load": "request",
        "generate": "request",
        "load_by_id": "id, parent=None",
        "generate_by_id": "id, parent=None",
        "sessions": "subject",
        "revoke_all": "subject, keep=None",
        "revoke": "handle, subject=None",
        "sweep": "",
    },
    Session: {
        "put": "key, value, max_age=None",
        "delete": "key",
        "ttl": "key",
        "update_key": "key, fn, default=None",
        "incr": "key, n=1",
        "renew": "grace=0",
        "revoke": "",
        "clear": "",
        "bind": "subject",
        "fresh_within": "seconds",
        "children": "",
        "flash": "message, category='message'",
        "flashes": "",
        "merge": "other",
        "commit": "",
    },
    KeyRing: {"sign": "data, purpose"},
    Metadata: {"of": "request", "to_json": ""},
    Enforcer: {"any_of": "*handlers", "one_of": "*handlers", "highest": "*handlers", "guard": "view", "link": "app"},
    Csrf: {"token": "request", "link": "app"},
    Store: {
        "load": "handle, keys=None",
        "load_many": "handles",
        "create": "record",
        "apply": "handle, proof, changes",
        "revoke": "handle",
        "find": "label, value",
        "count": "label, *values",
        "relabel": "label, old, new",
        "revoke_where": "label, value",
        "sweep_idle": "older_than",
        "watch": "on_change",
        "close": "",
    },
    Cache: {
        "get": "handle, min_version=0",
        "lease": "handle",
        "put": "handle, record, lease",
        "drop": "handle",
        "clear": "",
        "clear_after": "seconds",
        "stats": "",
    },
    PerKey: {
        "get": "handle, key",
        "put": "handle, key, content, max_age=None",
        "delete": "handle, key",
        "time_to_expiry": "handle, key",
    },
    CookieCodec: {"decode": "text"},
}

MADE = {
    SqliteStore: "path",
    LayeredStore: "primary, front",
    RedisStore: "client",
    RedisStore.from_url: "url",
    PostgresStore: "pool",
    PostgresStore.from_url: "url",
    DiskCache: "directory",
    TieredCache: "l1, l2",
    PerKey: "store_or_cache",
    CookieCodec: "name, keys",
    open_store: "url",
}

SAME_AS = {
    Store: (MemoryStore, SqliteStore, RedisStore, PostgresStore, LayeredStore),
    Cache: (LocalCache, DiskCache, TieredCache, NullCache),
}
"""The verbs of a protocol are spelled alike by all that have them."""

CASES = [
    *((getattr(sessiontree, name), spelled) for name, spelled in FRONT.items()),
    *((getattr(kind, verb), spelled) for kind, verbs in VERBS.items() for verb, spelled in verbs.items()),
    *MADE.items(),
]


def spelled_out(call, most):
    """Return the first parameters of a call as they are written; more may follow if they can be left out."""
    parameters = [each for each in signature(call).parameters.values() if each.name != "self"]
    for each in parameters[most:]:
        assert each.default is not Parameter.empty or each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
    return ", ".join(str(each.replace(annotation=Parameter.empty)) for each in parameters[:most])


@pytest.mark.parametrize(("call", "spelled"), CASES, ids=lambda case: getattr(case, "__qualname__", None))
def test_every_signature_of_the_contract_is_spelled_as_it_says(call, spelled):
    assert spelled_out(call, len(spelled.split(", ")) if spelled else 0) == spelled


@pytest.mark.parametrize("kind", [kind for kinds in SAME_AS.values() for kind in kinds], ids=lambda kind: kind.__name__)
def test_who_has_the_verbs_of_a_protocol_spells_them_as_it_does(kind):
    protocol = next(protocol for protocol, kinds in SAME_AS.items() if kind in kinds)
    for verb, spelled in VERBS[protocol].items():
        made = getattr(kind, verb, None) or getattr(kind(), verb)
        assert spelled_out(made, len(spelled.split(", ")) if spelled else 0) == spelled, verb


def test_what_the_contract_names_can_be_passed_by_name():
    job = Handler("job", SECRET, sessiontree.with_store(store=MemoryStore()), sessiontree.server_only())
    made = job.generate_by_id(id="a", parent=None)
    assert job.load_by_id(id="a").handle == made.handle
    assert LocalCache(max_sessions=1, max_staleness=1, policy=None).max_staleness == 1
    assert SessionInfo.__slots__[:7] == (
        "handle", "handler", "subject", "metadata", "created", "seen", "expires_at",
    )  # fmt: skip
    assert signature(Session.touch).parameters["max_age"].kind is Parameter.POSITIONAL_OR_KEYWORD
    assert list(signature(Store.scan).parameters)[1:] == ["after", "limit"]
    assert list(signature(Store.sweep).parameters)[1:] == ["limit"]
    assert list(signature(CookieCodec.encode).parameters)[1:] == ["values", "expiries"]
