"""The table of requirements is true: each row has its test, or says why not. And what holds for all the source."""

import ast
import re
from pathlib import Path

import pytest

import sessiontree

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(r"^\| ([A-Z]{2}-\d+) \| .* \| (.*) \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
SECTIONS = {"ID": 9, "CR": 21, "CK": 17, "RQ": 11, "LC": 17, "CX": 7, "HC": 3, "CS": 3, "LG": 4, "TM": 3}
SECTIONS |= {"UN": 1, "WS": 5, "ST": 19, "CA": 10}


def names_of_tests():
    names = set()
    for path in (ROOT / "tests").glob("*.py"):
        names |= set(re.findall(r"def (test_\w+)", path.read_text()))
    return names


NAMES = names_of_tests()


def test_every_requirement_has_its_row():
    rows = {row for row, _ in ROWS}
    missing = [f"{key}-{n}" for key, last in SECTIONS.items() for n in range(1, last + 1) if f"{key}-{n}" not in rows]
    assert missing == []


@pytest.mark.parametrize(("row", "held"), ROWS)
def test_a_row_that_claims_tests_has_them(row, held):
    prefix = f"test_{row.lower().replace('-', '_')}_"
    if held == "tests":
        assert any(name.startswith(prefix) for name in NAMES)
    for name in re.findall(r"`(test_\w+)`", held):
        assert name in NAMES


SOURCES = sorted(
    path
    for folder in (".", "handlers", "stores", "caches", "cli")
    for path in (ROOT / folder).glob("*.py")
    if sessiontree.__file__ and path.is_file()
)


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


LIBRARY = [path for path in SOURCES if path.parent.name != "cli"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_tm_3_only_the_clock_module_reads_the_time(path):
    tree = ast.parse(path.read_text())
    if path.name != "clock.py":
        assert not {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"} & set(calls(tree))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "time" not in imported


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_st_1_nothing_evaluates_or_unpickles(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert not {"eval", "exec", "compile", "__import__"} & set(calls(tree))
    assert not re.search(r"\b(pickle|marshal|shelve|dill|yaml)\b", text.replace("unpickles", ""))
