"""How long ``import sessiontree`` takes in a fresh interpreter, over one that imports nothing."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.harness import Call, Spread, Verdict, measure, table

BUDGET_MS = 80.0
STATEMENTS = {"bare": "pass", "sessiontree": "import sessiontree"}


@dataclass(frozen=True)
class Result:
    """Milliseconds of an import."""

    row: str
    ms: Spread
    verdict: Verdict


def run(rounds: int) -> list[Result]:
    """Start interpreters in turns; their bytecode was compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: _interpreter(statement, folder) for name, statement in STATEMENTS.items()}
        # The harness calls each case before it measures, so the bytecode is there.
        samples = measure(cases, rounds, stint=1)
    spread = Spread.of([value / 1e6 for value in samples.net("sessiontree", "bare")])
    return [Result("import sessiontree", spread, Verdict.of(spread.median, BUDGET_MS, "ms"))]


def _interpreter(statement: str, folder: str) -> Call:
    command = [sys.executable, "-c", statement]
    environment = _environment(os.environ, folder)
    return lambda: subprocess.run(command, env=environment, cwd=folder, check=True)  # noqa: S603 - our own command


def _environment(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """Let the child write and find its bytecode in the folder, whatever it was told about bytecode before."""
    kept = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}


def shown(results: list[Result]) -> str:
    """Return the results as a table."""
    head = ("fresh interpreter, over a bare one", "ms", "budget", "")
    rows = [(result.row, str(result.ms), *result.verdict.cells()) for result in results]
    return table("Import", head, rows)
