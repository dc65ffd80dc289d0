r"""What a PostgresStore keeps in its database: the tables, the functions that change a row, and how they come there.

``create_schema()`` is the only thing that ever creates anything. It brings a schema to this release's version, step
by step, each in the one transaction, which others that call it wait for. Steps only add: a release that knows fewer
of them works beside one that knows more. So a function is never replaced by one that does something else; a later
step adds one of another name.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from ...errors import ConfigError

__all__ = ["STEPS", "admitted", "brought_up"]

_OURS: Final = ("steps.version", "sessions.proof", "labels.seq", "watchers.id")
"""What every version of the schema has, by which it is known."""

_CATALOGS: Final = (("pg_class", "relnamespace"), ("pg_proc", "pronamespace"), ("pg_type", "typnamespace"))
"""Where a schema's tables, functions and types are listed."""

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")

# A row stays where it is, uncompressed and on its page (HOT), while its deadlines do not move: hence the room, the
# storage and the target. Our clock alone decides what is live, so no function of the server's time occurs.
_TABLES: Final = (
    """CREATE TABLE {s}.sessions (
        handle text COLLATE "C" PRIMARY KEY,
        form bigint NOT NULL, version bigint NOT NULL, created bigint NOT NULL, absolute bigint NOT NULL,
        own bigint NOT NULL, idle bigint NOT NULL, seen bigint NOT NULL, authenticated bigint NOT NULL,
        grace bigint NOT NULL, proof bytea NOT NULL, previous bytea NOT NULL, about bytea NOT NULL,
        labels bytea, fields bytea, deadlines bytea,
        ends bigint NOT NULL GENERATED ALWAYS AS (least(absolute, own, idle)) STORED
    ) WITH (fillfactor = 70, toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05)""",
    "ALTER TABLE {s}.sessions ALTER fields SET STORAGE EXTERNAL",
    "CREATE INDEX sessions_ends ON {s}.sessions (ends)",
    "CREATE SEQUENCE {s}.labels_seq",
    # The foreign key removes labels with a look of its own, which sees what was committed while a DELETE waited.
    """CREATE TABLE {s}.labels (
        handle text COLLATE "C" NOT NULL REFERENCES {s}.sessions ON DELETE CASCADE,
        name text COLLATE "C" NOT NULL, value text COLLATE "C" NOT NULL,
        seq bigint NOT NULL DEFAULT nextval('{s}.labels_seq'),
        PRIMARY KEY (handle, name)
    ) WITH (autovacuum_vacuum_scale_factor = 0.05)""",
    "CREATE INDEX labels_value ON {s}.labels (name, value, seq) INCLUDE (handle)",
    # Who watches: the number is that of an advisory lock which the watcher's connection holds while it lives.
    "CREATE TABLE {s}.watchers (id bigint PRIMARY KEY)",
    "CREATE SEQUENCE {s}.watchers_id",
)

_EDITED: Final = r"""CREATE FUNCTION {s}.edited(packed bytea, marker bytea, entry bytea) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
-- Replaces the entry that begins with the marker, adds it if there is none, and removes it if the new one is empty.
DECLARE
    place int := position(marker in packed);
BEGIN
    IF place = 0 THEN
        RETURN packed || entry;
    END IF;
    RETURN substring(packed for place) || entry
        || substring(packed from place + 1 + position('\x09'::bytea in substring(packed from place + 1)));
END $$"""

_FOUND: Final = r"""CREATE FUNCTION {s}.found(packed bytea, marker bytea) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
-- Returns what stands behind the marker, or NULL.
DECLARE
    place int := position(marker in packed);
    rest bytea;
BEGIN
    IF place = 0 THEN
        RETURN NULL;
    END IF;
    rest := substring(packed from place + length(marker));
    RETURN convert_from(substring(rest for position('\x09'::bytea in rest) - 2), 'UTF8');
END $$"""

_EXPIRED: Final = r"""CREATE FUNCTION {s}.expired(deadlines bytea, now bigint) RETURNS bytea[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
-- Returns the markers of the keys whose time is over.
DECLARE
    entry text;
    deadline text;
    markers bytea[] := '{{}}';
BEGIN
    FOREACH entry IN ARRAY string_to_array(convert_from(deadlines, 'UTF8'), chr(9)) LOOP
        deadline := substring(entry from '(-?[0-9]+),$');
        IF deadline::numeric <= now THEN
            markers := markers || convert_to(chr(9) || left(entry, -length(deadline) - 1), 'UTF8');
        END IF;
    END LOOP;
    RETURN markers;
END $$"""

