"""What the figures depend on, besides us: printed above every table."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BASE64 = "SESSIONTREE_BASE64"


def machine(pinned: str, peers: Iterable[str]) -> dict[str, str]:
    """Return a line each about the machine, the interpreter, the other libraries and our base64."""
    build = f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})"
    libraries = [f"{name} {_version(name)}" for name in ("cryptography", "orjson", "pybase64")]
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; {pinned}",
        "python": f"{build}; collector off while measuring; {', '.join(libraries)}",
        "peers": ", ".join(f"{name} {_version(name)}" for name in peers),
        "base64": f"sessiontree uses {chosen_base64()}",
    }


def chosen_base64() -> str:
    """Return the name of the module that sessiontree encodes with."""
    return os.environ.get(BASE64, "binascii")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
