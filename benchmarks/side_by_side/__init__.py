"""Parts of index_search.py."""
