"""What ``sessiontree bench`` can be asked for: its arguments, and the plan that every process of a run is told."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Final

__all__ = ["DESCRIPTION", "POLICIES", "SQLITE", "Plan", "add_arguments", "cache_name", "plan_of", "store_name"]

DESCRIPTION: Final = "measure sessions on this machine, in any store and behind any cache, beside other libraries"

POLICIES: Final = ("fifo", "lfu", "lru", "rr", "tlru", "ttl")
"""The policies of cachetools that a LocalCache can be given."""

SQLITE: Final = "sqlite:"
"""In place of a store's URL: a SQLite file of the run's own, gone at its end."""

USUAL: Final = {"sessions": 1000, "requests": 20_000, "revokes": 1000, "rounds": 10, "writes": 200}
QUICK: Final = {"sessions": 100, "requests": 2000, "revokes": 50, "rounds": 3, "writes": 25}

LARGEST_VALUE: Final = 100_000
SMALLEST_VALUE: Final = 4
FEWEST_KEYS: Final = 2
MOST_KEYS: Final = 1000
MOST_SESSIONS: Final = 1_000_000
MOST_REQUESTS: Final = 100_000_000
MOST_THREADS: Final = 256
MOST_PROCESSES: Final = 64
STEEPEST: Final = 10.0
DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: which stacks it compares, and what is done to each."""

    stores: tuple[str, ...] = ("memory:",)
    caches: tuple[str, ...] = ("none", "local")
    sessions: int = USUAL["sessions"]
    keys: int = 8
    size: int = 16
    reads: float = 0.9
    zipf: float = 1.0
    threads: int = 1
    processes: int = 1
    requests: int = USUAL["requests"]
    seconds: float | None = None
    """How long each stack is asked, in place of ``requests``."""

    watch: bool = False
    max_staleness: float = 5.0
    cache_sessions: int = 100_000
    revokes: int = USUAL["revokes"]
    rounds: int = USUAL["rounds"]
    writes: int = USUAL["writes"]
    """How many requests each worker makes that looks for lost updates."""

    seed: int = 1
    quick: bool = False

    @property
    def stacks(self) -> list[tuple[str, str]]:
        """Every store with every cache, as a URL and a cache's name."""
        return [(store, cache) for store in self.stores for cache in self.caches]

    @property
    def names(self) -> list[str]:
        """What each stack is called; a URL can hold a password, so only its scheme is named."""
        stores, caches = _numbered(map(store_name, self.stores)), _numbered(map(cache_name, self.caches))
        return [f"{store} + {cache}" for store in stores for cache in caches]


def _numbered(names: Iterable[str]) -> list[str]:
    """Return the names, with a number behind each that is not the only one of its kind."""
    every = list(names)
    return [
        name if every.count(name) == 1 else f"{name} {every[:place].count(name) + 1}"
        for place, name in enumerate(every)
    ]


def store_name(url: str) -> str:
    """Return the engine that a store's URL names."""
    scheme = url.partition(":")[0].lower()
    return {"unix": "redis", "rediss": "redis", "postgresql": "postgres"}.get(scheme, scheme)


