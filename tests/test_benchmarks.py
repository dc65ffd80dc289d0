"""The benchmarks compute what they say and run to their end; no test asserts a time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KINDS = ("signed", "sealed")
SIZES = ("small", "big")
ROWS = {
    *(f"{floor} {size}" for floor in ("FLOOR", "hard floor") for size in SIZES),
    *(
        f"{kind} {size}: {operation}"
        for kind in KINDS
        for size in SIZES
        for operation in ("untouched", "read 2", "read 2, write 1")
    ),
    *(f"signed {size}: chain of 3, read 2 in the last" for size in SIZES),
    *(
        f"{kind} {size}, {variant}: {operation}"
        for kind in KINDS
        for size in SIZES
        for variant in ("envelope on top", "token not seen lately")
        for operation in ("read 2", "read 2, write 1")
    ),
}


@pytest.fixture
def harness(monkeypatch):
    """Load the module by its path: the root of the checkout stays off the import path."""
    spec = importlib.util.spec_from_file_location("benchmarks_harness", ROOT / "benchmarks" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


class FakeTimer:
    """A timer that only the measured calls move."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def taking(self, nanoseconds):
        """Return a call that takes this long."""

        def call():
            self.now += nanoseconds

        return call


def test_a_round_gives_each_case_its_own_time_over_its_bare_form(harness):
    timer = FakeTimer()
    cases = {"bare": timer.taking(100), "whole": timer.taking(700), "floor": timer.taking(300)}
    samples = harness.measure(cases, rounds=3, timer=timer, stint=10_000)
    assert samples.net("whole", "bare") == [600, 600, 600]
    ratio = harness.Spread.of(harness.ratios(samples.net("whole", "bare"), samples["floor"]))
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)


def test_a_stint_holds_as_many_calls_as_fit(harness):
    timer = FakeTimer()
    assert harness.calls_for(timer.taking(250), timer, stint=1_000_000) == 4000
    assert harness.calls_for(timer.taking(5_000_000), timer, stint=1_000_000) == 1


def test_a_disturbed_round_moves_neither_the_median_nor_the_ratio(harness):
    assert harness.Spread.of([5.0, 1.0, 900.0, 2.0, 3.0]).median == 3
    assert harness.ratios([10, 200], [5, 100]) == [2, 2]


def test_a_budget_is_met_up_to_its_last_bit(harness):
    assert harness.Verdict.of(1.5, 1.5, "x").met
    assert harness.Verdict.of(1.51, 1.5, "x").cells() == ("<= 1.5 x", "MISSED")


def test_the_benchmark_of_ours_runs_and_writes_every_row(tmp_path):
    pytest.importorskip("sessiontree")
    file = tmp_path / "figures.json"
    environment = {name: value for name, value in os.environ.items() if name != "SESSIONTREE_BASE64"}
    command = [sys.executable, "-m", "benchmarks.cookies", "--quick", "--rounds", "60"]
    command += ["--only", "ours", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tables = json.loads(file.read_text())["ours"]
    assert "binascii" in tables
    for name, results in tables.items():
        assert {result["row"] for result in results} == ROWS, name
        assert all(result["us"]["low"] <= result["us"]["median"] <= result["us"]["high"] for result in results)
        assert all(row in done.stdout for row in ROWS)


STORED = {
    f"{engine} {size}: {operation}"
    for engine in ("memory", "SQLite")
    for size in SIZES
    for operation in ("read 2", "read 2, write 1")
}
VERBS = {
    f"{engine} {size}: {verb}"
    for engine in ("memory", "SQLite")
    for size in SIZES
    for verb in ("load", "load, and parse", "load, apply of one key", "create", "revoke")
}
SUBJECTS = {
    f"{engine}: {operation}"
    for engine in ("memory", "SQLite")
    for operation in ("sessions()", "count()", "revoke_all()", "revoke(handle, subject)")
}
TITLES = (
    *("Ours, sessions", "Peers:", "Verbs of", "Memory of", "Sweeping:", "Readers", "Overlapping"),
    *("One subject's sessions among", "One subject's sessions, in steps", "A subject with many"),
)


def test_the_benchmark_of_stores_runs_and_prints_every_section(tmp_path):
    pytest.importorskip("sessiontree")
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.stores", "--share", "200", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {result["row"] for result in found["ours"]} >= STORED
    assert {result["row"] for result in found["verbs"]} >= VERBS
    assert {"ours, memory", "ours, SQLite"} <= {result["library"] for result in found["peers"]["results"]}
    assert all(result["bytes_each"] > 0 for result in found["footprint"])
    assert [hold["removed"] for hold in found["sweep"]["holds"]] == [250, 250, 50]
    assert all(reads["p50_us"] <= reads["p999_us"] for reads in found["sweep"]["reads"])
    assert {result["row"] for result in found["subjects"]["among"]} >= SUBJECTS
    assert {result["row"] for result in found["subjects"]["many"]} >= SUBJECTS
    assert [result["verdict"]["met"] for result in found["subjects"]["work"]] == [True] * 3  # steps are no time
    assert "lost updates: 0" in done.stdout
    assert all(row in done.stdout for row in STORED | VERBS | SUBJECTS)
    for title in TITLES:
        assert title in done.stdout


RUNS = {
    "redis": (["--quick", "--rounds", "30"], "sessiontree small: read 2, write 1"),
    "postgres": (["--quick"], "sessiontree small: read 2, write 1"),
    "crowds redis": (["--share", "1000", "--rounds", "3"], "redis: revoke_all()"),
    "crowds postgres": (["--share", "1000", "--rounds", "3"], "postgres: revoke_all()"),
}


@pytest.mark.parametrize("named", RUNS)
def test_the_benchmarks_of_servers_run_and_print_their_rows(named):
    module, *engine = named.split()
    options, row = RUNS[named]
    command = [sys.executable, "-m", f"benchmarks.{module}", *engine, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert row in done.stdout
