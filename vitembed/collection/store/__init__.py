"""The file below the catalogue: connection, tables, versions, and the checksums that SQLite does not have."""