_WITHOUT: Final = r"""CREATE FUNCTION {s}.without(packed bytea, markers bytea[]) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
-- Removes the entries that begin with these.
DECLARE
    marker bytea;
BEGIN
    FOREACH marker IN ARRAY markers LOOP
        packed := {s}.edited(packed, marker, '');
    END LOOP;
    RETURN packed;
END $$"""

_LOCKED: Final = r"""CREATE FUNCTION {s}.locked(locks bigint[]) RETURNS void LANGUAGE plpgsql AS $$
-- Lets nobody else give the same labels until this transaction is over, so that their order is that of the numbers.
DECLARE
    one bigint;
BEGIN
    FOREACH one IN ARRAY locks LOOP
        PERFORM pg_advisory_xact_lock(one);
    END LOOP;
END $$"""

_DURABLY: Final = r"""CREATE FUNCTION {s}.durably() RETURNS void LANGUAGE plpgsql AS $$
-- Lets this transaction wait for the disk, if the server is told not to: what has ended must never come back.
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END $$"""

_CREATED: Final = r"""CREATE FUNCTION {s}.created(
    a_handle text, a_form bigint, a_version bigint, a_created bigint, a_absolute bigint, a_own bigint, a_idle bigint,
    a_seen bigint, a_authenticated bigint, a_grace bigint, a_proof bytea, a_previous bytea, a_about bytea,
    a_labels bytea, a_fields bytea, a_deadlines bytea, a_now bigint, names text[], label_values text[], locks bigint[]
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF locks <> '{{}}' THEN
        PERFORM {s}.locked(locks);
    END IF;
    LOOP
        INSERT INTO {s}.sessions VALUES (
            a_handle, a_form, a_version, a_created, a_absolute, a_own, a_idle, a_seen, a_authenticated, a_grace,
            a_proof, a_previous, a_about, a_labels, a_fields, a_deadlines
        ) ON CONFLICT (handle) DO NOTHING;
        EXIT WHEN FOUND;
        DELETE FROM {s}.sessions WHERE handle = a_handle AND ends <= a_now;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END LOOP;
    IF names <> '{{}}' THEN
        INSERT INTO {s}.labels (handle, name, value) SELECT a_handle, * FROM unnest(names, label_values);
    END IF;
    RETURN true;
END $$"""

