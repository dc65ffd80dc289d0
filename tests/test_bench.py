"""``sessiontree bench``: real runs of tiny sizes, what they print and write, and what they find."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from sessiontree import Handler, NotImplementedByStore, with_store
from sessiontree.cli import main
from sessiontree.cli.bench import command
from sessiontree.cli.bench.crew import BenchError, There
from sessiontree.cli.bench.figures import figure, histogram, percentile, with_error
from sessiontree.cli.bench.load import zipf
from sessiontree.cli.bench.options import POLICIES, Plan
from sessiontree.cli.bench.stack import Setting
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore

SECRET = "N7cX2kQ9vB4mT8wL1zR5yH3pJ6dS0fGa"
TINY = ("--quick", "--sessions", "8", "--requests", "60", "--max-staleness", "0.1")
NO_REVOKES = (*TINY, "--revokes", "0")


def run(*arguments):
    return main(["bench", *map(str, arguments)])


def found(tmp_path, *arguments):
    """Run the command, and return what it wrote as JSON."""
    file = tmp_path / "found.json"
    assert run(*arguments, "--json", file) == 0
    return json.loads(file.read_text())


def refusal(capsys, *arguments):
    """Return what the command says to arguments that it refuses as such."""
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all that can be had at once: its folder, with found.json, page.html and picture.svg."""
    folder = tmp_path_factory.mktemp("bench")
    store = f"sqlite:///{folder}/sessions.db"
    files = ("--json", folder / "found.json", "--html", folder / "page.html", "--svg", folder / "picture.svg")
    stacks = ("--store", "memory:", "--store", store, "--cache", "none", "--cache", "local")
    assert run(*stacks, *TINY, "--revokes", "4", "--peers", *files) == 0
    return folder


# -- what is printed and written -----------------------------------------------------------------------


def test_the_table_has_a_row_for_every_stack_in_every_section(capsys):
    assert run(*TINY, "--revokes", "3") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for title in ("Requests", "Bytes per session", "Overlapping writes", "From revoke to refusal"):
        assert f"\n{title}" in printed.out
    assert printed.out.count("\nmemory + none ") == 4
    assert printed.out.count("\nmemory + local ") == 5  # with watch and without
    assert "lost updates" in printed.out


def test_the_json_has_a_schema_and_the_machine_and_no_paths(whole):
    text = (whole / "found.json").read_text()
    assert str(whole) not in text
    assert str(Path.home()) not in text
    results = json.loads(text)
    assert (results["schema"], results["tool"]) == (1, "sessiontree bench")
    assert set(results["machine"]) == {"python", "implementation", "system", "architecture", "cpus"}
    assert results["options"]["stores"] == ["memory", "sqlite"]
    names = ["memory + none", "memory + local", "sqlite + none", "sqlite + local"]
    assert [each["name"] for each in results["stacks"]] == names
    assert [each["name"] for each in results["lost"]] == names
    modes = [(each["name"], each["watch"]) for each in results["revocation"]]
    assert modes == [(name, watch) for name in names for watch in ([True, False] if "local" in name else [False])]


def test_every_figure_is_there_with_the_spread_of_its_rounds(whole):
    for each in json.loads((whole / "found.json").read_text())["stacks"]:
        assert (each["requests"], each["failed"]) == (60, 0)
        figures = [*each["latency_us"].values(), each["throughput"], each["trips"], each["bytes"]]
        assert all(0 < one["low"] <= one["high"] and one["value"] > 0 for one in figures)
        assert each["latency_us"]["p50"]["value"] <= each["latency_us"]["p999"]["value"]
        sorts = [each[sort] for sort in ("reads_us", "writes_us") if each[sort]]
        assert sum(sort["count"] for sort in sorts) == 60
        assert all(sum(count for _, count in sort["histogram"]) == sort["count"] for sort in sorts)
        assert (each["hit_ratio"] is None) == (each["cache"] == "none")
        assert each["session_bytes"]["cookie"] > 100
        assert each["session_bytes"]["record"] > 8 * 16


