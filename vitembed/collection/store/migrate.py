"""Catalogues of older formats to the present one, in one transaction: a kill leaves the old file as it was."""

from __future__ import annotations

import sqlite3

from vitembed.collection.store.checksums import ROW_COLUMNS, Totals, row_checksum, seal_meta, vector_checksum
from vitembed.collection.store.schema import FORMAT_VERSION, add_tables_of_3, create_tables, set_version
from vitembed.faults import about_to

_ROWS_AT_ONCE = 1_000


def migrate(connection: sqlite3.Connection) -> bool:
    """Bring an open file to ``FORMAT_VERSION``; False if another process has just done so.

    Raises:
        ValueError: If the file is of a format that never was.
        sqlite3.Error: As SQLite says, as where the file cannot be written; nothing has changed then.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version >= FORMAT_VERSION:
            connection.execute("ROLLBACK")
            return False
        if version == 1:
            _from_1(connection)
        elif version == 2:
            about_to("add the tables of format 3")
            add_tables_of_3(connection)
        else:
            raise ValueError(f"format {version}")
        seal_meta(connection)
        set_version(connection)
        about_to("commit the migration")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def _from_1(connection: sqlite3.Connection) -> None:
    """Format 1 had neither checksums nor a vector type (float16 it was), and no image sizes."""
    (last_id,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'files'").fetchone()
    connection.execute("DROP INDEX files_ok")
    for table in ("meta", "files", "vectors"):
        about_to(f"rename table {table}")
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    create_tables(connection)
    connection.execute("INSERT INTO meta SELECT * FROM old_meta")
    connection.execute("INSERT INTO meta VALUES ('vector_type', 'float16')")
    totals = Totals()
    rows = connection.execute(f"SELECT {ROW_COLUMNS}, added_at FROM old_files")
    while chunk := rows.fetchmany(_ROWS_AT_ONCE):
        about_to("write rows of the migration")
        sums = [row_checksum(row[:-1]) for row in chunk]
        for row, checksum in zip(chunk, sums, strict=True):
            totals.count(row[0], checksum, row[8] == "ok")
        connection.executemany(
            f"INSERT INTO files ({ROW_COLUMNS}, added_at, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row, checksum) for row, checksum in zip(chunk, sums, strict=True)],
        )
    vectors = connection.execute("SELECT id, vector FROM old_vectors")
    while chunk := vectors.fetchmany(_ROWS_AT_ONCE):
        about_to("write vectors of the migration")
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?, ?)", [(*row, vector_checksum(row[0], row[1])) for row in chunk]
        )
    totals.write(connection)
    for table in ("meta", "files", "vectors"):
        connection.execute(f"DROP TABLE old_{table}")
    # Ids are never given twice, also not those of rows that are gone.
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'files'")
    connection.execute("INSERT INTO sqlite_sequence VALUES ('files', ?)", (last_id or 0,))
