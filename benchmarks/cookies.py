"""Measure sessions in cookies: ``python -m benchmarks.cookies``, from the root of the checkout.

It prints what a session adds to a whole request, beside FLOOR (the least that a signed cookie can cost),
the budgets of the design, other libraries, and a busy thread. Nothing fails for being slow.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import busy, harness, imports, ours, peers
from benchmarks.machine import BASE64, chosen_base64, machine

ROUNDS = 400
QUICK = 20
IMPORT_SHARE = 10
SECTIONS = ("ours", "peers", "busy", "import")
SPEED = "pybase64"

LEGEND = """\
FLOOR is hmac.digest, orjson.loads, orjson.dumps, hmac.digest on JSON of 200 bytes (small) or 2500 (big); the hard
floor is the same with a copied HMAC state. Ours is a whole request less its bare application; the application's JSON
is as much smaller as the token's own envelope is large, but for the rows that say "on top". Each request carries the
same valid cookie, but for the rows that say "not seen lately". In brackets the quartiles; "times" is the median of
the ratios within each round. Budgets are for a quiet machine, and those in microseconds for one with FLOOR = 3.6 us.
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for, print it, and keep it as JSON if asked to."""
    options = _parser().parse_args(arguments)
    rounds = max(3, options.rounds // QUICK if options.quick else options.rounds)
    sections = [options.only] if options.only else list(SECTIONS)
    results: dict[str, Any] = {"machine": machine(harness.pin(), peers.BUILDERS), "rounds": rounds}
    print("\n".join(results["machine"].values()), f"{rounds} rounds", "", LEGEND, sep="\n")
    for section in sections:
        results[section] = _RUNNERS[section](rounds)
    if options.json is not None:
        harness.save(options.json, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cookies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is run ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"a {QUICK}th of the rounds: does it run at all?")
    parser.add_argument("--only", choices=SECTIONS, help="one section only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    return parser


def _ours(rounds: int) -> dict[str, Any]:
    """Measure ours with the base64 that is chosen, and then, in a process of its own, with the faster one."""
    chosen = chosen_base64()
    found: dict[str, Any] = {chosen: ours.run(rounds, speed=chosen == SPEED)}
    print(ours.shown(f"Ours, base64 by {chosen}", found[chosen]))
    if chosen != SPEED and find_spec(SPEED) is None:
        print("Ours with pybase64 is skipped: pip install 'sessiontree[speed]'\n")
    elif chosen != SPEED:
        found |= _with_speed(rounds)
    return found


def _with_speed(rounds: int) -> dict[str, Any]:
    """Run this module again: sessiontree chooses its base64 when it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "speed.json")
        command = [sys.executable, "-m", "benchmarks.cookies", "--only", "ours", "--rounds", str(rounds)]
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, "--json", str(file)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, BASE64: SPEED},
            check=True,
            capture_output=True,
            text=True,
        )
        results = json.loads(file.read_text())["ours"]
    print(done.stdout[done.stdout.index("Ours,") :])
    return dict(results)


def _peers(rounds: int) -> dict[str, Any]:
    results, missing = peers.run(rounds)
    print(peers.shown(results), *missing, sep="\n")
    return {"results": results, "missing": missing}


def _busy(rounds: int) -> list[busy.Result]:
    results = busy.run(rounds * busy.CALLS // ROUNDS)
    print(busy.shown(results))
    return results


def _import(rounds: int) -> list[imports.Result]:
    results = imports.run(max(3, rounds // IMPORT_SHARE))
    print(imports.shown(results))
    return results


_RUNNERS = {"ours": _ours, "peers": _peers, "busy": _busy, "import": _import}

if __name__ == "__main__":
    main()