# Whatever is not plainly right returns NULL and has changed nothing: Python looks then, and says what is wrong.
_APPLIED: Final = r"""CREATE FUNCTION {s}.applied(
    a_handle text, a_proof bytea, now bigint, largest bigint, step bigint,
    markers bytea[], entries bytea[], times bytea[],
    add_markers bytea[], adds text[], expected_markers bytea[], expected bytea[],
    a_seen bigint, a_own bigint, a_idle bigint, a_renewed bytea, a_grace bigint, a_authenticated bigint,
    label_markers bytea[], label_entries bytea[], names text[], label_values text[], locks bigint[],
    OUT new_version bigint, OUT sums text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    old {s}.sessions;
    kept bytea;
    lives bytea;
    marked bytea;
    over bytea[] := '{{}}';
    number numeric;
    content text;
BEGIN
    IF locks <> '{{}}' THEN
        PERFORM {s}.locked(locks);
    END IF;
    SELECT * INTO old FROM {s}.sessions
        WHERE handle = a_handle AND proof = a_proof AND ends > now AND form = 1 FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    kept := old.fields;
    lives := old.deadlines;
    marked := coalesce(old.labels, '\x09'::bytea);

    IF cardinality(markers) + cardinality(add_markers) + cardinality(expected_markers) > 0 THEN
        IF kept IS NULL THEN
            RETURN;
        END IF;
        IF lives IS NOT NULL THEN
            over := {s}.expired(lives, now);
            kept := {s}.without(kept, over);
            lives := {s}.without(lives, over);
        END IF;
        FOR i IN 1..cardinality(expected_markers) LOOP
            IF expected[i] IS NULL THEN
                IF position(expected_markers[i] in kept) > 0 THEN
                    RETURN;
                END IF;
            ELSIF position('\x09'::bytea || expected[i] in kept) = 0 THEN
                RETURN;
            END IF;
        END LOOP;
        FOR i IN 1..cardinality(markers) LOOP
            kept := {s}.edited(kept, markers[i], entries[i]);
            lives := {s}.edited(coalesce(lives, '\x09'::bytea), markers[i], times[i]);
        END LOOP;
        FOR i IN 1..cardinality(add_markers) LOOP
            content := coalesce({s}.found(kept, add_markers[i]), '0');
            IF content !~ '^(0|-?[1-9][0-9]{{0,19}})$' THEN
                RETURN;
            END IF;
            number := content::numeric;
            IF number NOT BETWEEN -9223372036854775808 AND 18446744073709551615 THEN
                RETURN;
            END IF;
            number := number + adds[i]::numeric;
            IF number NOT BETWEEN -9223372036854775808 AND 18446744073709551615 THEN
                RETURN;
            END IF;
            sums := concat_ws(',', sums, number::text);
            kept := {s}.edited(kept, add_markers[i], substring(add_markers[i] from 2)
                || convert_to(number::text || ',' || chr(9), 'UTF8'));
        END LOOP;
        IF length(kept) + coalesce(length(lives), 0) > largest THEN
            RETURN;
        END IF;
    END IF;

    FOR i IN 1..cardinality(names) LOOP
        IF label_entries[i] = '' OR position('\x09'::bytea || label_entries[i] in marked) = 0 THEN
            DELETE FROM {s}.labels WHERE handle = a_handle AND name = names[i];
            IF label_entries[i] <> '' THEN
                INSERT INTO {s}.labels (handle, name, value) VALUES (a_handle, names[i], label_values[i]);
            END IF;
        END IF;
        marked := {s}.edited(marked, label_markers[i], label_entries[i]);
    END LOOP;

    IF a_renewed IS NOT NULL THEN
        PERFORM {s}.durably();
    END IF;
    UPDATE {s}.sessions SET
        version = old.version + step,
        seen = greatest(old.seen, a_seen),
        own = coalesce(a_own, old.own),
        idle = coalesce(a_idle, old.idle),
        previous = CASE WHEN a_renewed IS NULL THEN old.previous ELSE old.proof END,
        grace = CASE WHEN a_renewed IS NULL THEN old.grace ELSE a_grace END,
        proof = coalesce(a_renewed, old.proof),
        authenticated = coalesce(a_authenticated, old.authenticated),
        labels = nullif(marked, '\x09'),
        fields = kept,
        deadlines = nullif(lives, '\x09')
        WHERE handle = a_handle;
    new_version := old.version + step;
END $$"""

_REVOKED: Final = r"""CREATE FUNCTION {s}.revoked(a_handle text) RETURNS bigint LANGUAGE plpgsql AS $$
-- Returns when the session would have ended, or NULL if there was none.
DECLARE
    ended bigint;
BEGIN
    PERFORM {s}.durably();
    DELETE FROM {s}.sessions WHERE handle = a_handle RETURNING ends INTO ended;
    RETURN ended;
END $$"""

# One batch of those that have a label: listed in the order of their numbers, locked in that of their handles, so that
# no two such functions wait for each other. What has lost the label while the locks were awaited is left alone.
_REVOKED_WHERE: Final = r"""CREATE FUNCTION {s}.revoked_where(
    a_name text, a_value text, after bigint, most bigint, OUT last_seq bigint, OUT handles text[], OUT ended bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    batch text[];
BEGIN
    PERFORM {s}.durably();
    SELECT array_agg(handle), CASE WHEN count(*) = most THEN max(seq) END INTO batch, last_seq FROM (
        SELECT handle, seq FROM {s}.labels WHERE name = a_name AND value = a_value AND seq > after
            ORDER BY seq LIMIT most
    ) listed;
    PERFORM 1 FROM {s}.sessions WHERE handle = ANY (batch) ORDER BY handle FOR UPDATE;
    WITH gone AS (
        DELETE FROM {s}.sessions s USING {s}.labels l
            WHERE s.handle = ANY (batch) AND l.handle = s.handle AND l.name = a_name AND l.value = a_value
            RETURNING s.handle, s.ends
    ) SELECT array_agg(handle), array_agg(ends) INTO handles, ended FROM gone;
END $$"""

