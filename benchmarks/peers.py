"""The same data and the same work in other session libraries, each over its own bare application."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import wsgi
from benchmarks.frameworks import BUILDERS, Pair, Use
from benchmarks.harness import Call, Samples, Spread, measure, ratios, table
from benchmarks.payload import COUNTER, SIZES, read_two, read_two_write_one
from benchmarks.sessions import TOKENS, bare, data_of, filled, handler, reading, renewed, writing

OPERATIONS = {"untouched": "untouched", "read": "read 2", "write": "read 2, write 1"}

OURS = {
    "signed": ("signed", False),
    "sealed": ("sealed", False),
    "signed, token not seen lately": ("signed", True),
    "sealed, token not seen lately": ("sealed", True),
}
"""Our rivals by name: the kind, and whether every request shows another token, so that no memory of one helps."""

STINT_NS = 3_000_000
"""Longer than elsewhere: whole requests of a framework are slow, and the first ones of a stint are cold."""


@dataclass(frozen=True)
class Result:
    """One operation at one size in one library: microseconds over its own bare application."""

    operation: str
    size: str
    library: str
    sealed: bool
    us: Spread
    times: dict[str, Spread]
    """How many times what ours takes in the same round, by the name of ours."""


class Uses(dict[str, Use]):
    """What is done with the session at each path; at any other path it is left alone."""

    def __init__(self, *, on_top: bool = False) -> None:
        """Make the paths of both sizes, and remember what ``show`` saw; ``on_top`` as for ``data_of``."""
        super().__init__(show=lambda session: self.shown.append(dict(session.items())))
        self.shown: list[dict[str, Any]] = []
        self.data = {size: data_of(size, on_top=on_top) for size in SIZES}
        for size, data in self.data.items():
            self[f"{size}-fill"] = lambda session, data=data: session.update(data)
            self[f"{size}-read"] = read_two
            self[f"{size}-write"] = read_two_write_one


def peers(uses: Uses) -> tuple[dict[str, Pair], list[str]]:
    """Return the applications of every peer that is installed, and a line for each that is not."""
    found, missing = {}, []
    for name, build in BUILDERS.items():
        try:
            found[name] = build(uses)
        except ImportError as error:
            missing.append(f"{name} is skipped ({error}): pip install 'sessiontree[bench]'")
    return found, missing


def working_cookie(name: str, pair: Pair, uses: Uses, size: str) -> str:
    """Return the cookie of a first request, once the data was found behind it and could be changed."""
    get = pair.client.cookies_set
    cookie = get(pair.app, f"/{size}-fill")
    get(pair.app, "/show", cookie)
    get(pair.app, "/show", get(pair.app, f"/{size}-write", cookie))
    wanted = uses.data[size]
    before, after = ({key: value for key, value in seen.items() if key in wanted} for seen in uses.shown[-2:])
    if before != wanted or after == wanted or after != {**wanted, COUNTER: after[COUNTER]}:
        raise RuntimeError(f"{name} did not keep its data: its figures would mean nothing.")
    return cookie


def _peer_cases(name: str, pair: Pair, uses: Uses) -> Iterator[tuple[str, Call]]:
    for size in SIZES:
        cookie = working_cookie(name, pair, uses, size)
        # The same path and the same cookie, for a framework's own work with them is not the session's.
        yield f"{name} {size} bare", pair.client.request(pair.bare, f"/{size}-untouched", cookie)
        for operation in OPERATIONS:
            yield f"{name} {size} {operation}", pair.client.request(pair.app, f"/{size}-{operation}", cookie)


def _our_cases(name: str) -> Iterator[tuple[str, Call]]:
    kind, changing = OURS[name]
    ours = handler(kind)
    apps = {"untouched": bare, "read": reading(ours), "write": writing(ours)}
    for size in SIZES:
        cookies = [filled([ours], data_of(size))]
        if changing:
            cookies = renewed(ours, cookies[0], len(apps) * TOKENS)
        yield f"{name} {size} bare", wsgi.request(bare, "/", *cookies)
        for place, (operation, app) in enumerate(apps.items()):
            # No two operations show the same token, unless there is only one.
            mine = cookies[place * TOKENS :][:TOKENS] or cookies
            yield f"{name} {size} {operation}", wsgi.request(ours.link(app), "/", *mine)


def run(rounds: int) -> tuple[list[Result], list[str]]:
    """Measure ours and every peer, interleaved; also return a line for each peer that is missing."""
    uses = Uses()
    pairs, missing = peers(uses)
    cases = {case: call for name in OURS for case, call in _our_cases(name)}
    for name, pair in pairs.items():
        cases.update(_peer_cases(name, pair, uses))
    samples = measure(cases, rounds, stint=STINT_NS)
    libraries = {name: kind == "sealed" for name, (kind, _) in OURS.items()}
    libraries |= {name: pair.sealed for name, pair in pairs.items()}
    return [
        _result(samples, operation, size, name, sealed=sealed)
        for operation in OPERATIONS
        for size in SIZES
        for name, sealed in libraries.items()
    ], missing


def _result(samples: Samples, operation: str, size: str, library: str, *, sealed: bool) -> Result:
    def net(name: str) -> list[float]:
        return samples.net(f"{name} {size} {operation}", f"{name} {size} bare")

    taken = net(library)
    times = {name: Spread.of(ratios(taken, net(name))) for name in OURS}
    return Result(OPERATIONS[operation], size, library, sealed, Spread.of([value / 1000 for value in taken]), times)


def shown(results: list[Result]) -> str:
    """Return two tables: what every library takes, and ours beside the best peer."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(f"{result.size}: {result.operation}", []).append(result)
    peers = [result.library for result in next(iter(rows.values())) if result.library not in OURS]
    every = [
        (name, *(f"{result.us.median:.1f}" for result in row if result.library in peers)) for name, row in rows.items()
    ]
    duels = [_duel(name, row, ours) for ours in OURS for name, row in rows.items()]
    return "\n".join(
        [
            table("Peers: microseconds over each one's own bare application", ("", *peers), every),
            table(
                "Ours beside the fastest peer (of the encrypting ones, where ours is sealed)",
                ("", "", "ours us", "fastest peer", "its us", "times ours"),
                [duel for duel in duels if duel],
            ),
        ]
    )


def _duel(name: str, row: list[Result], library: str) -> tuple[str, ...]:
    [ours] = [result for result in row if result.library == library]
    rivals = [result for result in row if result.library not in OURS and result.sealed >= ours.sealed]
    if not rivals:
        return ()
    best = min(rivals, key=lambda result: result.us.median)
    # What a peer does not do at all measures as noise around zero.
    factor = max(0.0, best.times[library].median)
    figures = (f"{ours.us.median:.1f}", best.library, f"{max(0.0, best.us.median):.1f}", f"{factor:.1f}x")
    return (library, name, *figures)
