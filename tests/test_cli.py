"""The command line: keygen, its arguments and its exit codes."""

import os
import re
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from sessiontree import KeyRing
from sessiontree.cli import main

SECRET = "SESSIONTREE_DEMO_SECRET"
# The server leaves the socket that it could not bind to the end of the process.
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")


def command(*arguments, **variables):
    """Run the command as users do, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != SECRET} | variables
    return subprocess.run(
        [sys.executable, *WARNINGS, "-m", "sessiontree", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )


def code(script):
    """Run a script in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


def exit_code(*arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def test_keygen_prints_one_line_that_makes_a_key_ring(capsys):
    """The secret has 32 random bytes as base64url, and a KeyRing takes it."""
    assert main(["keygen"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", printed)
    assert len(KeyRing(printed.strip()).ids) == 1


def test_keygen_never_repeats_itself(capsys):
    for _ in range(100):
        main(["keygen"])
    lines = capsys.readouterr().out.split()
    assert len(set(lines)) == 100


def test_keygen_makes_longer_secrets(capsys):
    assert main(["keygen", "--bytes", "64"]) == 0
    assert re.fullmatch(r"[A-Za-z0-9_-]{86}\n", capsys.readouterr().out)


@pytest.mark.parametrize("size", ["31", "0", "-32", "32.5", "many", "", "\u0663\u0662"])
def test_keygen_refuses_short_secrets_as_a_usage_error(size, capsys):
    assert exit_code("keygen", "--bytes", size) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert "sessiontree keygen: error:" in written.err


@pytest.mark.parametrize("port", ["-1", "65536", "http", "8_000", ""])
def test_demo_refuses_what_is_no_port(port, capsys):
    assert exit_code("demo", "--port", port) == 2
    assert "0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("keygen", "--what"), ("keygen", "more")])
def test_wrong_arguments_are_a_usage_error(arguments, capsys):
    assert exit_code(*arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("usage: sessiontree")


def test_version_and_help_succeed(capsys):
    assert exit_code("--version") == 0
    assert re.match(r"sessiontree \d+\.\d+", capsys.readouterr().out)
    assert exit_code("--help") == 0
    assert {"keygen", "demo"} <= set(capsys.readouterr().out.split())


def test_the_package_runs_as_a_module():
    """``python -m sessiontree`` is the same command."""
    done = command("keygen")
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", 44)


def test_keygen_imports_neither_the_server_nor_the_web_library():
    """The secret comes without waiting for what only the demo needs."""
    done = code(
        "import sys; from sessiontree.cli import main; main(['keygen'])\n"
        "print({'waitress', 'werkzeug', 'sessiontree.cli.demo'} & set(sys.modules))"
    )
    assert done.stdout.splitlines()[1:] == ["set()"], done.stderr


def test_demo_without_waitress_says_what_to_install():
    done = code(
        "import sys; sys.modules['waitress'] = None\n"
        "from sessiontree.cli import main; sys.exit(main(['demo', '--port', '0']))"
    )
    assert done.returncode == 1
    assert done.stderr == "sessiontree: the demo needs the waitress server: pip install 'sessiontree[cli]'\n"


def test_demo_says_in_one_line_that_the_port_is_taken():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = command("demo", "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in done.stderr


def test_demo_says_in_one_line_that_there_is_no_such_address():
    done = command("demo", "--host", "no.such.host.invalid", "--port", "0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("sessiontree: cannot listen on no.such.host.invalid")


def test_demo_refuses_a_weak_secret_and_does_not_show_it():
    done = command("demo", "--port", "0", SESSIONTREE_DEMO_SECRET="hunter2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "needs 32" in done.stderr
    assert "hunter2" not in done.stderr