_RELABELLED: Final = r"""CREATE FUNCTION {s}.relabelled(
    a_name text, old_value text, new_value text, a_marker bytea, old_entry bytea, new_entry bytea,
    now bigint, after bigint, most bigint, locks bigint[], OUT last_seq bigint, OUT handles text[]
) LANGUAGE plpgsql AS $$
DECLARE
    batch text[];
BEGIN
    PERFORM {s}.locked(locks);
    SELECT array_agg(handle), CASE WHEN count(*) = most THEN max(seq) END INTO batch, last_seq FROM (
        SELECT handle, seq FROM {s}.labels WHERE name = a_name AND value = old_value AND seq > after
            ORDER BY seq LIMIT most
    ) listed;
    PERFORM 1 FROM {s}.sessions WHERE handle = ANY (batch) ORDER BY handle FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM {s}.sessions WHERE handle = ANY (batch) AND ends > now AND form > 1) THEN
        RAISE 'A record has a format that a newer release wrote.' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    WITH moved AS (
        UPDATE {s}.sessions SET
            version = version + 1, seen = greatest(seen, now), labels = {s}.edited(labels, a_marker, new_entry)
            WHERE handle = ANY (batch) AND ends > now AND position('\x09'::bytea || old_entry in labels) > 0
            RETURNING handle
    ) SELECT array_agg(handle) INTO handles FROM moved;
    IF new_value <> old_value THEN
        WITH gone AS (
            DELETE FROM {s}.labels WHERE handle = ANY (handles) AND name = a_name RETURNING handle, seq
        ) SELECT array_agg(handle ORDER BY seq) INTO batch FROM gone;
        INSERT INTO {s}.labels (handle, name, value) SELECT each, a_name, new_value FROM unnest(batch) each;
    END IF;
END $$"""

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        *_TABLES, _EDITED, _FOUND, _EXPIRED, _WITHOUT, _LOCKED, _DURABLY, _CREATED, _APPLIED, _REVOKED,
        _REVOKED_WHERE, _RELABELLED,
    ),
)  # fmt: skip
"""What leads from each version of the schema to the next. A release may add steps, and never changes one."""

Execute = Callable[..., Any]


def admitted(schema: str) -> str:
    """Return the name of a schema; raise ConfigError for one that would have to be quoted."""
    if not isinstance(schema, str) or not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigError(
            f"A schema is named with lower-case letters, digits and underscores, at most 48 of them, not {schema!r}."
        )
    return schema


def brought_up(execute: Execute, schema: str) -> None:
    """Bring the schema to this release's version, in the transaction that ``execute`` runs in.

    A schema of a newer release stays as it is. Raises ConfigError for a schema that holds something else, and for a
    database in another encoding than UTF-8.
    """
    [(encoding,)] = execute("SELECT current_setting('server_encoding')").fetchall()
    if encoding != "UTF8":
        raise ConfigError(f"The database has the encoding {encoding}: create one with ENCODING 'UTF8'.")
    execute("SELECT pg_advisory_xact_lock(hashtextextended('sessiontree schema ' || %s, 0))", [schema])
    [(known,)] = execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [schema]).fetchall()
    if not known:
        execute(f'CREATE SCHEMA "{schema}"')
    [(versioned,)] = execute(
        "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename = 'steps'", [schema]
    ).fetchall()
    if versioned:
        _check_ours(execute, schema)
    else:
        _check_empty(execute, schema)
        execute(f'CREATE TABLE "{schema}".steps (version int PRIMARY KEY)')
    [(version,)] = execute(f'SELECT coalesce(max(version), 0) FROM "{schema}".steps').fetchall()  # noqa: S608 - admitted
    for number, step in enumerate(STEPS[version:], version + 1):
        for statement in step:
            execute(statement.format(s=f'"{schema}"'))
        execute(f'INSERT INTO "{schema}".steps VALUES (%s)', [number])  # noqa: S608 - as above


def _check_empty(execute: Execute, schema: str) -> None:
    counts = " + ".join(f"(SELECT count(*) FROM {name} WHERE {of} = %(s)s::regnamespace)" for name, of in _CATALOGS)  # noqa: S608 - names of ours
    [(others,)] = execute(f"SELECT {counts}", {"s": schema}).fetchall()
    if others:
        raise _not_ours(schema)


def _check_ours(execute: Execute, schema: str) -> None:
    """Refuse what merely has a table of the same name."""
    [(found,)] = execute(
        "SELECT count(*) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
        " WHERE relnamespace = %s::regnamespace AND relname || '.' || attname = ANY (%s)",
        [schema, list(_OURS)],
    ).fetchall()
    if found != len(_OURS):
        raise _not_ours(schema)


def _not_ours(schema: str) -> ConfigError:
    return ConfigError(f"The schema {schema!r} holds something else: choose another one.")
