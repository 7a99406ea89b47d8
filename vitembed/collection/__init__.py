"""Vectors at rest: the SQLite truth, the FAISS cache, search and its pictures."""
