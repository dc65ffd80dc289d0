"""A DiskCache believes nothing that lies in its folder, and serves nothing whose drop is in doubt."""

import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import diskcache
import pytest
from scheduler import Database, Scenario, Scheduler
from support import OTHER_SECRET, SECRET, SOAK

from sessiontree import ConfigError, KeyRing
from sessiontree.caches.conformance.tools import InterruptedClock, a_record, at_once, fresh_handle, put, served
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.disk import cache as disk
from sessiontree.caches.disk import current as disk_current
from sessiontree.caches.disk import files as disk_files
from sessiontree.caches.disk import rows as disk_rows
from sessiontree.caches.disk.databases import FailedError
from sessiontree.caches.disk.seal import Seal
from sessiontree.clock import FakeClock
from sessiontree.forks import Gate
from sessiontree.records import packed

RING = KeyRing(SECRET)
CALLS = []


class Evil:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return CALLS.append, ("unpickled",)


PICKLE = pickle.dumps(Evil())
TRAP = [
    "pickle.loads", "pickle.load", "pickle.Unpickler", "pickle.dumps", "pickle.dump", "pickle.Pickler", "pickle._loads",
    "pickle._load", "diskcache.core.pickle.loads", "diskcache.core.pickle.load",
]  # fmt: skip


def trapped(*arguments, **named):
    CALLS.append("trapped")
    raise AssertionError("Something was pickled or unpickled.")


class NoFiles:
    """In place of ``os`` within diskcache: the parts that it needs, and none that touches a file."""

    path, getpid, makedirs, sep = os.path, os.getpid, os.makedirs, os.sep

    def __getattr__(self, name):
        CALLS.append(name)
        raise AssertionError(f"diskcache used os.{name}.")


@pytest.fixture(autouse=True)
def _nothing_is_unpickled_and_no_file_touched(monkeypatch):
    """Whatever a test does: diskcache unpickles nothing, opens no file and removes none."""
    CALLS.clear()
    for name in TRAP:
        monkeypatch.setattr(name, trapped)
    monkeypatch.setattr("diskcache.core.open", trapped, raising=False)
    monkeypatch.setattr("diskcache.core.os", NoFiles())
    yield
    assert CALLS == []


@pytest.fixture
def clock():
    return InterruptedClock()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def opened(folder, clock):
    """Open caches on the folder; each is closed at the end."""
    caches = []

    def open_one(keys=RING, **more):
        caches.append(DiskCache(folder, keys, **{"clock": clock, "timeout": 0.01, **more}))
        return caches[-1]

    yield open_one
    for each in caches:
        each.close()


@pytest.fixture
def cache(opened):
    return opened()


def file_of(cache):
    return cache._databases.folder / cache._databases.place().name / "cache.db"


def changed(cache, sql, *arguments):
    """Change the database as somebody else might who can write to the folder."""
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection.execute(sql, arguments).fetchall()


def filled(cache, handle=None, **more):
    record = a_record(cache, handle, **more)
    assert put(cache, record)
    assert served(cache, record.handle) == record
    return record


def modes(folder):
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*") if not path.is_symlink()}


def works(cache):
    """Tell whether the cache does what it is for."""
    record = a_record(cache)
    is_kept = put(cache, record) and served(cache, record.handle) == record
    cache.drop(record.handle)
    return is_kept and cache.get(record.handle) is None


# -- the folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o777])
def test_st_9_the_folder_and_all_in_it_are_its_owners_alone(folder, opened, umask):
    before = os.umask(umask)
    try:
        cache = opened(None)
        filled(cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = modes(folder)
    assert {"key", "lock", "cache.db", "cache.db-wal"} <= set(found)
    assert not any(mode & 0o077 for mode in found.values())


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o770, 0o777, 0o1777])
def test_st_9_a_folder_that_others_may_use_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"):
        DiskCache(folder)
    assert list(folder.iterdir()) == []