def cache_name(spec: str) -> str:
    """Return a cache as it was asked for, without the folder."""
    return spec if spec.startswith("local") else spec.partition(":")[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments. Those that count have no default here, for ``--quick`` has other ones."""
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--store",
        action="append",
        metavar="URL",
        help="a store, again for more of them; 'sqlite:' is a file of the run's own (default: memory:)",
    )
    what.add_argument(
        "--cache",
        action="append",
        type=_cache,
        metavar="CACHE",
        help=f"a cache in front of it, again for more: none, local, local:POLICY ({', '.join(POLICIES)}), local:all, "
        "disk, disk:FOLDER, tiered, tiered:FOLDER (default: none and local)",
    )
    what.add_argument("--watch", action="store_true", help="let the caches hear of changes while requests are measured")
    what.add_argument("--max-staleness", type=_number(0.01, DAY), default=5.0, metavar="S", help="of the caches (5 s)")
    what.add_argument(
        "--cache-sessions",
        type=_whole(1, MOST_SESSIONS),
        default=100_000,
        metavar="N",
        help="how many sessions a local cache holds (100000); fewer than --sessions shows what a policy is worth",
    )
    what.add_argument("--peers", action="store_true", help="also measure the other libraries that are installed")
    _add_load(parser.add_argument_group("the load"))
    _add_output(parser.add_argument_group("what comes of it"))


def _add_load(load: argparse._ArgumentGroup) -> None:
    numbers: list[tuple[str, Callable[[str], Any], str, Any, str]] = [
        ("--sessions", _whole(1, MOST_SESSIONS), "N", None, "sessions in each stack (1000)"),
        ("--keys", _whole(FEWEST_KEYS, MOST_KEYS), "N", 8, "keys in each session (8)"),
        ("--size", _whole(SMALLEST_VALUE, LARGEST_VALUE), "BYTES", 16, "bytes of text under each key (16)"),
        ("--reads", _number(0, 1), "SHARE", 0.9, "share of the requests that only read (0.9)"),
        ("--zipf", _number(0, STEEPEST), "S", 1.0, "skew: the n-th session is asked for n to the -S times (1.0)"),
        ("--threads", _whole(1, MOST_THREADS), "N", 1, "threads in each process (1)"),
        ("--processes", _whole(1, MOST_PROCESSES), "N", 1, "processes that share the store (1)"),
        ("--revokes", _whole(0, MOST_SESSIONS), "N", None, "sessions revoked to measure the lag, 0 for none (1000)"),
        ("--seed", int, "N", 1, "draws the same sessions again (1)"),
    ]
    for name, kind, metavar, default, text in numbers:
        load.add_argument(name, type=kind, metavar=metavar, default=default, help=text)
    length = load.add_mutually_exclusive_group()
    length.add_argument("--requests", type=_whole(1, MOST_REQUESTS), metavar="N", help="requests to each stack (20000)")
    length.add_argument("--seconds", type=_number(0.01, DAY), metavar="S", help="or how long each stack is asked")
    load.add_argument("--quick", action="store_true", help="about a tenth of everything: does it run at all?")


def _add_output(output: argparse._ArgumentGroup) -> None:
    output.add_argument("--json", type=_file, metavar="FILE", help="write every figure as JSON")
    output.add_argument("--html", type=_file, metavar="FILE", help="write one self-contained page with plots")
    output.add_argument("--svg", type=_file, metavar="FILE", help="write one picture of the results")
    output.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="measure nothing, and say in what two runs differ by more than their noise",
    )


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the arguments ask for."""
    usual = QUICK if arguments.quick else USUAL
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    settings: dict[str, Any] = usual | {each.name: given[each.name] for each in fields(Plan) if each.name in given}
    stores = arguments.store or ("memory:",)
    caches = [name for names in arguments.cache or (("none", "local"),) for name in names]
    return Plan(**settings | {"stores": tuple(dict.fromkeys(stores)), "caches": tuple(dict.fromkeys(caches))})


def _cache(text: str) -> tuple[str, ...]:
    """Return the caches that a word stands for."""
    kind, _, rest = text.partition(":")
    if text == "local:all":
        return ("local", *(f"local:{policy}" for policy in POLICIES))
    if text in {"none", "local"} or (kind == "local" and rest in POLICIES):
        return (text,)
    if kind in {"disk", "tiered"} and (rest or text == kind):
        return (text,)
    raise argparse.ArgumentTypeError(
        f"no cache is called {text!r}: use none, local, local:all, local: with one of {', '.join(POLICIES)}, disk, "
        "disk:FOLDER, tiered or tiered:FOLDER"
    )


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = int(text) if text.isascii() and text.isdigit() else -1
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"this is a whole number from {least} to {most}, not {text!r}")
        return found

    return number


def _number(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = least - 1
        if not isfinite(found) or not least <= found <= most:
            raise argparse.ArgumentTypeError(f"this is a number from {least:g} to {most:g}, not {text!r}")
        return found

    return number


def _file(text: str) -> Path:
    """Return a path that can be written to at the end of a long run."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder for {text!r}: make it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file")
    return path
