"""What several processes asked of a store and what they were told, and whether one honest store could have told it.

Every step has a beginning and an end by the monotonic clock, which all processes of a machine share. What was
acknowledged has happened in between; what failed may have happened at any time since its beginning, or never:

* a read that began after an acknowledged write had ended sees that write, or a later one, or none of the session;
* nobody reads what nobody had begun to write;
* increments that were acknowledged are all in the sum, and those that failed at most once each;
* a session is dead to whatever began after an acknowledged revocation had ended, and after it was first seen dead;
  a look may be as old as ``staleness`` where a process may answer from a copy, but never past its own revocation;
* a session dies only if somebody began to revoke it;
* a list has every session that was there all the while, and none that was dead before.

That is what linearizability says of registers with one writer, of counters and of sets that things only leave.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

OK: Final = "ok"
GONE: Final = "gone"
FAILED: Final = "failed"
"""The store did not answer: nobody knows whether it was done."""


class Step(NamedTuple):
    """One verb: by which process, on which session, with what, from when to when, and what came of it."""

    by: int
    verb: str
    handle: str
    value: Any
    began: float
    ended: float
    outcome: str


@dataclass
class _Session:
    """What is known of one session while its steps are gone through."""

    attempted: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    """For each writer: when a write began, and its number."""
    acknowledged: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    """For each writer: when an acknowledged write ended, and its number."""
    adds_begun: list[float] = field(default_factory=list)
    adds_done: list[float] = field(default_factory=list)
    revokes_begun: list[float] = field(default_factory=list)
    dead: list[tuple[float, int]] = field(default_factory=list)
    """When, and to whom, it was surely dead by an acknowledged revocation."""
    seen_dead: list[tuple[float, int]] = field(default_factory=list)
    created: float | None = None


def broken_promises(steps: Iterable[Step], staleness: float = 0.0) -> list[str]:
    """Return what no honest store could have told, in sentences."""
    ordered = sorted(steps, key=lambda step: step.began)
    sessions: dict[str, _Session] = defaultdict(_Session)
    for step in ordered:
        if step.verb != "list":
            _note(sessions[step.handle], step)
    wrong = [
        each for step in ordered if step.verb != "list" for each in _wrongs(sessions[step.handle], step, staleness)
    ]
    lists = [step for step in ordered if step.verb == "list" and step.outcome == OK]
    return wrong + [each for step in lists for each in _list_wrong(sessions, step)]


def _note(session: _Session, step: Step) -> None:
    if step.verb == "create" and step.outcome == OK:
        session.created = step.ended
    elif step.verb == "write":
        key, number = step.value
        session.attempted[key].append((step.began, number))
        if step.outcome == OK:
            insort(session.acknowledged[key], (step.ended, number))
    elif step.verb == "add":
        session.adds_begun.append(step.began)
        if step.outcome == OK:
            insort(session.adds_done, step.ended)
    elif step.verb == "revoke":
        session.revokes_begun.append(step.began)
        if step.outcome == OK:
            insort(session.dead, (step.ended, step.by))
    if step.outcome == GONE:
        insort(session.seen_dead, (step.ended, step.by))


def _wrongs(session: _Session, step: Step, staleness: float) -> Iterator[str]:
    if step.outcome == GONE:
        yield from _died_by_itself(session, step)
    if step.outcome != OK or step.verb in {"create", "revoke"}:
        return
    yield from _alive_after_death(session, step, staleness if step.verb == "read" else 0.0)
    if step.verb == "read":
        since = step.began - staleness
        yield from _writes_missing(session, step, since)
        yield from _sum_wrong(session, step, since)


def _died_by_itself(session: _Session, step: Step) -> Iterator[str]:
    if not session.revokes_begun or session.revokes_begun[0] > step.ended:
        yield f"{step} found a session dead that nobody had revoked: it was lost."


def _alive_after_death(session: _Session, step: Step, staleness: float) -> Iterator[str]:
    for ended, by in session.dead:
        if ended + (0.0 if by == step.by else staleness) < step.began:
            yield f"{step} was served although {by} had been told at {ended} that the session was revoked."
            return
    if not staleness and session.seen_dead and session.seen_dead[0][0] < step.began:
        yield f"{step} was served although {session.seen_dead[0]} had found the session dead."


def _writes_missing(session: _Session, step: Step, since: float) -> Iterator[str]:
    for key, acknowledged in session.acknowledged.items():
        behind = bisect_left(acknowledged, (since, -1))
        least = max((number for _, number in acknowledged[:behind]), default=0)
        if step.value.get(key, 0) < least:
            yield f"{step} misses write {least} of {key}, which had been acknowledged."
    for key, found in step.value.items():
        if key != "sum" and not any(n == found and began <= step.ended for began, n in session.attempted[key]):
            yield f"{step} has {found} under {key}, which nobody had begun to write."


def _sum_wrong(session: _Session, step: Step, since: float) -> Iterator[str]:
    found = step.value.get("sum", 0)
    least, most = bisect_left(session.adds_done, since), bisect_left(session.adds_begun, step.ended)
    if not least <= found <= most:
        yield f"{step} has a sum of {found}, and between {least} and {most} increments can be in it."


def _list_wrong(sessions: dict[str, _Session], step: Step) -> Iterator[str]:
    listed = set(step.value)
    if len(listed) < len(step.value):
        yield f"{step} has a session twice."
    for handle, session in sessions.items():
        if handle in listed:
            yield from _alive_after_death(session, step._replace(verb="list of", handle=handle, value=None), 0.0)
        elif _was_there_all_the_while(session, step):
            yield f"{step} misses {handle}, which was there all the while."


def _was_there_all_the_while(session: _Session, step: Step) -> bool:
    is_doubtful = session.revokes_begun and session.revokes_begun[0] <= step.ended
    return session.created is not None and session.created < step.began and not is_doubtful
