"""Durations come in as seconds, go on as integer milliseconds, and only one module reads the clock."""

import ast
import math
import time
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sessiontree
from sessiontree import ConfigError
from sessiontree.clock import FOREVER, LONGEST, LONGEST_WAIT_MS, Clock, FakeClock, SystemClock, milliseconds, waiting

quick = settings(deadline=None, max_examples=60)
TEN_THOUSAND_YEARS = timedelta(milliseconds=LONGEST)
PACKAGE = Path(sessiontree.__file__).parent


# -- durations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0, 0), (0.0, 0), (-0.0, 0), (timedelta(), 0),
        (1, 1000), (-1, -1000), (3600, 3_600_000),
        (1.5, 1500), (16.1, 16_100), (0.1 + 0.2, 300), (1.001, 1001), (-16.1, -16_100),
        (0.0004, 1), (1.0001, 1001), (1e-9, 1), (5e-324, 1),
        (-0.0004, -1), (-1.0001, -1001), (-5e-324, -1),
        (timedelta(days=14), 1_209_600_000), (timedelta(seconds=1, milliseconds=1), 1001),
        (timedelta(microseconds=1), 1), (timedelta(milliseconds=1, microseconds=1), 2),
        (timedelta(microseconds=-1), -1), (timedelta(milliseconds=-1, microseconds=-1), -2),
        (LONGEST // 1000, LONGEST), (-(LONGEST // 1000), -LONGEST), (TEN_THOUSAND_YEARS, LONGEST),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_rounded_away_from_zero_to_a_millisecond(duration, expected):
    result = milliseconds(duration)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("timeout", [0.001, 1e-9, 5, LONGEST_WAIT_MS // 1000, timedelta(seconds=5)])
def test_a_time_out_is_seconds_of_a_millisecond_at_least(timeout):
    assert waiting(timeout, LONGEST_WAIT_MS, "Store") * 1000 == milliseconds(timeout)


@pytest.mark.parametrize("timeout", [0, -1, -1e-9, LONGEST_WAIT_MS / 1000 + 0.001, timedelta(days=2)])
def test_a_time_out_that_is_too_short_or_too_long_says_what_may_be(timeout):
    with pytest.raises(ConfigError, match=r"A Store waits from 0\.001 to 86400 seconds, not "):
        waiting(timeout, LONGEST_WAIT_MS, "Store")


@pytest.mark.parametrize("timeout", [True, None, "5", math.nan, math.inf])
def test_what_is_no_duration_is_no_time_out(timeout):
    with pytest.raises(ConfigError, match="duration must be"):
        waiting(timeout, LONGEST_WAIT_MS, "Store")


def test_what_may_not_wait_at_all_says_so():
    assert waiting(0, LONGEST_WAIT_MS, "Store", shortest=0) == 0


@pytest.mark.parametrize(
    "duration",
    [True, False, None, "60", b"60", [60], object(), 1j, Fraction(1, 2), math.nan, math.inf, -math.inf],
)
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(ConfigError, match=r"duration must be"):
        milliseconds(duration)


@pytest.mark.parametrize(
    "duration",
    [
        LONGEST // 1000 + 1, -(LONGEST // 1000) - 1, 10**400, -(10**400), 1e15, 1e300, -1e300, 1.7e308, -1.7e308,
        TEN_THOUSAND_YEARS + timedelta(microseconds=1), -TEN_THOUSAND_YEARS - timedelta(microseconds=1),
        timedelta.max, timedelta.min,
    ],
)  # fmt: skip
def test_more_than_ten_thousand_years_is_refused_both_ways(duration):
    with pytest.raises(ConfigError, match="ten thousand years"):
        milliseconds(duration)


@quick
@given(st.timedeltas(min_value=-TEN_THOUSAND_YEARS, max_value=TEN_THOUSAND_YEARS))
def test_a_timedelta_is_never_cut_short_and_grows_by_less_than_a_millisecond(duration):
    result = timedelta(milliseconds=milliseconds(abs(duration)))
    assert abs(duration) <= result < abs(duration) + timedelta(milliseconds=1)
    assert milliseconds(-duration) == -milliseconds(duration)


@quick
@given(st.floats(min_value=-1e6, max_value=1e6))
def test_a_float_keeps_its_sign_and_is_never_cut_short(duration):
    result = milliseconds(duration)
    assert (result > 0) - (result < 0) == (duration > 0) - (duration < 0)
    noise = Fraction(1, 1_000_000)
    assert -noise <= abs(result) - abs(Fraction(duration)) * 1000 < 1 + noise
    assert milliseconds(-duration) == -result


@quick
@given(st.integers(-(10**9), 10**9))
def test_whole_milliseconds_mean_the_same_in_every_spelling(number):
    assert milliseconds(number / 1000) == milliseconds(timedelta(milliseconds=number)) == number


def test_the_deadline_of_what_never_expires_is_later_than_any_other_and_fits_64_bits():
    assert SystemClock().now() + LONGEST + LONGEST < FOREVER < 1 << 63


# -- clocks -------------------------------------------------------------------------------------


def test_the_system_clock_tells_utc_in_integer_milliseconds():
    before = time.time_ns() // 1_000_000
    now = SystemClock().now()
    assert before <= now <= time.time_ns() // 1_000_000
    assert type(now) is int


def test_all_system_clocks_are_equal():
    assert SystemClock() == SystemClock()
    assert len({SystemClock(), SystemClock()}) == 1
    assert SystemClock() != FakeClock()
    assert repr(SystemClock()) == "SystemClock()"


def test_a_fake_clock_stands_still_until_it_is_told_to_move():
    clock = FakeClock(100)
    assert clock.now() == clock.now() == 100_000
    clock.advance(1.5)
    assert clock.now() == 101_500
    clock.advance(timedelta(hours=1))
    clock.advance(-3600)
    assert clock.now() == 101_500
    assert repr(clock) == "FakeClock(101.5)"


def test_a_fake_clock_begins_in_2030_and_equals_only_itself():
    assert FakeClock().now() == 1_893_456_000_000
    assert FakeClock() != FakeClock()


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_every_clock_is_a_clock(clock):
    assert isinstance(clock, Clock)
    assert not isinstance(object(), Clock)


# -- one clock module ---------------------------------------------------------------------------


def modules():
    """Every module of the package itself: not its tests, its benchmarks, its environment."""
    folders = [PACKAGE, *(PACKAGE / name for name in ("handlers", "stores", "caches", "cli"))]
    return sorted(
        path for folder in folders for path in folder.rglob("*.py") if folder != PACKAGE or path.parent == PACKAGE
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_tm_3_no_module_but_clock_reads_the_wall_clock(path):
    """``time.monotonic`` is for measuring and allowed; ``time.time`` and ``now()`` of datetime are not."""
    wall = {"time", "time_ns", "gmtime", "localtime", "ctime", "now", "utcnow", "today"}
    read = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in wall
        if isinstance(node.value, ast.Name) and node.value.id in {"time", "datetime", "date"}
    }
    imported = {
        name.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "time" and not node.level
        for name in node.names
    }
    if path == PACKAGE / "clock.py":
        assert read == {"time.time_ns"}
    elif path.parent.name != "cli":  # The demonstration shows the time to people.
        assert not read
    assert not imported & wall
