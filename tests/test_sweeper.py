"""The sweeper: passes, waits, failures, starting and stopping from anywhere; and ``sessiontree sweep``."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from sessiontree import ConfigError, StoreUnavailable, UsageError
from sessiontree.cli import main
from sessiontree.cli import sweep as sweep_module
from sessiontree.records import Record
from sessiontree.stores import open_store
from sessiontree.stores import sweeper as module
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sweeper import Sweeper, SweepReport, pause
from sessiontree.testing import FakeClock, FaultyStore

WAIT = 10
DAY_MS = 86_400_000


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def expire(store, count):
    """Fill the store with so many records that expired a day ago."""
    over = store.clock.now() - DAY_MS
    for number in range(count):
        store.create(Record(f"over{number}", "user", 0, over, over, over, b"p" * 32, 0))


class Reports:
    """Collects reports, and waits for them."""

    def __init__(self):
        self.all, self._came = [], threading.Semaphore(0)

    def __call__(self, report):
        self.all.append(report)
        self._came.release()

    def wait(self, count=1):
        for _ in range(count):
            assert self._came.acquire(timeout=WAIT)


@pytest.fixture
def reports():
    return Reports()


# -- a pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batches"), [(0, 1), (1, 1), (9, 1), (10, 2), (25, 3), (30, 4)])
def test_a_pass_sweeps_until_a_batch_is_not_full(store, count, batches):
    expire(store, count)
    assert Sweeper(store, limit=10).sweep_once() == SweepReport(batches * 10, count, 0, batches)
    assert len(store) == 0


def test_a_pass_leaves_what_lives(store, clock):
    expire(store, 3)
    later = clock.now() + 1
    store.create(Record("live", "user", 0, later, later, later, b"p", 0))
    assert Sweeper(store).sweep_once().deleted == 3
    assert store.load("live") is not None


def test_a_failed_batch_ends_the_pass_and_is_counted(store, caplog):
    expire(store, 30)
    faulty = FaultyStore(store)
    faulty.fail(2)
    assert Sweeper(faulty, limit=10).sweep_once() == SweepReport(20, 10, 1, 2)
    assert Sweeper(faulty, limit=10).sweep_once() == SweepReport(30, 20, 0, 3)
    [line] = caplog.records
    assert (line.levelno, line.name, line.exc_info) == (logging.WARNING, "sessiontree.sweeper", None)


def test_an_error_that_is_not_the_stores_is_logged_with_its_traceback(store, caplog):
    faulty = FaultyStore(store)
    faulty.fail(1, LookupError("odd"))
    assert Sweeper(faulty).sweep_once().errors == 1
    assert isinstance(caplog.records[0].exc_info[1], LookupError)


def test_a_report_is_a_value():
    assert hash(SweepReport(1, 2, 3)) == hash(SweepReport(1, 2, 3))
    with pytest.raises(AttributeError):
        SweepReport(1, 2, 3).errors = 0


def test_one_pass_needs_no_start_and_works_after_the_stop(store):
    sweeper = Sweeper(store)
    sweeper.stop()
    expire(store, 1)
    assert sweeper.sweep_once().deleted == 1


# -- the thread -------------------------------------------------------------------------------


def test_the_thread_sweeps_at_once_and_again_after_the_interval(store, reports):
    expire(store, 3)
    with Sweeper(store, 0.001, on_report=reports) as sweeper:
        assert sweeper.running
        reports.wait(3)
    assert not sweeper.running
    assert reports.all[0].deleted == 3
    assert {report.deleted for report in reports.all[1:]} == {0}


def test_a_stop_does_not_wait_for_the_interval(store, reports):
    sweeper = Sweeper(store, timedelta(days=300_000), on_report=reports)
    sweeper.start()
    reports.wait()
    sweeper.stop()
    assert not sweeper.running
    assert len(reports.all) == 1


def test_the_thread_is_a_daemon_with_a_name(store):
    with Sweeper(store) as sweeper:
        assert sweeper._thread.daemon
        assert sweeper._thread.name == "sessiontree-sweeper"


def test_starting_twice_is_one_thread(store):
    with Sweeper(store) as sweeper:
        thread = sweeper._thread
        sweeper.start()
        assert sweeper._thread is thread


def test_stopping_twice_or_before_the_start_is_fine(store, reports):
    sweeper = Sweeper(store, on_report=reports)
    sweeper.stop()
    sweeper.start()
    reports.wait()
    sweeper.stop()
    sweeper.stop()
    sweeper.start()
    reports.wait()
    assert sweeper.running
    sweeper.stop()


@pytest.mark.parametrize("interval", [0, None, 0.0, timedelta()])
def test_no_interval_turns_it_off(store, interval):
    expire(store, 1)
    with Sweeper(store, interval) as sweeper:
        assert not sweeper.running
        assert len(store) == 1
        assert sweeper.sweep_once().deleted == 1


def test_its_own_report_may_stop_it(store):
    stopped = threading.Event()

    def on_report(_):
        sweeper.stop()
        stopped.set()

    sweeper = Sweeper(store, on_report=on_report)
    sweeper.start()
    assert stopped.wait(WAIT)
    sweeper.stop()
    assert not sweeper.running


def test_two_stops_at_once_both_wait_for_the_batch_at_hand(store, reports):
    entered, go = threading.Event(), threading.Event()
    faulty = FaultyStore(store)
    faulty.delay(1, lambda: entered.set() or go.wait(WAIT))
    sweeper = Sweeper(faulty, on_report=reports)
    sweeper.start()
    assert entered.wait(WAIT)
    stops = [threading.Thread(target=sweeper.stop) for _ in range(2)]
    for stop in stops:
        stop.start()
    assert all(stop.is_alive() for stop in stops)
    go.set()
    for stop in stops:
        stop.join(WAIT)
    assert not any(stop.is_alive() for stop in stops)
    assert not sweeper.running
    assert len(reports.all) == 1


def test_a_stop_ends_a_long_pass_after_the_batch_at_hand(store, reports):
    expire(store, 100)
    faulty = FaultyStore(store)
    sweeper = Sweeper(faulty, limit=10, on_report=reports)
    faulty.delay(3, lambda: sweeper._stopping.set())
    sweeper.start()
    reports.wait()
    sweeper.stop()
    assert reports.all == [SweepReport(30, 30, 0, 3)]


def test_a_report_that_fails_ends_nothing(store, reports, caplog):
    def on_report(report):
        reports(report)
        raise LookupError

    with Sweeper(store, 0.001, on_report=on_report):
        reports.wait(2)
    assert "on_report" in caplog.text


def test_the_thread_outlives_an_outage(store, reports):
    expire(store, 2)
    faulty = FaultyStore(store)
    faulty.down()
    with Sweeper(faulty, 0.001, on_report=reports):
        reports.wait(2)
        faulty.up()
        while not any(report.deleted for report in reports.all):  # It may have made another pass since.
            reports.wait()
    assert [report.errors for report in reports.all[:2]] == [1, 1]
    assert [report.errors for report in reports.all if report.deleted] == [0]


def test_waits_double_while_passes_fail_and_begin_anew_after_a_success(store, monkeypatch):
    asked, done = [], threading.Event()

    def recorded(interval, jitter, failures):
        asked.append((interval, jitter, failures))
        if len(asked) == 5:
            done.set()
        return 0

    monkeypatch.setattr(module, "pause", recorded)
    faulty = FaultyStore(store)
    for call in (2, 3, 5):
        faulty.fail(call)
    with Sweeper(faulty, 7, jitter=0.5):
        assert done.wait(WAIT)
    assert asked[:5] == [(7.0, 0.5, failures) for failures in (0, 1, 2, 0, 1)]


def test_a_closed_store_ends_the_thread_with_one_line(store, reports, caplog):
    sweeper = Sweeper(store, 0.001, on_report=reports)
    sweeper.start()
    reports.wait()
    store.close()
    sweeper._thread.join(WAIT)
    assert not sweeper.running
    assert [line.message for line in caplog.records] == ["The sweeper stops: This store is closed: open a new one."]
    with pytest.raises(UsageError):
        sweeper.sweep_once()


def test_a_pause_is_the_interval_give_or_take_the_jitter():
    pauses = [pause(60, 0.1) for _ in range(500)]
    assert 54 <= min(pauses) < 57
    assert 63 < max(pauses) <= 66
    assert pause(60, 0) == 60
    assert [pause(1, 0, failures) for failures in range(8)] == [1, 2, 4, 8, 16, 32, 32, 32]
    assert pause(1e30) == threading.TIMEOUT_MAX


def test_a_fork_has_no_sweeper_until_it_starts_one(store, reports):
    sweeper = Sweeper(store, on_report=reports)
    sweeper.start()
    reports.wait()
    sweeper._lock.acquire()  # As a thread of the parent may just have it.
    child = os.fork()
    if not child:
        code = 1
        try:
            states = [sweeper.running]
            sweeper.stop()
            sweeper.start()
            states.append(sweeper.running)
            reports.wait()
            sweeper.stop()
            states.append(sweeper.running)
            code = 0 if states == [False, True, False] else 2
        finally:
            os._exit(code)
    sweeper._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sweeper.running
    sweeper.stop()


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": -1}, {"interval": "60"}, {"interval": True}, {"interval": float("nan")}, {"limit": 0},
        {"limit": -1}, {"limit": 1.5}, {"limit": True}, {"limit": None}, {"jitter": -0.1}, {"jitter": 1},
        {"jitter": float("nan")}, {"jitter": "x"}, {"jitter": True}, {"on_report": 5}, {"store": None},
        {"store": object()},
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_a_config_error(store, settings):
    with pytest.raises(ConfigError):
        Sweeper(**{"store": store, **settings})


# -- the command ------------------------------------------------------------------------------


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "sessiontree", "sweep", *arguments]


@pytest.fixture
def handlers():
    """Put the signal handlers back that the command replaces."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def url(tmp_path):
    """Return the URL of a store on disk with 25 records that expired long ago."""
    url = f"sqlite:///{tmp_path}/sessions.db"
    store = open_store(url)
    expire(store, 25)
    store.close()
    return url


