r"""What a PostgresStore says to its server: every statement of the verbs.

``{s}`` is the schema, ``{columns}`` what ``record_of`` reads, ``{watched}`` whether somebody watches, which each
statement that changes a row answers in its second column.
"""

from typing import Final

from .connection import Statement
from .rows import COLUMNS

__all__ = ["EDITS", "Statements"]

EDITS: Final = 4
"""How many keys a plain UPDATE changes; for more, a loop in a function is faster."""

_NAMES: Final = (
    "handle, form, version, created, absolute, own, idle, seen, authenticated, grace, proof, previous, about, labels,"
    " fields, deadlines"
)
_ROW: Final = "text" + " bigint" * 9 + " bytea" * 6

_WATCHED: Final = "EXISTS (SELECT FROM {s}.watchers)"
_LABELLED: Final = "{s}.labels AS l(labelled, name, value, seq) JOIN {s}.sessions ON handle = labelled"

_LOAD: Final = "SELECT {columns} FROM {s}.sessions WHERE handle = $1"
_LOAD_MANY: Final = "SELECT {columns}, handle FROM {s}.sessions WHERE handle IN ({parameters})"
_FIND: Final = """SELECT {columns}, handle, seq FROM {labelled} WHERE name = $1 AND value = $2 AND seq > $3
    AND ends > $4 AND fields IS NOT NULL ORDER BY seq LIMIT $5"""
_COUNT: Final = "SELECT count(*) FROM {labelled} WHERE name = $1 AND value = ANY ($2) AND ends > $3"
_SCAN: Final = """SELECT {columns}, handle FROM {s}.sessions WHERE handle > $1 AND ends > $2 AND fields IS NOT NULL
    ORDER BY handle LIMIT $3"""
_PAGE: Final = "SELECT handle, seen FROM {s}.sessions WHERE handle > $1 ORDER BY handle LIMIT $2"

_CREATE: Final = "SELECT {s}.created({parameters}), {watched}"
_REVOKE: Final = "SELECT {s}.revoked($1), {watched}"
_APPLY: Final = "SELECT new_version, {watched}, sums FROM {s}.applied({parameters})"
_UPDATE: Final = r"""UPDATE {s}.sessions SET version = {version}, seen = greatest(seen, $4), own = coalesce($5, own),
    idle = coalesce($6, idle){sets} WHERE handle = $1 AND proof = $2 AND ends > $3 AND form = 1{is_fit}
    RETURNING version, {watched}"""
_SETS: Final = r""", fields = {fields}, deadlines = CASE WHEN deadlines IS NULL THEN NULL
    ELSE nullif({deadlines}, '\x09'::bytea) END"""
_FIT: Final = " AND length(fields) + coalesce(length(deadlines), 0) < $7"
_MET: Final = r""" AND CASE WHEN $10 IS NULL THEN position($8 in {fields}) = 0
    ELSE position('\x09'::bytea || $10 in {fields}) > 0 END"""
_FIELDS: Final = "CASE WHEN deadlines IS NULL THEN fields ELSE {s}.without(fields, {s}.expired(deadlines, $3)) END"
_DEADLINES: Final = "{s}.without(deadlines, {s}.expired(deadlines, $3))"

_DELETE: Final = "DELETE FROM {s}.sessions WHERE handle = $1"
_DELETE_SAME: Final = (
    _DELETE
    + " AND version = $2 AND absolute = $3 AND own = $4 AND idle = $5 AND proof = $6 RETURNING handle, {watched}"
)
# ARRAY(...) is evaluated once; what another sweep or a writer holds is left to it.
_SWEEP: Final = """DELETE FROM {s}.sessions WHERE handle = ANY (ARRAY(SELECT handle FROM {s}.sessions WHERE ends <= $1
    ORDER BY ends LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING handle, {watched}"""
_SWEEP_IDLE: Final = """DELETE FROM {s}.sessions WHERE handle = ANY (ARRAY(SELECT handle FROM {s}.sessions
    WHERE handle = ANY ($1) AND seen < $2 FOR UPDATE SKIP LOCKED)) RETURNING handle, {watched}"""
_RELABEL: Final = """SELECT last_seq, {watched}, told FROM {s}.relabelled({parameters})
    LEFT JOIN LATERAL unnest(handles) told ON true"""
_REVOKE_WHERE: Final = """SELECT last_seq, {watched}, told, ends FROM {s}.revoked_where($1, $2, $3, $4)
    LEFT JOIN LATERAL unnest(handles, ended) AS gone(told, ends) ON true"""

