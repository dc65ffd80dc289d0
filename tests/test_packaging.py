"""What is in the package and what a plain import costs: the front door, the wheel, the examples."""

import doctest
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import Browser

import sessiontree

ROOT = Path(__file__).resolve().parent.parent

FRONT_DOOR = set(
    re.findall(
        r"\w+",
        """
        BadCookie BadSession CompareFailed ConfigError Conflict CookiePolicy CookieTooLarge Csrf Enforcer
        Expired Handler HeadersSent KeyNotFound KeyRing LimitReached Metadata NoCookie NoID NoSession
        NotImplementedByStore ParentInvalid RecordTooLarge RejectedError Session SessionError SessionGone
        StoreCorrupt StoreError StoreUnavailable TooLarge UsageError chain with_absolute_timeout with_clock
        with_cookie with_eager with_encryption with_events with_header with_id_generator with_idle_timeout
        with_cache with_logger with_max_age with_max_sessions with_serializer SessionInfo with_store with_outage
        with_revocations
        server_only fixed_id
        """,
    )
)


def test_the_front_door_is_pinned():
    assert set(sessiontree.__all__) == FRONT_DOOR
    assert all(hasattr(sessiontree, name) for name in FRONT_DOOR)


def modules():
    return [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(sessiontree.__path__, "sessiontree.")
        if found.name.split(".")[1]
        in {
            "breaker",
            "cli",
            "caches",
            "handlers",
            "stores",
            "errors",
            "forks",
            "clock",
            "keys",
            "records",
            "serializer",
            "testing",
        }
    ]


def test_every_module_says_what_it_is_and_what_it_offers():
    assert len(modules()) > 20
    for module in modules():
        assert module.__doc__, module.__name__
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_doctests_run():
    results = [doctest.testmod(module) for module in modules()]
    assert sum(result.attempted for result in results) > 5
    assert sum(result.failed for result in results) == 0


def test_a_plain_import_loads_no_framework():
    code = "import sys, json, sessiontree; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))
    assert not loaded & {
        "werkzeug",
        "flask",
        "django",
        "waitress",
        "pybase64",
        "diskcache",
        "redis",
        "cachetools",
        "email",
    }


def test_nothing_but_package_modules_stands_in_the_root():
    assert {path.name for path in ROOT.glob("*.py")} == {
        "__init__.py", "__main__.py", "breaker.py", "clock.py", "errors.py", "forks.py", "keys.py", "records.py",
        "serializer.py", "testing.py",
    }  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy under a folder name that is no identifier."""
    copy = tmp_path_factory.mktemp("build") / "some checkout-1.2"
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore)
    out = copy.parent / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "-w",
        out,
        copy,
    ]
    subprocess.run(command, check=True, capture_output=True)
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {path.name for path in ROOT.glob("*.py")} | {"py.typed"}
    for folder in ("handlers", "stores", "caches", "cli"):
        inner = (ROOT / folder).rglob("*")
        here |= {path.relative_to(ROOT).as_posix() for path in inner if path.suffix in {".py", ".css", ".html"}}
    assert inside == {f"sessiontree/{name}" for name in here}


def test_the_installed_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import sessiontree as s; print(s.__file__); s.Handler('a', bytes(range(40))).link(print)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    assert str(tmp_path) in done.stdout


def readme_example():
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


def test_the_readme_example_has_fifteen_lines_and_runs():
    code = readme_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)  # noqa: S102 - it is our own
    _behaves(scope["site"])


def test_the_example_file_runs():
    scope: dict[str, object] = {"__name__": "hello"}
    exec(compile((ROOT / "examples/hello.py").read_text(), "hello.py", "exec"), scope)  # noqa: S102
    _behaves(scope["site"])


def _behaves(site):
    browser = Browser(site)
    assert browser.get("/").text == "visit 1 of nobody\n"
    assert browser.get("/private").code == 401
    assert browser.get("/login").text == "visit 2 of alice\n"
    assert browser.get("/private").text == "visit 3 of alice\n"