def test_lags_between_processes_and_threads_are_within_max_staleness(whole):
    for each in json.loads((whole / "found.json").read_text())["revocation"]:
        assert each["between"] == ("threads" if each["name"].startswith("memory") else "processes")
        assert (each["revokes"], each["never"]) == (4, 0)
        assert each["served_ms"] <= (100 if each["cached"] else 0)
        assert sum(count for _, count in each["histogram"]) == 4


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and remembers which there are."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_with_plots_and_tables(whole):
    text = (whole / "page.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 8
    assert tags.count("table") == 5
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(tags)
    assert not {"src", "href", "style", "onload"} & {name for _, attributes in page.seen for name in attributes}
    for outside in ("http://", "https://", "src=", "url(", "@import"):
        assert outside not in text
    assert "prefers-color-scheme: dark" in text
    assert "sqlite + local" in page.text


def test_the_picture_is_xml_that_fetches_nothing(whole):
    text = (whole / "picture.svg").read_text()
    root = ET.fromstring(text)  # noqa: S314 - it is what we wrote
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("http") == 1  # the name space, which nobody fetches
    assert "prefers-color-scheme: dark" in text
    assert "Latency of a whole request" in "".join(root.itertext())


def test_other_libraries_are_measured_or_named_as_missing(whole):
    results = json.loads((whole / "found.json").read_text())["peers"]
    ours = [each for each in results["results"] if each["ours"]]
    assert [each["name"].partition(", ")[2] for each in ours] == [
        *("memory + none", "memory + local", "sqlite + none", "sqlite + local")
    ]
    assert {each["lost"] for each in ours} == {0}
    theirs = {each["name"] for each in results["results"] if not each["ours"]}
    named = {line.partition(" is ")[0] for line in results["missing"]}
    assert theirs | named == {"Flask-Session", "Django cached_db", "Beaker", "starsessions"}
    assert not theirs & named


def test_a_bar_is_drawn_on_a_terminal_and_wiped_away(monkeypatch, capsys):
    class Terminal(StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(command, "SHOWN_EVERY_S", 0.0)
    assert run(*NO_REVOKES, "--cache", "none") == 0
    drawn = screen.getvalue().split("\r")
    assert "round 3 of 3" in screen.getvalue()
    assert any(line.startswith("[####") for line in drawn)
    assert drawn[-2].strip() == drawn[-1] == ""
    assert "\r" not in capsys.readouterr().out


# -- what is measured ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("reads", "trips"), [("1", 1.0), ("0", 2.0)])
def test_without_a_cache_a_read_is_one_trip_and_a_write_two(reads, trips, tmp_path):
    [stack] = found(tmp_path, *NO_REVOKES, "--cache", "none", "--reads", reads)["stacks"]
    assert stack["trips"] == {"value": trips, "low": trips, "high": trips}


def test_a_read_moves_the_packed_record_and_a_write_one_key_more(tmp_path):
    [reads] = found(tmp_path, *NO_REVOKES, "--cache", "none", "--reads", "1")["stacks"]
    assert reads["bytes"]["value"] == reads["session_bytes"]["record"]
    [writes] = found(tmp_path, *NO_REVOKES, "--cache", "none", "--reads", "0")["stacks"]
    assert writes["bytes"]["value"] == writes["session_bytes"]["record"] + len('k2"') - 1 + 16 + len('""')


def test_a_cache_spares_trips_and_says_how_often_it_had_the_session(tmp_path):
    longer = (*NO_REVOKES, "--max-staleness", "600", "--reads", "1")
    [stack] = found(tmp_path, *longer, "--cache", "local", "--sessions", "1")["stacks"]
    assert stack["hit_ratio"]["value"] == 1
    assert stack["trips"]["value"] == 0


def test_every_policy_of_cachetools_stands_beside_the_default(tmp_path):
    results = found(tmp_path, *NO_REVOKES, "--cache", "local:lru", "--cache", "local:all", "--cache-sessions", "4")
    caches = ["local", *(f"local:{policy}" for policy in POLICIES)]
    assert sorted(results["options"]["caches"]) == sorted(caches)
    assert {each["cache"]: each["failed"] for each in results["stacks"]} == dict.fromkeys(caches, 0)
    assert all(each["session_bytes"]["cache"] > each["session_bytes"]["record"] for each in results["stacks"])


@pytest.mark.parametrize("cache", ["disk", "tiered"])
def test_caches_on_disk_can_be_measured_in_a_folder_or_in_one_of_the_runs_own(cache, tmp_path):
    pytest.importorskip("diskcache")
    caches = ("--cache", cache, "--cache", f"{cache}:{tmp_path / 'kept'}")
    stacks = found(tmp_path, *NO_REVOKES, *caches)["stacks"]
    assert [each["name"] for each in stacks] == [f"memory + {cache} 1", f"memory + {cache} 2"]
    assert (tmp_path / "kept").is_dir()


def test_several_processes_and_threads_share_one_store(tmp_path):
    many = ("--processes", "2", "--threads", "2", "--watch", "--store", "sqlite:", "--cache", "local")
    results = found(tmp_path, *TINY, *many, "--revokes", "3")
    [stack], [lost] = results["stacks"], results["lost"]
    assert (stack["requests"], stack["watch"]) == (60, "on")
    assert (lost["processes"], lost["threads"], lost["requests"], lost["lost"]) == (2, 2, 100, 0)


def test_a_run_may_last_so_long_in_place_of_so_many_requests(tmp_path):
    results = found(tmp_path, "--quick", "--sessions", "8", "--revokes", "0", "--cache", "none", "--seconds", "0.05")
    assert results["stacks"][0]["requests"] > 3
    assert results["options"]["seconds"] == 0.05


def test_nothing_of_a_run_stays_in_the_store_and_what_was_there_does(tmp_path):
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    server = Handler("worker", SECRET, with_store(store))
    session = server.session({"HTTP_COOKIE": ""})
    session["mine"] = True
    session.commit()
    assert run("--store", f"sqlite:///{path}", *TINY, "--revokes", "2") == 0
    assert [record.path for record in store.scan().records] == ["worker"]
    store.close()


def test_a_store_without_a_feed_is_said_to_have_none(monkeypatch, tmp_path, capsys):
    class Deaf(MemoryStore):
        def watch(self, on_change):
            raise NotImplementedByStore("no feed")

    monkeypatch.setattr("sessiontree.cli.bench.stack.open_store", lambda url: Deaf())
    results = found(tmp_path, *TINY, "--revokes", "2", "--watch", "--cache", "local")
    assert [each.get("unavailable") for each in results["revocation"]] == ["this store has no watch", None]
    assert "--watch had no effect" in capsys.readouterr().out


# -- what must not be ----------------------------------------------------------------------------------


def test_lost_updates_are_counted_and_end_with_code_1(monkeypatch, capsys):
    class Losing(MemoryStore):
        writes = 0

        def apply(self, handle, proof, changes):
            self.writes += 1
            return super().apply(handle, proof, changes._replace(sets={}) if self.writes % 7 == 0 else changes)

    monkeypatch.setattr("sessiontree.cli.bench.stack.open_store", lambda url: Losing())
    assert run(*NO_REVOKES, "--cache", "none") == 1
    assert "memory + none lost" in capsys.readouterr().err


def test_lost_increments_are_counted_too(monkeypatch, capsys):
    class Losing(MemoryStore):
        def apply(self, handle, proof, changes):
            before = self.load(handle)
            version = super().apply(handle, proof, changes)
            if changes.adds and version.sums["count"] % 10 == 0:
                self._put(before)
            return version

    monkeypatch.setattr("sessiontree.cli.bench.stack.open_store", lambda url: Losing())
    assert run(*NO_REVOKES, "--cache", "none") == 1
    assert "lost" in capsys.readouterr().err


def test_a_session_that_is_served_after_its_revoke_ends_with_code_1(monkeypatch, capsys):
    class Forgetful(MemoryStore):
        def revoke(self, handle):
            return True

    monkeypatch.setattr("sessiontree.cli.bench.stack.open_store", lambda url: Forgetful())
    monkeypatch.setattr("sessiontree.cli.bench.lag.MARGIN", 0.01)
    assert run(*TINY, "--revokes", "2", "--cache", "local", "--max-staleness", "0.02") == 1
    printed = capsys.readouterr()
    assert "20 EXCEEDED" in printed.out
    assert "served a session for longer than max_staleness after its revoke" in printed.err


def test_ctrl_c_leaves_neither_sessions_nor_processes(monkeypatch, tmp_path, capsys):
    begun = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            begun.append(self)

    def step(bar, amount, label):
        if "round 2" in label:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.setattr(command._Bar, "step", step)
    path = tmp_path / "sessions.db"
    assert run("--store", f"sqlite:///{path}", "--processes", "2", "--cache", "none", *TINY) == 130
    assert "stopped" in capsys.readouterr().err
    assert len(begun) == 2
    assert all(process.returncode is not None for process in begun)
    store = SqliteStore(path)
    assert store.scan().records == []
    store.close()


def test_a_process_that_ends_early_is_one_sentence(tmp_path):
    there = There(Setting(Plan(), SECRET, "bench", str(tmp_path)))
    there._process.kill()
    there._process.wait()
    with pytest.raises(BenchError, match="ended early, with code -9"):
        there.start("take", stack=0, cookies=[])()
    there.close()


def test_what_goes_wrong_in_another_process_is_told_here(tmp_path):
    there = There(Setting(Plan(stores=("sqlite:////nowhere/at/all.db",)), SECRET, "bench", str(tmp_path)))
    with pytest.raises(BenchError, match="nowhere"):
        there.start("take", stack=0, cookies=[])()
    there.close()


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sessions", "0"), "from 1 to 1000000, not '0'"),
        (("--keys", "1"), "from 2 to 1000"),
        (("--size", "3"), "from 4 to 100000"),
        (("--reads", "1.5"), "from 0 to 1, not '1.5'"),
        (("--reads", "nan"), "not 'nan'"),
        (("--zipf", "-1"), "from 0 to 10"),
        (("--threads", "many"), "from 1 to 256"),
        (("--processes", "0"), "from 1 to 64"),
        (("--seconds", "0"), "from 0.01"),
        (("--requests", "9", "--seconds", "1"), "not allowed with argument --requests"),
        (("--max-staleness", "inf"), "not 'inf'"),
        (("--cache", "redis"), "use none, local, local:all"),
        (("--cache", "local:mru"), "fifo, lfu, lru, rr, tlru, ttl"),
        (("--cache", "disk:"), "disk:FOLDER"),
        (("--json", "/nowhere/at/all.json"), "make it first"),
        (("--html", "/"), "name a file"),
        (("--processes", "2"), "use --processes 1, or a store such as --store sqlite:"),
        (("--store", "memory"), "use one of memory:"),
        (("--store", "sqlite:////nowhere/at/all.db"), "does not exist: create it"),
        (("--store", "nosuch://host"), "use one of memory:"),
        (("--cache", "disk:/nowhere/at/all"), "make the one above it first"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_to_change(arguments, said, capsys):
    if "disk:/nowhere/at/all" in arguments:
        pytest.importorskip("diskcache")
    assert said in refusal(capsys, *arguments)


def test_a_cache_whose_extra_is_missing_says_what_to_install(monkeypatch, capsys):
    for name in ("disk", "disk.cache", "disk.databases", "disk.rows"):
        monkeypatch.delitem(sys.modules, f"sessiontree.caches.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "diskcache", None)
    assert "pip install 'sessiontree[disk]'" in refusal(capsys, *NO_REVOKES, "--cache", "tiered")


def test_a_store_that_cannot_be_opened_is_a_failure_and_no_wrong_argument(tmp_path, capsys):
    file = tmp_path / "sessions.db"
    file.write_bytes(b"no database" * 1000)
    file.chmod(0o600)
    assert run("--store", f"sqlite:///{file}", *TINY) == 1
    assert capsys.readouterr().err.startswith("sessiontree: ")


def test_a_password_in_a_url_is_never_named():
    plan = Plan(stores=("redis://:hunter2@host/0", "redis://:hunter3@host/1"), caches=("none",))
    assert plan.names == ["redis 1 + none", "redis 2 + none"]


# -- comparing -----------------------------------------------------------------------------------------


def test_a_run_beside_itself_differs_in_nothing(whole, capsys):
    capsys.readouterr()
    assert run("--compare", whole / "found.json", whole / "found.json") == 0
    printed = capsys.readouterr().out
    assert "sqlite + local: p99 us" in printed
    assert "1.00x" in printed
    assert "DIFFERS" not in printed


def test_a_figure_that_differs_by_more_than_the_noise_is_named_as_better_or_worse(whole, tmp_path, capsys):
    other = json.loads((whole / "found.json").read_text())
    for name, factor in (("throughput", 10), ("trips", 10)):
        stack = other["stacks"][0][name]
        other["stacks"][0][name] = {part: value * factor for part, value in stack.items()}
    other["options"]["sessions"], other["machine"]["cpus"] = 9, None
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert run("--compare", whole / "found.json", tmp_path / "other.json") == 0
    printed = capsys.readouterr().out
    rows = {line.partition("  ")[0]: line.split() for line in printed.splitlines()}
    assert rows["memory + none: requests/s"][-3:] == ["10.00x", "DIFFERS", "better"]
    assert rows["memory + none: round trips"][-3:] == ["10.00x", "DIFFERS", "worse"]
    assert printed.count("DIFFERS") == 2
    assert "asked for otherwise: sessions 8 in A, 9 in B" in printed
    assert "on another machine: cpus" in printed


def test_runs_of_other_stacks_are_said_to_have_nothing_in_common(whole, tmp_path, capsys):
    other = tmp_path / "other.json"
    assert run(*NO_REVOKES, "--cache", "local:lru", "--json", other) == 0
    assert run("--compare", whole / "found.json", other) == 0
    printed = capsys.readouterr().out
    assert "only in B: memory + local:lru" in printed
    assert "nothing in common" in printed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("not json", "is no JSON"),
        ("[]", "was not written by sessiontree bench"),
        ('{"tool": "sessiontree bench", "schema": 99}', "has schema 99"),
    ],
)
def test_what_is_no_run_cannot_be_compared(content, said, whole, tmp_path, capsys):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    assert said in refusal(capsys, "--compare", whole / "found.json", file)


# -- figures -------------------------------------------------------------------------------------------


def test_a_percentile_is_a_sample_of_all_of_them():
    ordered = list(range(1, 1001))
    assert [percentile(ordered, share) for share in (0.5, 0.99, 0.999, 1)] == [500, 990, 999, 1000]
    assert percentile([7], 0.001) == percentile([7], 0.999) == 7


def test_a_figure_has_the_quartiles_of_its_rounds():
    assert figure(3, [5, 1, 2, 4, 3]) == {"value": 3, "low": 2, "high": 4}
    assert figure(3, [5, 1]) == {"value": 3, "low": 1, "high": 5}


def test_a_median_comes_with_the_samples_around_it():
    assert with_error(list(range(101))) == {"value": 50, "low": 40, "high": 60}
    assert with_error([3]) == {"value": 3, "low": 3, "high": 3}


def test_a_histogram_has_twenty_bars_from_one_power_of_ten_to_the_next():
    assert histogram([1, 1, 10, 100]) == [[0, 2], [20, 1], [40, 1]]
    assert histogram([0]) == [[-60, 1]]


def test_the_first_session_is_asked_for_most_and_without_skew_all_alike():
    assert zipf(4, 1) == pytest.approx([1, 1.5, 1.8333, 2.0833], abs=1e-3)
    assert zipf(3, 0) == [1, 2, 3]
