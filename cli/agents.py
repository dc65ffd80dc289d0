"""What a browser calls itself, said for people."""

import re
from typing import Final

__all__ = ["agent_name"]

LONGEST: Final = 60
UNNAMED: Final = "A browser without a name"

BROWSERS: Final = {
    "Edg": "Edge",
    "EdgA": "Edge",
    "EdgiOS": "Edge",
    "OPR": "Opera",
    "SamsungBrowser": "Samsung Internet",
    "Vivaldi": "Vivaldi",
    "FxiOS": "Firefox",
    "Firefox": "Firefox",
    "CriOS": "Chrome",
    "Chrome": "Chrome",
    "Safari": "Safari",
}
"""By the product's name, the most telling first: Edge says that it is Chrome too, and Chrome that it is Safari."""

SYSTEMS: Final = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "CrOS": "ChromeOS",
    "Macintosh": "macOS",
    "FreeBSD": "FreeBSD",
    "Linux": "Linux",
}
"""By a word of the first comment, the most telling first: an Android says that it is a Linux too."""

FILLER: Final = frozenset({"AppleWebKit", "Gecko", "Version", "Mobile"})
"""What all browsers call themselves besides, and which tells nothing."""

# The one shape in which browsers speak. Robots add a comment of their own, and so are not taken for browsers.
_SHAPE: Final = re.compile(r"Mozilla/5\.0 \(([^()]*)\) ([^()]*)(?:\(KHTML, like Gecko\)([^()]*))?")


def agent_name(agent: str) -> str:
    """Return the browser and system of a user agent, "Firefox on Linux", or the string itself if it is another's.

    Every word in it has to be a known one: "Chrome on Linux" never stands for a browser that says it is something
    else. It is what the client says, and clients may lie. An iPad mostly says that it is a Macintosh.
    """
    shape = _SHAPE.fullmatch(agent.strip())
    if shape is not None:
        products = {word.partition("/")[0] for word in f"{shape[2]} {shape[3] or ''}".split()}
        browser = next((name for product, name in BROWSERS.items() if product in products), None)
        system = next((name for word, name in SYSTEMS.items() if word in shape[1]), None)
        if browser and system and products <= FILLER | BROWSERS.keys():
            return f"{browser} on {system}"
    return _trimmed(agent)


def _trimmed(agent: str) -> str:
    """Return the string on one short line, with a mark for each character that cannot be seen."""
    line = " ".join(agent.split())
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return (line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…") or UNNAMED