def test_st_9_a_folder_that_is_a_link_is_refused(tmp_path, folder):
    target = tmp_path / "elsewhere"
    target.mkdir(0o700)
    folder.symlink_to(target)
    with pytest.raises(ConfigError, match="link"):
        DiskCache(folder)
    assert list(target.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_st_9_a_folder_of_another_user_is_refused(folder):
    folder.mkdir(0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        DiskCache(folder)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "a" / "b", tmp_path / "file" / "a", "", "a\0b", b"bytes"):
        with pytest.raises(ConfigError):
            DiskCache(wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 0}, {"max_bytes": True}, {"max_bytes": 1e9}, {"max_bytes": (1 << 20) - 1}, {"max_staleness": -1},
     {"timeout": -1}, {"timeout": 86_401}, {"max_staleness": True}, {"keys": "short"}],
)  # fmt: skip
def test_wrong_settings_are_config_errors(folder, wrong):
    with pytest.raises(ConfigError):
        DiskCache(folder, **wrong)


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    """The original would look for the home folder, and make one where a variable says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAME", "elsewhere")
    for name in ("$NAME", "~", "${NAME}x", "a?b#c%20d", "é \n"):
        with closing(DiskCache(name, RING)) as cache:
            assert works(cache)
        assert (tmp_path / name / "lock").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(DiskCache("cache", RING)) as cache:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        cache.clear()
        assert works(cache)
    assert list((tmp_path / "other").iterdir()) == []


# -- keys ---------------------------------------------------------------------------------------


def test_without_keys_one_is_made_and_shared(opened, folder):
    one = opened(None)
    key = (folder / "key").read_bytes()
    assert len(key) == 32
    record = filled(one)
    assert served(opened(None), record.handle) == record
    assert (folder / "key").read_bytes() == key


def test_with_keys_none_is_made(opened, folder):
    opened()
    assert not (folder / "key").exists()


@pytest.mark.parametrize("damage", ["short", "long", "mode", "link", "folder", "twice"])
def test_a_key_that_others_may_know_is_refused(folder, tmp_path, damage):
    DiskCache(folder).close()
    key, kept = folder / "key", tmp_path / "kept"
    shutil.copy(key, kept)
    kept.chmod(0o600)
    if damage in {"link", "folder", "twice"}:
        key.unlink()
        {"link": lambda: key.symlink_to(kept), "folder": key.mkdir, "twice": lambda: key.hardlink_to(kept)}[damage]()
    elif damage == "mode":
        key.chmod(0o640)
    else:
        key.write_bytes(b"x" * (31 if damage == "short" else 33))
    with pytest.raises(ConfigError, match="key"):
        DiskCache(folder)


def test_neither_handles_nor_contents_lie_in_the_files(cache, folder):
    record = filled(cache, agent="Mozilla/5.0 (X11)", fields=packed({"word": "a rather long and rare word"}))
    cache.put("an absent handle", None, cache.lease("an absent handle"))
    cache.close()
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert len(everything) > 10_000
    for secret in (record.handle, "an absent handle", "Mozilla", "rather long", record.proof.decode()):
        assert secret.encode() not in everything


def test_a_drop_counts_for_every_key_of_the_ring(opened):
    """While keys are rolled over several processes: [old], then [old, new], then [new, old]."""
    steps = [opened(KeyRing(keys)) for keys in (SECRET, [SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET])]
    name = steps[0]._databases.place().name
    for before, after in pairwise(steps):
        for one, other in ((before, after), (after, before)):
            record = filled(one)
            lease = other.lease(record.handle)
            other.drop(record.handle)
            assert one.get(record.handle) is None
            assert put(one, record)
            one.drop(record.handle)
            assert not other.put(record.handle, record, lease)
    assert all(cache._databases.place().name == name for cache in steps)


def test_other_keys_begin_another_database(opened):
    one = opened()
    record = filled(one)
    other = opened(KeyRing(OTHER_SECRET))
    assert other.get(record.handle) is None
    assert works(other)
    assert opened(KeyRing(SECRET, realm="staging")).get(record.handle) is None


def read_in_turn(*caches, rounds=20):
    """Have each fill what it misses; return how many hits each had, and how many databases there were."""
    before = [cache.stats().hits for cache in caches]
    names = set()
    for _ in range(rounds):
        for number, cache in enumerate(caches):
            if cache.get(f"of {number}") is None:
                put(cache, a_record(cache, f"of {number}"))
            names.add(cache._databases.place().name)
    return [cache.stats().hits - hits for cache, hits in zip(caches, before, strict=True)], len(names)


def test_two_rings_in_one_folder_do_not_replace_each_others_database_with_every_call(opened, clock, caplog):
    one, other = opened(), opened(KeyRing(OTHER_SECRET))
    hits, names = read_in_turn(one, other)
    assert max(hits) >= 18, "One of them has the folder,"
    assert one.stats().errors + other.stats().errors >= 20, "and that the other has not is counted."
    assert names <= 3
    assert "give each ring of keys a folder of its own" in caplog.text
    clock.advance(disk_current.DAMAGE + 1)
    hits, names = read_in_turn(one, other)
    assert max(hits) >= 18
    assert names <= 4


def test_what_one_of_two_rings_drops_while_it_rests_is_served_by_neither(opened):
    """They may have a key in common: [old] and [new, old] do, and what begins the database decides who can use it."""
    rings = [KeyRing(OTHER_SECRET), KeyRing([SECRET, OTHER_SECRET])]
    one, other = opened(rings[0]), opened(rings[1])
    other.clear()
    filled(other)
    one.get("x")
    other.clear()
    record = filled(other)
    assert one.get("x") is None
    assert one._current._breaker.begin() is None
    one.drop(record.handle)
    assert other.get(record.handle) is None


def test_a_roll_from_one_key_to_another_ends_when_the_old_processes_do(opened, clock):
    old, new = opened(), opened(KeyRing(OTHER_SECRET))
    read_in_turn(old, new)
    old.close()
    clock.advance(disk_current.DAMAGE + 1)
    [hits], names = read_in_turn(new)
    assert (hits >= 19, names <= 2) == (True, True)


@pytest.mark.parametrize("whole", [True, False])
def test_a_process_takes_the_new_key_of_a_folder_that_was_emptied(opened, folder, whole):
    """Who cleans folders of temporary files takes all, or the key alone, which nobody has read for long."""
    one = opened(None)
    filled(one)
    if whole:
        shutil.rmtree(folder)
    else:
        (folder / "key").unlink()
    other = opened(None)
    record = filled(other)
    one.get("whatever")
    assert one.get(record.handle) == record
    one.drop(record.handle)
    assert other.get(record.handle) is None
    assert read_in_turn(one, other) == ([19, 19], 1)
    assert (folder / "key").exists()


def test_the_key_of_an_entry_lasts_an_hour_and_entries_outlast_it(opened, clock):
    cache = opened(max_staleness=86_400)
    handles = []
    for _ in range(100):
        handles.append(filled(cache).handle)
        clock.advance(720)
    assert [cache.get(handle) is not None for handle in handles] == [True] * 100
    assert len(cache._databases.seals[0]._keys._kept) == 20


def test_what_was_sealed_before_the_clock_was_set_back_opens_after_it(clock):
    before = Seal(SECRET, clock).seal(b"content", b"r", "name", "handle")
    clock.advance(-86_400)
    assert Seal(SECRET, clock).open(before, b"r", "name", "handle") == b"content"


# -- rows that somebody changed -----------------------------------------------------------------


@pytest.fixture
def victim(tmp_path):
    """A file outside, in folders that would go with it."""
    path = tmp_path / "outer" / "inner" / "victim"
    path.parent.mkdir(parents=True)
    path.write_bytes(PICKLE)
    yield path
    assert path.read_bytes() == PICKLE


def row(**columns):
    """Return what changes the row of the only record so."""
    changes = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE OR REPLACE Cache SET {changes}", tuple(columns.values())  # noqa: S608 - names of ours


ROWS = {
    "unpickled": row(mode=4, value=PICKLE),
    "unpickled from text": row(mode=4, value="csystem\n"),
    "unpickled, sealed before": row(mode=4),
    "no mode": row(mode=0),
    "an odd mode": row(mode="1x"),
    "no mode at all": row(mode=None),
    "text": row(value="text"),
    "a number": row(value=5),
    "a fraction": row(value=5.5),
    "nothing": row(value=None),
    "empty": row(value=b""),
    "short": row(value=b"x" * 16),
    "long": row(value=b"x" * 10_000),
    "a pickle as it is": row(value=PICKLE),
    "not raw": row(raw=0),
    "not raw, a pickle": row(raw=0, key=PICKLE),
    "another key": row(key=b"x" * 20),
    "over": row(expire_time=1.0),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_was_changed_is_a_miss(cache, name):
    record = filled(cache)
    changed(cache, *(ROWS[name][0], *ROWS[name][1]))
    assert cache.get(record.handle) is None
    assert cache.stale(record.handle, 0, 3600) is None
    assert not cache.is_absent(record.handle)
    assert cache.stats().misses == 1
    newer = record._replace(version=2)
    assert put(cache, newer)
    assert served(cache, record.handle) == newer
    changed(cache, *(ROWS[name][0], *ROWS[name][1]))
    cache.drop(record.handle)
    assert cache.get(record.handle) is None
    assert works(cache)


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_row_that_names_a_file_touches_none(opened, victim, mode, is_absolute):
    cache = opened(max_bytes=1 << 20)
    record = filled(cache)
    name = str(victim) if is_absolute else os.path.relpath(victim, file_of(cache).parent)
    for value in (None, b"x"):
        change = row(mode=mode, filename=name, value=value, size=1 << 40, store_time=0)
        changed(cache, change[0], *change[1])
        assert cache.get(record.handle) is None
        assert put(cache, record)
        changed(cache, change[0], *change[1])
        cache.drop(record.handle)
        assert put(cache, record)
        changed(cache, change[0], *change[1])
        for _ in range(40):  # until it is culled
            filled(cache, fields=packed({"a": "x" * 60_000}))
        assert cache.get(record.handle) is None
        cache.clear()
        filled(cache, record.handle)
    assert cache.stats().evictions > 0


def test_ca_6_a_value_that_was_cut_or_changed_anywhere_is_a_miss(cache):
    record = filled(cache)
    [(value,)] = changed(cache, "SELECT value FROM Cache")
    for place in range(len(value)):
        for wrong in (value[:place], value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]):
            changed(cache, "UPDATE Cache SET value = ?", wrong)
            assert cache.get(record.handle) is None
    assert cache.stats().errors == 2 * len(value)
    changed(cache, "UPDATE Cache SET value = ?", value)
    assert served(cache, record.handle) == record


def test_ca_6_values_that_were_swapped_are_misses(cache):
    records = [filled(cache) for _ in range(2)]
    cache.put("absent", None, cache.lease("absent"))
    values = changed(cache, "SELECT key, value FROM Cache ORDER BY rowid")
    for key, _ in values:
        for other, value in values:
            if other != key:
                changed(cache, "UPDATE Cache SET value = ? WHERE key = ?", value, key)
                assert [cache.get(record.handle) for record in records].count(None) == (len(key) == 20)
                assert cache.is_absent("absent") is (len(key) == 20)
                assert not any(cache.is_absent(record.handle) for record in records)
        changed(cache, "UPDATE Cache SET value = ? WHERE key = ?", dict(values)[key], key)
    assert [served(cache, record.handle) for record in records] == records


def test_ca_6_a_record_is_no_absence_and_an_absence_no_record(cache):
    record = filled(cache)
    [(value,)] = changed(cache, "SELECT value FROM Cache")
    place = disk._absent_key(record.handle)
    changed(cache, "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 1, ?)", place, value)
    assert not cache.is_absent(record.handle)
    assert cache.put(record.handle, None, cache.lease(record.handle))
    [(value,)] = changed(cache, "SELECT value FROM Cache")
    row = cache._databases.seals[0].key(record.handle)
    changed(cache, "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 1, ?)", row, value)
    assert cache.get(record.handle) is None
    assert cache.stats().errors == 1


def test_ca_6_a_value_of_another_database_is_a_miss(cache):
    record = filled(cache)
    [(key, value)] = changed(cache, "SELECT key, value FROM Cache")
    cache.clear()
    filled(cache, record.handle)
    changed(cache, "UPDATE Cache SET value = ? WHERE key = ?", value, key)
    assert cache.get(record.handle) is None


def test_ca_6_a_row_that_was_put_back_is_as_old_as_it_was(cache, clock):
    """Who can write to the folder can put an entry back. It says itself since when it is one."""
    record = filled(cache)
    [(value,)] = changed(cache, "SELECT value FROM Cache")
    clock.advance(4.999)
    newer = filled(cache, record.handle, version=2)
    changed(cache, "UPDATE Cache SET value = ?", value)
    assert cache.get(record.handle, newer.version) is None
    clock.advance(0.001)
    assert cache.get(record.handle) is None


def test_a_huge_row_is_not_read(opened):
    cache = opened(max_bytes=1 << 20)
    record = filled(cache)
    changed(cache, f"UPDATE Cache SET value = zeroblob({disk_rows.WIDEST + 1})")  # noqa: S608 - a number
    assert cache.get(record.handle) is None
    assert works(cache)
    assert (cache._databases.folder / "damaged").exists()


def test_culling_takes_what_was_stored_first_whatever_the_rows_say(opened):
    cache = opened(max_bytes=1 << 20)
    filled(cache)
    changed(cache, "UPDATE Cache SET store_time = 'x', size = 'y', tag = 'z', access_count = NULL")
    changed(cache, "UPDATE Settings SET value = 'much' WHERE key IN ('size', 'count')")
    for _ in range(50):
        filled(cache, fields=packed({"a": "x" * 60_000}))
    assert cache.stats().errors == 0


# -- settings, schema, and files that somebody changed --------------------------------------------

SETTINGS = [
    ("sqlite_user_version", 42), ("sqlite_user_version = 42; --", 42), ("sqlite_writable_schema", 1), ("disk_evil", 1),
    ("disk_min_file_size", 1), ("get", "x"), ("_con", 1), ("eviction_policy", "none"), ("statistics", 1), ("", ""),
    (b"sqlite_user_version", 42), (5, 5), ("size_limit", "x"), ("cull_limit", -1), ("tag_index", 1),
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
def test_a_setting_that_was_added_does_nothing(cache, opened, setting):
    record = filled(cache)
    old = file_of(cache)
    changed(cache, "INSERT OR REPLACE INTO Settings VALUES (CAST(? AS BLOB), ?)" if isinstance(setting[0], bytes)
            else "INSERT OR REPLACE INTO Settings VALUES (?, ?)", *setting)  # fmt: skip
    cache._current.rows.rest()  # So that a connection is opened with it.
    assert served(cache, record.handle) == record
    assert works(cache)
    other = opened()
    assert other.get(record.handle) is None, "It is another database now."
    assert works(other)
    assert works(cache)
    assert (cache._databases.folder / "damaged" / "cache.db").exists()
    assert not old.exists()
    with closing(sqlite3.connect(cache._databases.folder / "damaged" / "cache.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
def test_a_setting_that_is_added_between_the_check_and_the_opening_does_nothing_either(cache, setting):
    path = file_of(cache)
    cache.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", setting)
    with suppress(TypeError, AttributeError):  # a name that is no text
        rows = disk_rows.Rows(path, 1 << 20, 0.01)
        rows.use(lambda rows: rows.set(b"key", b"value"))
        assert rows.use(lambda rows: rows.get(b"key")) == b"value"
        assert rows.use(lambda rows: rows.execute("PRAGMA writable_schema")) == [(0,)]
        assert (rows.eviction_policy, rows.statistics, rows.tag_index) == ("least-recently-stored", 0, 0)
        rows.shut()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


SCHEMAS = [
    "CREATE TRIGGER t AFTER DELETE ON Cache BEGIN INSERT INTO Cache SELECT * FROM Cache WHERE 0; END",
    "CREATE VIEW v AS SELECT 1",
    "CREATE TABLE t (a)",
    "CREATE INDEX i ON Cache (value)",
    "DROP TRIGGER Settings_count_insert",
    "DROP TABLE Cache",
    "DROP TABLE Drops",
    "DROP TABLE Mark",
    "DROP TABLE Settings",
    "ALTER TABLE Cache ADD COLUMN more",
    "ALTER TABLE Mark RENAME TO Marks",
    "DELETE FROM Mark",
    "INSERT INTO Mark VALUES ('x')",
    "UPDATE Mark SET mark = 'x'",
    "UPDATE Mark SET mark = zeroblob(100)",
    "UPDATE Mark SET mark = 5",
    "DELETE FROM Settings",
    "UPDATE Settings SET value = 1 WHERE key = 'tag_index'",
]


@pytest.mark.parametrize("sql", SCHEMAS)
def test_a_database_that_was_changed_is_set_aside_by_whoever_opens_it(cache, opened, sql):
    record = filled(cache)
    changed(cache, sql)
    other = opened()
    assert other.get(record.handle) is None
    assert works(other)
    assert works(cache), "Who has it open goes along."
    assert (cache._databases.folder / "damaged" / "cache.db").exists()


def test_a_view_that_never_ends_is_not_looked_into(cache, opened):
    changed(cache, "DROP TABLE Mark")
    changed(
        cache,
        "CREATE VIEW Mark AS WITH RECURSIVE n(mark) AS (SELECT 1 UNION ALL SELECT mark + 1 FROM n) "
        "SELECT mark FROM n WHERE mark < 0",
    )
    assert works(opened())


def test_ca_3_a_drop_that_a_trigger_undoes_is_noticed(cache, clock):
    record = filled(cache)
    columns = "key, raw, store_time, access_count, size, mode, value"
    old = ", ".join(f"old.{name}" for name in columns.split(", "))
    changed(
        cache,
        f"CREATE TRIGGER t AFTER DELETE ON Cache BEGIN INSERT INTO Cache ({columns}) VALUES ({old}); END",  # noqa: S608
    )
    lease = cache.lease(record.handle)
    cache.drop(record.handle)
    assert cache.get(record.handle) is None
    assert not cache.put(record.handle, record, lease)
    assert cache.stale(record.handle, 0, 3600) is None
    assert cache.stats().errors >= 1
    clock.advance(1)
    assert works(cache)


@pytest.mark.parametrize("number", ["'x'", "NULL", "9223372036854775807", "9.3e18", "x'00'", "-5"])
def test_a_counter_that_was_changed_cancels_every_lease(cache, clock, number):
    record = filled(cache)
    cache.drop(record.handle)
    lease = cache.lease(record.handle)
    changed(cache, "DROP TABLE Drops")
    changed(cache, "CREATE TABLE Drops (stripe INTEGER PRIMARY KEY, number)")
    changed(cache, f"INSERT INTO Drops VALUES (?, {number})", disk._stripe(record.handle))  # noqa: S608
    assert not cache.put(record.handle, record, lease)
    lease = cache.lease(record.handle)
    cache.drop(record.handle)
    assert not cache.put(record.handle, record, lease)
    assert cache.get(record.handle) is None
    clock.advance(30)
    assert works(cache)


def test_ca_5_a_database_that_is_garbage_is_set_aside_and_begun_anew(cache, opened, clock):
    for content in (b"garbage" * 10_000, b"SQLite format 3\0" + b"\0" * 4000, b"\xff" * 100):
        record = filled(cache)
        path = file_of(cache)
        for name in disk_files.FILES[1:]:
            path.with_name(name).unlink(missing_ok=True)
        path.write_bytes(content)
        other = opened()
        assert other.get(record.handle) is None
        assert works(other)
        assert works(cache)
        assert (cache._databases.folder / "damaged" / "cache.db").read_bytes() == content
        clock.advance(60)


def test_ca_5_damage_in_use_is_misses_and_a_new_database_and_no_exception(cache, clock):
    for number in range(200):
        filled(cache, f"handle {number}")
    path = file_of(cache)
    changed(cache, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(1, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4000)
    cache._current.rows.rest()
    for number in range(200):
        assert cache.get(f"handle {number}") is None
    assert cache.stats().errors >= 1
    clock.advance(60)
    assert works(cache)
    assert (cache._databases.folder / "damaged" / "cache.db").exists()


def test_ca_5_what_is_damaged_twice_in_a_row_is_left_alone_for_a_while(cache, clock):
    record = filled(cache)
    names = []
    for _ in range(2):
        assert put(cache, record)
        names.append(file_of(cache).parent.name)
        changed(cache, "DROP TABLE Cache")
        assert cache.get(record.handle) is None
        cache.drop("something else")
    assert len(set(names)) == 2
    for _ in range(10):
        assert not put(cache, record)
        assert cache._databases.place() is None
        clock.advance(0.999)
    clock.advance(0.01)
    assert works(cache)


def test_what_another_has_replaced_meanwhile_is_no_damage(cache, opened):
    """A connection to what is gone fails, and the next call finds what is there now."""
    other = opened()
    for _ in range(5):
        filled(cache)
        rows, place = cache._current.rows, cache._databases.place
        rows.rest()
        moments = iter([place()])
        cache._databases.place = lambda moments=moments, place=place: next(moments, None) or place()
        other.clear()
        assert cache.get("a") is None
        assert cache._current.rows is rows
        del cache._databases.place
        assert works(cache)


def test_what_goes_wrong_is_logged_once(cache, caplog):
    record = filled(cache)
    for _ in range(3):
        changed(cache, "UPDATE Cache SET value = 'x' || value")
        changed(cache, "UPDATE Cache SET value = CAST(value AS BLOB)")
        assert cache.get(record.handle) is None
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            assert not put(cache, record)
    changed(cache, "DROP TABLE Cache")
    assert cache.get(record.handle) is None
    told = [each.getMessage() for each in caplog.records if each.name == "sessiontree.caches"]
    assert [word in message for word, message in zip(["open", "failed", "damaged"], told, strict=True)] == [True] * 3
    assert all(str(cache._databases.folder) in message and record.handle not in message for message in told)


@pytest.mark.parametrize("verb", ["drop", "clear"])
def test_what_is_torn_out_of_forgetting_is_in_doubt(cache, monkeypatch, verb):
    record = filled(cache)

    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((cache._current.rows, "transact", interrupt) if verb == "drop" else (Path, "unlink", interrupt))
        )
        with pytest.raises(KeyboardInterrupt):
            cache.drop(record.handle) if verb == "drop" else cache.clear()
    assert cache.get(record.handle) is None
    assert changed(cache, "SELECT count(*) FROM Cache") == [(1,)]


@pytest.mark.parametrize("what", ["empty", "gone", "link", "hardlink", "folder", "fifo", "mode", "owner"])
def test_a_database_file_that_is_not_ours_is_left_as_it_is(cache, opened, tmp_path, what):
    record = filled(cache)
    path, elsewhere = file_of(cache), tmp_path / "elsewhere.db"
    cache.close()
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(elsewhere)) as copy:
        connection.backup(copy)
    elsewhere.chmod(0o600)
    before = elsewhere.read_bytes()
    if what in {"mode", "owner"}:
        if what == "owner" and os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        path.chmod(0o640) if what == "mode" else os.chown(path, 12345, 12345)
    else:
        path.unlink()
        {
            "empty": path.touch, "gone": lambda: None, "link": lambda: path.symlink_to(elsewhere),
            "hardlink": lambda: path.hardlink_to(elsewhere), "folder": path.mkdir,
            "fifo": lambda: os.mkfifo(path, 0o600),
        }[what]()  # fmt: skip
    other = opened()
    assert other.get(record.handle) is None
    assert works(other)
    assert elsewhere.read_bytes() == before


def test_a_log_that_is_a_link_leads_nowhere(cache, opened, victim):
    record = filled(cache)
    path = file_of(cache)
    cache.close()
    for name in disk_files.FILES[1:]:
        path.with_name(name).unlink(missing_ok=True)
        path.with_name(name).symlink_to(victim)
    other = opened()
    assert other.get(record.handle) is None
    other.drop(record.handle)
    put(other, record)


@pytest.mark.parametrize(
    "text",
    ["", "x", "../outer/inner", "/etc", "0" * 32, "0" * 32 + ".0.0.0", "0" * 31 + "/.0.0.0", "0" * 32 + ".0.0.-1",
     "0" * 32 + ".0.0." + "9" * 30, "current", "lock", "."],
)  # fmt: skip
def test_a_link_to_anything_else_is_replaced(cache, folder, victim, text):
    record = filled(cache)
    link = folder / "current"
    link.unlink()
    link.symlink_to(text) if text else link.write_text("")
    assert cache.get(record.handle) is None
    cache.drop(record.handle)
    assert works(cache)
    assert link.is_symlink()


def test_a_folder_of_a_database_that_is_a_link_leads_nowhere(cache, opened, tmp_path):
    filled(cache)
    inside, outside = file_of(cache).parent, tmp_path / "outside"
    cache.close()
    inside.rename(outside)
    inside.symlink_to(outside)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    assert works(opened())
    opened().clear()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def test_a_lock_that_is_a_link_is_not_followed(folder, tmp_path, opened):
    folder.mkdir(0o700)
    (folder / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(ConfigError):
        opened(None)
    cache = opened()
    assert not works(cache)
    assert cache.stats().errors > 0
    assert not (tmp_path / "made").exists()


def test_what_killed_processes_left_is_removed_and_nothing_else(opened, folder):
    cache = opened()
    left = [folder / ("0" * 32), folder / "current.0123456789abcdef", folder / "key.0123456789abcdef"]
    left[0].mkdir()
    (left[0] / "cache.db").touch()
    left[1].symlink_to("x")
    left[2].touch()
    others = [folder / "notes.txt", folder / "current.bak", folder / "deadbeef"]
    for path in others:
        path.touch()
    cache.clear()
    assert works(cache)
    assert not any(os.path.lexists(path) for path in left)
    assert all(path.exists() for path in others)


def test_a_folder_that_vanishes_is_misses(cache, folder, clock):
    record = filled(cache)
    shutil.rmtree(folder)
    assert cache.get(record.handle) is None
    cache.drop(record.handle)
    cache.clear()
    cache.clear_after(1)
    assert not put(cache, record)
    folder.mkdir(0o700)
    clock.advance(1)
    assert works(cache)


# -- drops in doubt -------------------------------------------------------------------------------


@pytest.fixture
def locked(cache):
    """Another process that is writing, and does not end."""
    connection = sqlite3.connect(file_of(cache), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_ca_3_a_drop_that_cannot_be_made_is_served_to_nobody_here(cache, opened, clock):
    record, other = filled(cache), filled(cache)
    lease = cache.lease(record.handle)
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        cache.drop(record.handle)
        assert cache.get(record.handle) is None
        assert served(cache, other.handle) == other
        writer.execute("ROLLBACK")
    assert cache.stats().errors == 1
    for passed in (0, 1, 3):
        clock.advance(passed)
        assert cache.get(record.handle) is None
        assert cache.stale(record.handle, 0, 3600) is None
        assert not cache.put(record.handle, record, lease)
    assert cache.stats().refused == 3
    newer = record._replace(version=2)
    assert put(cache, newer)
    assert served(cache, record.handle) == newer
    clock.advance(3600)
    assert cache.stale(record.handle, 0, 7200) == newer


def test_ca_3_what_was_filled_before_a_drop_in_doubt_is_never_stale(cache, clock):
    record = filled(cache)
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        cache.drop(record.handle)
    clock.advance(60)
    assert cache.stale(record.handle, 0, 3600) is None


def test_ca_3_more_drops_in_doubt_than_can_be_remembered_put_all_in_doubt(cache, clock, monkeypatch):
    monkeypatch.setattr(disk, "MOST_IN_DOUBT", 3)
    records = [filled(cache) for _ in range(5)]
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for record in records[:4]:
            cache.drop(record.handle)
    assert len(cache._floors) <= 3
    assert [cache.get(record.handle) for record in records] == [None] * 5
    clock.advance(0.001)
    assert works(cache)


def test_ca_3_a_drop_does_not_ask_the_clock_of_diskcache(cache, monkeypatch):
    """Rows have no expiry there, and one that was given one is deleted all the same."""
    record = filled(cache)
    assert changed(cache, "SELECT DISTINCT expire_time FROM Cache") == [(None,)]
    changed(cache, "UPDATE Cache SET expire_time = 1")
    cache.drop(record.handle)
    assert changed(cache, "SELECT count(*) FROM Cache") == [(0,)]
    filled(cache, record.handle)
    monkeypatch.setattr("diskcache.core.time.time", lambda: 9e9)
    cache.drop(record.handle)
    monkeypatch.undo()
    assert cache.get(record.handle) is None


def test_ca_3_a_clock_that_jumps_around_a_drop_brings_nothing_back(cache, clock):
    record = filled(cache)
    clock.advance(1000)
    cache.drop(record.handle)
    clock.advance(-1000)
    assert cache.get(record.handle) is None
    assert cache.stale(record.handle, 0, 3600) is None


@pytest.mark.parametrize("verb", ["unlink", "readlink"])
def test_ca_3_a_clear_that_cannot_be_made_puts_all_in_doubt(cache, clock, monkeypatch, verb):
    records = [filled(cache) for _ in range(3)]
    leases = [cache.lease(record.handle) for record in records]

    def fail(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*((Path, "unlink", fail) if verb == "unlink" else (os, "readlink", fail)))
    cache.clear()
    monkeypatch.undo()
    assert [cache.get(record.handle) for record in records] == [None] * 3
    for record, lease in zip(records, leases, strict=True):
        assert not cache.put(record.handle, record, lease)
        assert cache.stale(record.handle, 0, 3600) is None
    clock.advance(0.001)
    assert works(cache)


def test_a_clearing_that_cannot_be_noted_is_made_at_once(cache, monkeypatch):
    record = filled(cache)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", fail)
    cache.clear_after(3600)
    assert cache.get(record.handle) is None


def test_ca_5_a_locked_database_can_still_be_read(cache, locked):
    record = a_record(cache)
    assert not put(cache, record)
    assert cache.get(record.handle) is None
    assert cache.stats().errors == 1


def test_ca_5_a_database_that_another_has_for_itself_is_misses(cache, clock):
    record = filled(cache)
    cache._current.rows.rest()
    with closing(sqlite3.connect(file_of(cache), isolation_level=None)) as owner:
        owner.execute("PRAGMA locking_mode=EXCLUSIVE")
        owner.execute("BEGIN EXCLUSIVE")
        owner.execute("COMMIT")
        assert cache.get(record.handle) is None
        assert not cache.put(record.handle, record, cache.lease(record.handle))
        cache.drop(record.handle)
        assert cache.stats().errors >= 3
    clock.advance(1)
    assert cache.get(record.handle) is None
    assert works(cache)


def test_ca_5_a_disk_that_was_slow_to_fail_is_left_alone_for_a_second(cache, locked, clock):
    record = a_record(cache)
    lease = cache.lease(record.handle)
    used = cache._current.rows.use

    def wait(*work):
        clock.advance(0.5)
        return used(*work)

    cache._current.rows.use = wait
    assert not cache.put(record.handle, record, lease)
    cache._current.rows.use = trapped
    assert cache.get(record.handle) is None
    assert not put(cache, record)
    clock.advance(1)
    cache._current.rows.use = used
    locked.execute("ROLLBACK")
    assert works(cache)


@pytest.mark.parametrize("pages", [25, 40, 60])
def test_ca_5_a_full_disk_is_misses_and_what_was_dropped_stays_dropped(opened, clock, monkeypatch, pages):
    monkeypatch.setattr(disk_rows, "PRAGMAS", (*disk_rows.PRAGMAS, f"PRAGMA max_page_count={pages}"))
    cache = opened()
    records = [a_record(cache, fields=packed({"a": "x" * 3000})) for _ in range(60)]
    kept = [record for record in records if put(cache, record)]
    assert len(kept) < len(records)
    assert cache.stats().errors == len(records) - len(kept)
    assert [served(cache, record.handle) for record in kept] == kept
    for record in records:
        cache.drop(record.handle)
        assert cache.get(record.handle) is None
    clock.advance(1)
    assert put(cache, records[0])


def test_ca_5_a_disk_without_room_for_a_database_is_misses(folder, clock, opened, monkeypatch):
    monkeypatch.setattr(disk_rows, "PRAGMAS", (*disk_rows.PRAGMAS, "PRAGMA max_page_count=5"))
    cache = opened()
    assert not works(cache)
    cache.clear()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    monkeypatch.undo()
    assert not works(cache)
    clock.advance(1)
    assert works(cache)


def test_ca_5_what_cannot_even_be_rolled_back_is_no_damage(cache):
    """After some errors SQLite rolls back by itself, and diskcache fails when it then does so again."""
    record = filled(cache)

    def work(rows, place):
        with rows.transact():
            rows.execute("ROLLBACK")
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    with pytest.raises(FailedError):
        cache._current.do(work)
    assert served(cache, record.handle) == record


LIMITED = """
import resource, signal, sys
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.conformance.tools import a_record, put
from sessiontree.records import packed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = DiskCache(sys.argv[1], bytes(range(40)), max_staleness=3600)
first = a_record(cache)
assert put(cache, first)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
kept = [put(cache, a_record(cache, fields=packed({"a": "x" * 9000}))) for _ in range(60)]
cache.drop(first.handle)
assert cache.get(first.handle) is None
print(kept.count(False) > 10, cache.stats().errors > 10, (cache._databases.folder / "damaged").exists())
"""


def test_ca_5_a_disk_that_takes_no_more_is_misses(folder):
    """With errors of the system's own, from a limit on the size of files."""
    done = subprocess.run([sys.executable, "-c", LIMITED, folder], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False"]


# -- boots ----------------------------------------------------------------------------------------


@pytest.fixture
def boot(tmp_path, monkeypatch):
    """A file that names the boot."""
    path = tmp_path / "boot_id"
    path.write_text("one\n")
    monkeypatch.setattr(disk_files, "BOOT_ID", path)
    return path


def test_ca_4_entries_outlive_a_process_and_no_boot(boot, opened, folder):
    cache = opened()
    record, old = filled(cache), file_of(cache).parent
    cache.close()
    cache = opened()
    assert served(cache, record.handle) == record
    cache.close()
    boot.write_text("two\n")
    cache = opened()
    assert cache.get(record.handle) is None
    assert works(cache)
    assert not old.exists()
    assert not (folder / "damaged").exists()


def test_ca_4_after_a_power_cut_what_was_dropped_stays_dropped(boot, opened, folder, tmp_path):
    """The disk has the state of before the drop."""
    cache = opened(max_staleness=3600)
    record = filled(cache)
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    cache.drop(record.handle)
    cache.close()
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    boot.write_text("two\n")
    cache = opened(max_staleness=3600)
    assert cache.get(record.handle) is None
    assert cache.stale(record.handle, 0, 3600) is None


def test_ca_4_where_no_file_names_the_boot_each_opening_begins_anew(boot, opened):
    boot.unlink()
    one = opened()
    record = filled(one)
    other = opened()
    assert other.get(record.handle) is None
    assert one.get(record.handle) is None
    again = filled(one)
    assert served(other, again.handle) == again


# -- processes ------------------------------------------------------------------------------------

CHILD = """
import sys
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.conformance.tools import a_record, put
cache = DiskCache(sys.argv[1], bytes(range(40)), max_staleness=3600)
for line in sys.stdin:
    verb, *rest = line.split()
    if verb == "put":
        print(put(cache, a_record(cache, rest[0], version=int(rest[1]))), flush=True)
    elif verb == "get":
        found = cache.get(rest[0])
        print(found and found.version, flush=True)
    else:
        getattr(cache, verb)(*rest)
        print("done", flush=True)
"""


@contextmanager
def running(code, *arguments):
    """Run code in a process of its own, which ends with the block."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def child(folder):
    """Another process with a cache on the folder, which does what it is told."""
    with running(CHILD, folder) as process:

        def tell(*words):
            process.stdin.write(" ".join(map(str, words)) + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield tell


def test_two_processes_share_entries_drops_and_clears(child, folder):
    with closing(DiskCache(folder, bytes(range(40)), max_staleness=3600)) as cache:
        record = filled(cache, "a", version=3)
        assert child("get", "a") == "3"
        lease = cache.lease("a")
        child("drop", "a")
        assert cache.get("a") is None
        assert not cache.put("a", record, lease)
        assert child("put", "a", 4) == "True"
        assert served(cache, "a").version == 4
        lease = cache.lease("a")
        child("clear")
        assert cache.get("a") is None
        assert not cache.put("a", record, lease)
        filled(cache, "a", version=5)
        assert child("get", "a") == "5"
        cache.clear_after(0)
        assert child("get", "a") == "None"
        filled(cache, "a", version=6)
        child("close")
        assert child("get", "a") == "None"
        assert served(cache, "a").version == 6


RACER = """
import mmap, struct, sys
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.conformance.tools import a_record
role, folder, path, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
file = open(path, "r+b")
shared = mmap.mmap(file.fileno(), 24)
stored, confirmed, done = (struct.Struct("q"), 0), (struct.Struct("q"), 8), (struct.Struct("q"), 16)
def read(place): return place[0].unpack_from(shared, place[1])[0]
def write(place, value): place[0].pack_into(shared, place[1], value)
cache = DiskCache(folder, bytes(range(40)), max_staleness=3600, timeout=5)
hits = 0
print("ready", flush=True)
sys.stdin.readline()
if role == "write":
    for version in range(2, rounds):
        write(stored, version)
        cache.drop("a")
        write(confirmed, version)
    write(done, 1)
else:
    while True:
        is_done, least = read(done), read(confirmed)
        found = cache.get("a")
        hits += found is not None
        assert found is None or found.version >= least, (found.version, least)
        if is_done:
            break
        lease = cache.lease("a")
        cache.put("a", a_record(cache, "a", version=read(stored)), lease)
print(hits, cache.stats().errors)
"""


def test_ca_1_no_process_is_served_what_a_drop_in_another_took_away(folder, tmp_path):
    path = tmp_path / "shared"
    path.write_bytes(b"".join(number.to_bytes(8, sys.byteorder) for number in (1, 1, 0)))
    with ExitStack() as stack:
        roles = ("write", "read", "read")
        racers = [stack.enter_context(running(RACER, role, folder, path, 300 * SOAK)) for role in roles]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        told = [racer.communicate(timeout=120) for racer in racers]
        assert [(errors, racer.returncode) for (_, errors), racer in zip(told, racers, strict=True)] == [("", 0)] * 3
        assert [said.split()[1] for said, _ in told] == ["0"] * 3


WRITER = """
import sys
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.conformance.tools import a_record, put
cache = DiskCache(sys.argv[1], bytes(range(40)), max_staleness=3600)
number = 0
while True:
    number += 1
    put(cache, a_record(cache, f"kept {number % 50}", version=number))
    put(cache, a_record(cache, f"dropped {number}"))
    cache.drop(f"dropped {number}")
    print(number, flush=True)
"""


def test_ca_4_a_process_that_is_killed_while_it_writes_leaves_what_it_confirmed(folder):
    dropped = 0
    with closing(DiskCache(folder, bytes(range(40)), max_staleness=3600)) as cache:
        for rounds in (1, 40, 90 * SOAK):
            with running(WRITER, folder) as process:
                for _ in range(rounds):
                    dropped = int(process.stdout.readline())
            assert [cache.get(f"dropped {number}") for number in range(1, dropped + 1)] == [None] * dropped
            assert cache.get(f"kept {dropped % 50}").version >= dropped
            assert works(cache)
        assert cache.stats().errors == 0
        assert changed(cache, "PRAGMA integrity_check") == [("ok",)]


def forked(act):
    """Do something in a forked process, and return what it says there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        result = "failed"
        with suppress(BaseException):
            result = str(act())
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result = pipe.read()
    os.waitpid(pid, 0)
    return result


def test_ca_10_a_forked_process_shares_the_cache(cache):
    record = filled(cache)
    name = cache._databases.place().name

    def act():
        found = served(cache, record.handle)
        filled(cache, "from the child")
        cache.drop(record.handle)
        return found == record, works(cache), cache._databases.place().name == name

    assert forked(act) == "(True, True, True)"
    assert cache.get(record.handle) is None
    assert served(cache, "from the child") is not None
    assert works(cache)


@pytest.mark.parametrize("hooks", [True, False])
def test_ca_10_a_process_forked_amid_a_write_uses_another_database(cache, hooks):
    """What SQLite remembers of locks it came by without them concerns the file of before."""
    record = filled(cache)
    name = cache._databases.place().name
    midst, go_on = threading.Event(), threading.Event()

    def work(rows, place):
        with rows.transact():
            midst.set()
            go_on.wait(30)

    thread = threading.Thread(target=cache._current.rows.use, args=(work, cache._databases.place()))
    thread.start()
    midst.wait(30)
    if not hooks:
        cache._current.rows.rest()

    def act():
        return (
            served(cache, record.handle),
            works(cache),
            cache._databases.place().name != name,
            bool(disk_current._INHERITED),
        )

    result = forked(act)
    go_on.set()
    thread.join()
    assert result == "(None, True, True, True)"
    assert works(cache), "The parent goes along."


def test_a_process_whose_fork_nobody_announced_leaves_the_connections_alone(cache):
    record = filled(cache)
    rows, name = cache._current.rows, cache._databases.place().name
    assert rows.is_open
    cache._current._mark[0] = 0
    assert cache.get(record.handle) is None
    assert works(cache)
    assert cache._databases.place().name != name
    assert disk_current._INHERITED[-1] is rows
    assert rows._idle, "They are the parent's."
    disk_current._INHERITED.pop().shut()


def test_such_a_process_may_close_the_cache_first(cache):
    filled(cache)
    rows = cache._current.rows
    rows._mark[0] = 0
    cache.close()
    assert rows._idle, "They are the parent's."
    rows._mark[0] = 1
    rows.shut()


def test_a_fork_may_come_while_a_cache_is_made(folder, clock, monkeypatch):
    def gate_and_fork(*given):
        made = Gate(*given)
        assert forked(lambda: "here") == "here"
        return made

    monkeypatch.setattr(disk_current, "Gate", gate_and_fork)
    with closing(DiskCache(folder, RING, clock=clock)) as cache:
        assert works(cache)


# -- threads, sizes, and ends ---------------------------------------------------------------------


def test_threads_open_and_close_the_cache_and_damage_it_and_nothing_is_raised(folder, clock):
    caches = [DiskCache(folder, RING, clock=clock, timeout=0.01) for _ in range(3)]

    def use(cache):
        for number in range(60 * SOAK):
            put(cache, a_record(cache, f"{number % 7}"))
            cache.get(f"{number % 5}")
            cache.is_absent("x")
            cache.drop(f"{number % 3}")
            if number % 20 == 0:
                cache.clear()
            if number % 15 == 0:
                cache.clear_after(1)
            cache.stats()

    def damage():
        for _ in range(10):
            with suppress(sqlite3.Error, AttributeError):
                changed(caches[0], "DROP TABLE Cache")
            clock.advance(11)

    assert at_once(*(lambda cache=cache: use(cache) for cache in caches), lambda: use(caches[0]), damage) == [None] * 5
    caches[1].close()
    clock.advance(60)
    assert works(caches[0])
    assert works(caches[2])
    for cache in caches:
        cache.close()


def test_ca_7_what_was_stored_first_gives_way(opened):
    cache = opened(max_bytes=1 << 20)
    handles = [filled(cache, fields=packed({"a": "x" * 900})).handle for _ in range(1500)]
    kept = [cache.get(handle) is not None for handle in handles]
    stats = cache.stats()
    assert not kept[0]
    assert kept[-1]
    assert kept == sorted(kept)
    assert stats.evictions == kept.count(False) > 500
    assert stats.sessions == kept.count(True) > 300
    assert stats.bytes <= cache._current.rows.use(lambda rows: rows.volume()) <= 1 << 20
    cache._current.rows.use(lambda rows: rows.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
    assert file_of(cache).stat().st_size < 1.2 * (1 << 20)


def test_ca_7_large_records_push_out_as_many_small_ones_as_they_need(opened):
    cache = opened(max_bytes=1 << 20)
    for _ in range(1500):
        filled(cache)
    for _ in range(20):
        filled(cache, fields=packed({"a": "x" * 100_000}))
        assert cache._current.rows.use(lambda rows: rows.volume()) <= 1 << 20
    assert cache.stats().sessions >= 5


def test_a_record_that_is_a_large_part_of_all_is_not_kept(opened):
    cache = opened(max_bytes=1 << 20)
    assert not put(cache, a_record(cache, fields=packed({"a": "x" * (1 << 17)})))
    assert cache.stats().errors == 0
    filled(cache, fields=packed({"a": "x" * ((1 << 17) - 500)}))


def test_connections_are_as_many_as_threads_at_once_and_end_with_the_cache(cache):
    at_once(*(lambda: works(cache) for _ in range(6)))
    assert 1 <= len(cache._current.rows._idle) <= 6
    rows = cache._current.rows
    cache.close()
    assert not rows.is_open
    assert cache.get("a") is None


def test_a_cache_that_is_let_go_of_closes_its_connections(opened, folder):
    cache = DiskCache(folder, RING)
    filled(cache)
    idle = cache._current.rows._idle
    assert idle
    del cache
    assert idle == []


def test_the_settings_of_the_connections_are_ours(cache):
    expected = {"trusted_schema": 0, "mmap_size": 0, "journal_mode": "wal", "synchronous": 0, "cell_size_check": 1}

    def look(rows):
        return {name: rows.execute(f"PRAGMA {name}")[0][0] for name in expected}

    assert cache._current.rows.use(look) == expected
    assert changed(cache, "PRAGMA user_version") == [(0,)]


def test_what_diskcache_could_do_with_files_and_pickles_is_refused(cache):
    rows, made = cache._current.rows, cache._current.rows.disk
    for value in ("text", 5, None, [1], bytearray(b"x"), memoryview(b"x"), type("Bytes", (bytes,), {})(b"x")):
        with pytest.raises(TypeError):
            made.store(value, read=False)
        with pytest.raises(TypeError):
            made.put(value)
    for call in (made.filename, lambda: made.get(b"", 1), lambda: made.hash(b"")):
        with pytest.raises(NotImplementedError):
            call()
    assert made.fetch(1, None, b"x", read=True) is None
    made.remove("/nothing/of/the/kind")
    assert not isinstance(rows, diskcache.FanoutCache)


# -- every interleaving of statements ---------------------------------------------------------------


def execute(connection, sql, parameters=()):
    """Execute by way of a cursor that can be stopped: SQLite's own takes another."""
    return connection.cursor().execute(sql, parameters)


def test_ca_2_whatever_comes_between_a_fill_and_a_drop_in_two_processes(tmp_path, monkeypatch):
    """Two caches on one folder, stopped at each statement; a third one looks afterwards."""
    with Scheduler() as scheduler:
        database = Database(scheduler)
        monkeypatch.setattr(sqlite3, "connect", database.connect)
        monkeypatch.setattr("scheduler._Connection.execute", execute, raising=False)
        clock = FakeClock()
        caches = [DiskCache(tmp_path / "cache", RING, clock=clock) for _ in range(2)]
        count = 0

        def make():
            nonlocal count
            count += 1
            handle = f"handle {count}"
            stored = {handle: a_record(caches[0], handle)}

            def fill():
                lease = caches[0].lease(handle)
                scheduler.point("load")
                return caches[0].put(handle, stored[handle], lease)

            def write():
                scheduler.point("write")
                stored[handle] = stored[handle]._replace(version=2)
                caches[1].drop(handle)

            def check(run):
                for cache in caches:
                    found = cache.get(handle)
                    assert found is None or found == stored[handle]
                    assert cache.stats().errors == 0

            return Scenario([fill, write], check)

        assert scheduler.explore(make, preemptions=3) > 50
        for cache in caches:
            cache.close()


def test_a_handle_of_any_kind_has_its_own_row(cache):
    handles = [fresh_handle() for _ in range(200)]
    records = {handle: filled(cache, handle) for handle in handles}
    assert {handle: served(cache, handle) for handle in handles} == records
    [(count,)] = changed(cache, "SELECT count(DISTINCT key) FROM Cache")
    assert count == 200


def test_a_process_that_rests_drops_in_its_siblings_database_and_leaves_it_in_use(opened, clock):
    one, other = opened(), opened()
    other.clear()  # It begins another database, which the first has not opened yet.
    record = filled(other)
    one._current._breaker.open(3)
    name = other._databases.place().name
    for _ in range(5):
        one.drop("another")
    assert other._databases.place().name == name
    assert other.get(record.handle) is not None
    one.drop(record.handle)
    assert other.get(record.handle) is None
    clock.advance(60)
    assert one.get(record.handle) is None
    assert filled(one).handle