def test_the_command_makes_one_pass(url):
    for expected in ("25 removed in 3 batches", "0 removed in 1 batch"):
        done = subprocess.run(
            command("--store", url, "--once", "--limit", "10"), capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"swept: {expected}, 0 errors\n", "")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_sweeps_until_a_signal_ends_it(end):
    with subprocess.Popen(
        command("--store", "memory:", "--interval", "0.01"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        for _ in range(3):
            assert running.stdout.readline() == "swept: 0 removed in 1 batch, 0 errors\n"
        running.send_signal(end)
        _, error = running.communicate(timeout=30)
    assert (running.returncode, error) == (0, "")


def test_a_signal_ends_a_long_wait():
    with subprocess.Popen(command("--store", "memory:"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        assert running.communicate(timeout=30)[1] == b""
    assert running.returncode == 0


@pytest.mark.parametrize(
    ("url", "says"), [("oracle://x", "'oracle'"), ("sqlite:x", "sqlite:///"), ("sqlite:////no/such/folder/x.db", "")]
)
def test_an_unusable_store_is_one_line_and_code_1(url, says):
    done = subprocess.run(command("--store", url, "--once"), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("sessiontree: ")
    assert says in done.stderr


def test_one_pass_that_fails_is_code_1(monkeypatch, capsys, handlers):
    faulty = FaultyStore(MemoryStore())
    faulty.fail(1, StoreUnavailable("gone fishing"))
    monkeypatch.setattr(sweep_module, "open_store", lambda _: faulty)
    assert main(["sweep", "--store", "memory:", "--once"]) == 1
    assert capsys.readouterr().out == "swept: 0 removed in 1 batch, 1 error\n"
    assert faulty.calls[-1] == ("close", None)


def test_a_signal_in_a_batch_lets_it_finish(monkeypatch, capsys, store, handlers):
    expire(store, 25)
    faulty = FaultyStore(store)
    faulty.delay(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(sweep_module, "open_store", lambda _: faulty)
    assert main(["sweep", "--store", "memory:", "--limit", "10"]) == 0
    assert capsys.readouterr().out.startswith("swept: 20 removed in")
    assert [verb for verb, _ in faulty.calls] == ["sweep", "sweep", "close"]


def test_a_second_signal_ends_it_at_once(monkeypatch, store, handlers):
    faulty = FaultyStore(store)
    faulty.delay(1, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    monkeypatch.setattr(sweep_module, "open_store", lambda _: faulty)
    assert main(["sweep", "--store", "memory:"]) == 0
    assert faulty.calls[-1] == ("close", None)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch, capsys, store, handlers, terminal):
    expire(store, 25)
    monkeypatch.setattr(sweep_module, "open_store", lambda _: store)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["sweep", "--store", "memory:", "--once", "--limit", "10"]) == 0
    shown = screen.getvalue()
    assert re.findall(r"\[(#+) +\] (\d+) removed", shown) == (
        [("#", "10"), ("##", "20"), ("###", "25")] if terminal else []
    )
    assert not terminal or re.search(r"\r {30,}\r\Z", shown)
    assert capsys.readouterr().out == "swept: 25 removed in 3 batches, 0 errors\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--store",), ("--store", "memory:", "--interval", "0"), ("--store", "memory:", "--interval", "-1"),
        ("--store", "memory:", "--interval", "nan"), ("--store", "memory:", "--interval", "soon"),
        ("--store", "memory:", "--limit", "0"), ("--store", "memory:", "--limit", "many"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["sweep", *arguments])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sessiontree sweep")


def test_a_sweeper_goes_by_its_stores_clock():
    store = MemoryStore(clock=FakeClock())
    Sweeper(store, clock=store.clock)
    with pytest.raises(ConfigError, match="clock"):
        Sweeper(store, clock=FakeClock())
