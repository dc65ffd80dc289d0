"""Whole requests behind caches in every trouble: each finds what the store has, and what is dead stays dead.

Each case runs the same random requests to a handler with the cache and to one without, on one store, and whatever
the cache does, both find the same.
"""

import random
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from itertools import count

import pytest
from support import SECRET, SOAK, Site

from sessiontree import Handler, with_cache, with_clock, with_store
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.disk import rows as disk_rows
from sessiontree.caches.local import LocalCache
from sessiontree.caches.null import NullCache
from sessiontree.caches.tiered import TieredCache
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock

REQUESTS = 150 * SOAK
SESSIONS = 6


class Flapping(LocalCache):
    """Fails at every other reading and filling; what every cache must do, it does: it forgets."""

    def __init__(self, clock, share=2):
        super().__init__(clock=clock)
        self._calls, self._share = count(), share
        for verb in ("get", "is_absent", "lease", "put"):
            setattr(self, verb, self._now_and_then(getattr(self, verb)))

    def _now_and_then(self, call):
        def either(*arguments):
            if next(self._calls) % self._share == 0:
                raise ConnectionError("The cache does not answer.")
            return call(*arguments)

        return either


class Trouble:
    """What happens to a cache; ``shake`` is called before each request."""

    def __init__(self, tmp_path, clock, monkeypatch):
        self.folder, self.clock, self.monkeypatch = tmp_path / "cache", clock, monkeypatch

    def cache(self):
        return LocalCache(clock=self.clock)

    def shake(self, number):
        """Leave it alone."""

    def close(self):
        """Have nothing to let go of."""


class Down(Trouble):
    def cache(self):
        return Flapping(self.clock, share=1)


class Flaps(Trouble):
    def cache(self):
        return Flapping(self.clock)


class FullOfSessions(Trouble):
    def cache(self):
        return LocalCache(max_sessions=2, clock=self.clock)


class FullOfBytes(Trouble):
    def cache(self):
        return LocalCache(max_bytes=300, clock=self.clock)


class FullDisk(Trouble):
    def cache(self):
        self.monkeypatch.setattr(disk_rows, "PRAGMAS", (*disk_rows.PRAGMAS, "PRAGMA max_page_count=20"))
        return DiskCache(self.folder, clock=self.clock)


class LockedDisk(Trouble):
    """Somebody else has the file to himself every few requests: each call waits, and then the disk is left alone."""

    def cache(self):
        self.made = DiskCache(self.folder, clock=self.clock, timeout=0.001)
        self.other = None
        return self.made

    def shake(self, number):
        if number % 10 == 3:
            name = self.made._databases.place().name
            self.other = sqlite3.connect(self.folder / name / "cache.db", isolation_level=None)
            self.other.execute("BEGIN EXCLUSIVE")
        elif number % 10 == 8:
            self.close()

    def close(self):
        if self.other is not None:
            self.other.close()
        self.other = None


class VanishingDisk(Trouble):
    """Somebody removes the whole folder now and then, or what the link names."""

    def cache(self):
        return DiskCache(self.folder, clock=self.clock)

    def shake(self, number):
        if number % 7 == 3:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class FlappingTiers(LockedDisk):
    def cache(self):
        return TieredCache(LocalCache(max_sessions=2, clock=self.clock), super().cache())


class Nothing(Trouble):
    def cache(self):
        return NullCache(clock=self.clock)


TROUBLES = {
    "none": Trouble,
    "keeps nothing": Nothing,
    "down": Down,
    "flapping": Flaps,
    "full of sessions": FullOfSessions,
    "full of bytes": FullOfBytes,
    "full disk": FullDisk,
    "locked disk": LockedDisk,
    "vanishing disk": VanishingDisk,
    "flapping tiers": FlappingTiers,
}


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def trouble(request, tmp_path, monkeypatch):
    made = request.param(tmp_path, FakeClock(), monkeypatch)
    yield made
    made.close()


def looked(session, rng):
    """Read all there is."""
    return dict(session)


def written(session, rng):
    """Change the session in one of the ways there are."""
    how, number = rng.choice(["set", "incr", "delete", "update"]), rng.randrange(1000)
    if how == "set":
        session[f"k{number % 5}"] = number
    elif how == "incr":
        session.incr("count")
    elif how == "delete":
        session.delete(f"k{number % 5}")
    else:
        session.update_key("sum", lambda before: before + number, 0)


def ended(session, rng):
    """Leave the id, or the session, behind."""
    rng.choice([session.renew, session.revoke, session.regenerate])()


def test_ca_5_whatever_befalls_a_cache_every_request_finds_what_the_store_has(trouble, tmp_path):
    rng, clock = random.Random(7), trouble.clock
    with closing(SqliteStore(tmp_path / "s.db", clock=clock)) as store:
        plain = Handler("visitor", SECRET, with_clock(clock), with_store(store))
        cached, truth = Site(plain.configure(with_cache(trouble.cache()))), Site(plain)
        browsers = [cached.another_browser() for _ in range(SESSIONS)]
        dead: list[str] = []
        for number in range(REQUESTS):
            trouble.shake(number)
            browser = rng.choice(browsers)
            before = browser.jar.header()
            action = rng.choices([looked, written, ended], [6, 3, 1])[0]
            cached.visit(partial(action, rng=rng), browser)
            assert cached.answer.code == 200
            cookie = browser.jar.header()
            if action is ended and before != cookie:
                dead.append(before)
            assert cached.visit(dict, browser) == truth.visit(dict, HTTP_COOKIE=cookie)
            for old in dead[-5:]:
                assert cached.visit(dict, cached.another_browser(), HTTP_COOKIE=old) == {}
            clock.advance(rng.choice([0, 0.01, 2, 10]))


def test_ca_5_a_write_that_came_too_late_is_refused_whatever_befalls_the_cache(trouble, tmp_path):
    clock = trouble.clock
    with closing(SqliteStore(tmp_path / "s.db", clock=clock)) as store:
        plain = Handler("visitor", SECRET, with_clock(clock), with_store(store))
        cached = Site(plain.configure(with_cache(trouble.cache())))
        for number in range(30):
            trouble.shake(number)
            browser = cached.another_browser()
            cached.visit(lambda session, number=number: session.update(n=number), browser)
            kept = browser.jar.header()

            def late(session):
                assert session["n"] >= 0
                store.revoke(session.handle)  # by another request, meanwhile
                session["m"] = 1

            cached.visit(late, browser)
            assert (cached.answer.code, cached.answer.cookies) == (409, [])
            assert cached.visit(dict, cached.another_browser(), HTTP_COOKIE=kept) == {}
            clock.advance(0.5)
