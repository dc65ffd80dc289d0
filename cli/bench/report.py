"""What a run found, for people at a terminal: tables of text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["Section", "broken_promises", "heading", "number", "sections", "shown", "table"]

ABSENT: Final = "-"

Row = Sequence[str]


class Section(NamedTuple):
    """A table and the lines below it."""

    head: Row
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def shown(found: dict[str, Any]) -> str:
    """Return every section of a run as text."""
    tables = ["\n".join([table(each.head, each.rows), *each.notes]) for each in sections(found)]
    return "\n\n".join([heading(found), *tables])


def sections(found: dict[str, Any]) -> list[Section]:
    """Return every section of a run that has anything in it."""
    return [section for make in SECTIONS if (section := make(found)).rows]


def heading(found: dict[str, Any]) -> str:
    """Return two or three lines about the machine and the load."""
    machine, options = found["machine"], found["options"]
    length = f"{options['requests']:,} requests" if options["seconds"] is None else f"{options['seconds']:g} s"
    many = f"{options['processes']} x {options['threads']}"
    return (
        f"sessiontree {found['version']}, {machine['implementation']} {machine['python']}, {machine['system']} "
        f"{machine['architecture']}, {machine['cpus']} CPUs\n"
        f"{options['sessions']:,} sessions of {options['keys']} keys with {options['size']} bytes each, "
        f"{options['reads']:.0%} of the requests read 2 keys, the others write 1 besides, zipf {options['zipf']:g};\n"
        f"{length} to each stack, processes x threads {many}, {options['rounds']} rounds, interleaved"
    )


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with as many digits as it is worth.

    >>> number(1234.5), number(12.345), number(0.00042), number(0), number(None)
    ('1,234', '12.3', '0.00042', '0', '-')
    """
    if value is None:
        return ABSENT
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1 else f"{value:.{digits - len(str(int(abs(value))))}f}"


def table(head: Row, rows: Iterable[Row]) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Row, widths: Sequence[int]) -> str:
    first, *rest = (
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


# -- sections --------------------------------------------------------------------------------


def _requests(found: dict[str, Any]) -> Section:
    head = ("Requests", "p50 us", "p99", "p99.9", "read p50", "write p50", "req/s", "hits", "trips/req", "bytes/req")
    rows = [
        (
            each["name"],
            *(number(each["latency_us"][share]["value"]) for share in ("p50", "p99", "p999")),
            *(number(each[sort] and each[sort]["p50"]) for sort in ("reads_us", "writes_us")),
            f"{each['throughput']['value']:,.0f}",
            percent(each["hit_ratio"]),
            number(each["trips"]["value"]),
            number(each["bytes"]["value"]),
        )
        for each in found["stacks"]
    ]
    return Section(head, rows, [*_failures(found), *_deaf(found)])


def _failures(found: dict[str, Any]) -> Iterator[str]:
    for each in found["stacks"]:
        if each["failed"]:
            yield f"{each['name']}: {each['failed']:,} of {each['requests']:,} requests failed"


def _deaf(found: dict[str, Any]) -> Iterator[str]:
    for each in found["stacks"]:
        if found["options"]["watch"] and each["watch"] != "on":
            yield f"{each['name']}: --watch had no effect, for {each['watch']}"


def percent(ratio: dict[str, Any] | None) -> str:
    """Return a ratio as it is read."""
    return ABSENT if ratio is None else f"{ratio['value']:.1%}"


def _bytes(found: dict[str, Any]) -> Section:
    head = ("Bytes per session", "cookie", "record, packed", "memory in the store", "memory in the cache")
    places = ("cookie", "record", "store", "cache")
    rows = [(each["name"], *(_whole(each["session_bytes"][name]) for name in places)) for each in found["stacks"]]
    return Section(head, rows)


def _whole(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _lost(found: dict[str, Any]) -> Section:
    head = ("Overlapping writes", "processes x threads", "requests", "failed", "lost updates")
    rows = [
        (
            each["name"],
            f"{each['processes']} x {each['threads']}",
            *(f"{each[name]:,}" for name in ("requests", "failed", "lost")),
        )
        for each in found["lost"]
    ]
    return Section(head, rows)


def _revocation(found: dict[str, Any]) -> Section:
    times = ("median", "p99", "max", "served until", "max_staleness")
    head = ("From revoke to refusal, ms", "between", "watch", "revokes", *times)
    return Section(head, [_lag(each) for each in found["revocation"]])


def _lag(each: dict[str, Any]) -> Row:
    start = (each["name"], each["between"], "yes" if each["watch"] else "no")
    if "unavailable" in each:
        return (*start, each["unavailable"], *[ABSENT] * 5)
    median = each["median_ms"] and each["median_ms"]["value"]
    return (
        *start,
        f"{each['revokes']:,}",
        *(number(value) for value in (median, each["p99_ms"], each["max_ms"], each["served_ms"])),
        bound(each),
    )


def bound(each: dict[str, Any]) -> str:
    """Return what may pass until a refusal, and whether it was kept; without a cache nothing may."""
    most = each["max_staleness_s"] * 1000 if each["cached"] else 0
    return f"{most:,.0f} {'EXCEEDED' if is_exceeded(each) else 'kept'}"


def is_exceeded(each: dict[str, Any]) -> bool:
    """Tell whether a session was served for longer than was promised, or was never refused."""
    if "unavailable" in each:
        return False
    return bool(each["never"]) or each["served_ms"] > (each["max_staleness_s"] * 1000 if each["cached"] else 0)


def _peers(found: dict[str, Any]) -> Section:
    if not found["peers"]:
        return Section((), ())
    pairs = found["peers"]["pairs"]
    head = ("Overhead over the bare application, us", "kept in", "read 2", "read 2, write 1", f"lost of {pairs} pairs")
    rows = [
        (each["name"], each["kept"] or "the same", spread(each["read"]), spread(each["write"]), f"{each['lost']:,}")
        for each in found["peers"]["results"]
    ]
    return Section(head, rows, found["peers"]["missing"])


def spread(figure: dict[str, Any]) -> str:
    """Return a median and, in brackets, the quartiles of the rounds."""
    return f"{number(figure['value'])} ({number(figure['low'])}-{number(figure['high'])})"


SECTIONS: Final[tuple[Callable[[dict[str, Any]], Section], ...]] = (_requests, _bytes, _lost, _revocation, _peers)


def broken_promises(found: dict[str, Any]) -> list[str]:
    """Return a sentence for each promise that did not hold."""
    lost = [f"{each['name']} lost {each['lost']} updates" for each in found["lost"] if each["lost"]]
    late = [
        f"{each['name']} served a session for longer than max_staleness after its revoke"
        for each in found["revocation"]
        if is_exceeded(each)
    ]
    ours = [each for each in (found["peers"] or {}).get("results", ()) if each["ours"]]
    return [*lost, *late, *(f"{each['name']} lost {each['lost']} updates" for each in ours if each["lost"])]