_REPLACE: Final = (
    "UPDATE {s}.sessions SET ({names}) = ROW ({parameters}) WHERE handle = $1 RETURNING version, {watched}"
)
_UNLABEL: Final = "DELETE FROM {s}.labels WHERE handle = $1 AND name = $2"
_LABEL: Final = "INSERT INTO {s}.labels (handle, name, value) VALUES ($1, $2, $3)"

_APPLIED: Final = (
    "text bytea" + " bigint" * 3 + " bytea[]" * 4 + " text[]" + " bytea[]" * 2 + " bigint" * 3
    + " bytea bigint bigint bytea[] bytea[] text[] text[] bigint[]"
)  # fmt: skip


class Statements:
    """Every statement of the verbs, for one schema; each is prepared when a connection first needs it."""

    def __init__(self, schema: str) -> None:
        """Write them down."""
        self._schema = f'"{schema}"'
        write = self._written
        self.load = write(_LOAD, "text")
        self.load_locked = write(_LOAD + " FOR NO KEY UPDATE", "text")
        self.touch = self._update("version", 0)
        self.data = [self._update("version + 1", count) for count in range(EDITS + 1)]
        self.exchange = self._exchange()
        self.apply = write(_APPLY, _APPLIED)
        self.create = write(_CREATE, _ROW + " bigint text[] text[] bigint[]")
        self.revoke = write(_REVOKE, "text")
        self.delete = write(_DELETE, "text")
        self.delete_same = write(_DELETE_SAME, "text bigint bigint bigint bigint bytea")
        self.find = write(_FIND, "text text bigint bigint bigint")
        self.count = write(_COUNT, "text text[] bigint")
        self.scan = write(_SCAN, "text bigint bigint")
        self.relabel = write(_RELABEL, "text text text bytea bytea bytea bigint bigint bigint bigint[]")
        self.revoke_where = write(_REVOKE_WHERE, "text text bigint bigint")
        self.sweep = write(_SWEEP, "bigint bigint")
        self.page = write(_PAGE, "text bigint")
        self.sweep_idle = write(_SWEEP_IDLE, "text[] bigint")
        self.replace = write(_REPLACE, _ROW, names=_NAMES)
        self.unlabel = write(_UNLABEL, "text text")
        self.label = write(_LABEL, "text text text")
        self.begin = Statement("BEGIN ISOLATION LEVEL READ COMMITTED")
        self.commit = Statement("COMMIT")
        self.lock = write("SELECT {s}.locked($1)", "bigint[]")
        self.durably = write("SELECT {s}.durably()", "")
        self.notify = Statement("SELECT pg_notify($1, told) FROM unnest($2) told", "text text[]")
        self._many: dict[int, Statement] = {}

    def load_many(self, size: int) -> Statement:
        """Return what loads so many records; each is a parameter, for an array would be planned anew every time."""
        statement = self._many.get(size)
        if statement is None:
            statement = self._many[size] = self._written(_LOAD_MANY, "text " * size)
        return statement

    def _update(self, version: str, edits: int) -> Statement:
        """Return the plain way of changing so many keys, or of moving deadlines alone."""
        if version == "version":
            return self._written(_UPDATE, "text bytea" + " bigint" * 4, version=version, sets="", is_fit="")
        fields, deadlines = _FIELDS.format(s=self._schema), _DEADLINES.format(s=self._schema)
        for place in range(8, 8 + 2 * edits, 2):
            fields = f"{self._schema}.edited({fields}, ${place}, ${place + 1})"
            deadlines = f"{self._schema}.edited({deadlines}, ${place}, '')"
        types = "text bytea" + " bigint" * 5 + " bytea" * (2 * edits)
        sets = _SETS.format(fields=fields, deadlines=deadlines)
        return self._written(_UPDATE, types, version=version, sets=sets, is_fit=_FIT)

    def _exchange(self) -> Statement:
        """Return the plain way of giving one key another content for the expected one, while its deadline stays."""
        fields, deadlines = _FIELDS.format(s=self._schema), _DEADLINES.format(s=self._schema)
        sets = _SETS.format(fields=f"{self._schema}.edited({fields}, $8, $9)", deadlines=deadlines)
        is_fit = _FIT + _MET.format(fields=fields)
        types = "text bytea" + " bigint" * 5 + " bytea" * 3
        return self._written(_UPDATE, types, version="version + 1", sets=sets, is_fit=is_fit)

    def _written(self, text: str, types: str, **more: str) -> Statement:
        parameters = ", ".join(f"${place}" for place in range(1, len(types.split()) + 1))
        watched = _WATCHED.format(s=self._schema)
        more |= {"labelled": _LABELLED.format(s=self._schema), "columns": COLUMNS, "parameters": parameters}
        sql = text.format(s=self._schema, watched=watched, **more)
        return Statement(sql, types)
