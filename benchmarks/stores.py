"""Measure sessions in stores: ``python -m benchmarks.stores``, from the root of the checkout.

It prints what a session in a store adds to a whole request, beside the bare sqlite3 calls, the budgets of the
design and other libraries; the stores' verbs alone, what a cache costs, the memory of a session, what a sweep holds
up, what the sessions of one subject cost among those of others, and whether overlapping requests lose anything. Nothing
fails for being slow.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cached, footprint, harness, overlap, store_peers, stored, subjects, sweeping, verbs
from benchmarks.machine import machine

ROUNDS = 200
QUICK = 20

LEGEND = """\
Bare sqlite3 is a SELECT of one blob by its key, with a cursor that is used again, and orjson.loads; for a write then
orjson.dumps and an UPDATE; WAL, synchronous NORMAL, autocommit. Data is JSON of 200 bytes (small) or 2500 (big).
Ours and the bare calls have a crowd of other sessions beside them, the peers have none. In brackets the quartiles;
"times" is the median of the ratios within each round. Budgets are for a quiet machine.
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for, print it, and keep it as JSON if asked to."""
    options = _parser().parse_args(arguments)
    scale = options.share or (QUICK if options.quick else 1)
    rounds = max(3, options.rounds // scale)
    sections = [options.only] if options.only else list(SECTIONS)
    results: dict[str, Any] = {"machine": machine(harness.pin(), store_peers.PACKAGES), "rounds": rounds}
    print("\n".join(results["machine"].values()), f"{rounds} rounds", "", LEGEND, sep="\n")
    # One folder until the end, for Django is told once where its files are.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for section in sections:
            own = Path(folder, section)
            own.mkdir()
            results[section] = SECTIONS[section](own, rounds, scale)
    if options.json is not None:
        harness.save(options.json, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is run ({ROUNDS})")
    quick = f"a {QUICK}th of the rounds and of the sessions: does it run at all?"
    parser.add_argument("--quick", action="store_true", help=quick)
    share = "an Nth of the rounds and of the sessions, whatever they are"
    parser.add_argument("--share", type=int, metavar="N", help=share)
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one section only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    return parser


def _ours(folder: Path, rounds: int, scale: int) -> list[stored.Result]:
    results = stored.run(rounds, folder, max(2, stored.SESSIONS // scale), stored.CROWD // scale)
    print(stored.shown(results))
    return results


def _peers(folder: Path, rounds: int, scale: int) -> dict[str, Any]:
    results, missing = store_peers.run(rounds, folder, max(2, stored.SESSIONS // scale))
    print(store_peers.shown(results), *missing, sep="\n")
    return {"results": results, "missing": missing}


def _verbs(folder: Path, rounds: int, scale: int) -> list[verbs.Result]:
    results = verbs.run(rounds, folder, stored.CROWD // scale)
    print(verbs.shown(results))
    return results


def _footprint(folder: Path, rounds: int, scale: int) -> list[footprint.Result]:
    results = footprint.run(scale)
    print(footprint.shown(results))
    return results


def _sweep(folder: Path, rounds: int, scale: int) -> dict[str, Any]:
    holds, reads = sweeping.run(folder, scale)
    print(sweeping.shown(holds, reads))
    return {"holds": holds, "reads": reads}


def _subjects(folder: Path, rounds: int, scale: int) -> dict[str, Any]:
    among, work, many = subjects.run(rounds, folder, scale)
    print(subjects.shown(among, work, many))
    return {"among": among, "work": work, "many": many}


def _cached(folder: Path, rounds: int, scale: int) -> list[cached.Result]:
    results = cached.run(rounds, scale)
    print(cached.shown(results))
    return results


def _overlap(folder: Path, rounds: int, scale: int) -> dict[str, Any]:
    results, missing = overlap.run(folder, max(5, overlap.REQUESTS // scale))
    print(*missing, overlap.shown(results), sep="\n")
    return {"results": results, "missing": missing, "lost": overlap.ours_lost(results)}


SECTIONS: dict[str, Callable[[Path, int, int], Any]] = {
    "ours": _ours,
    "peers": _peers,
    "verbs": _verbs,
    "cached": _cached,
    "footprint": _footprint,
    "sweep": _sweep,
    "subjects": _subjects,
    "overlap": _overlap,
}

if __name__ == "__main__":
    main()
