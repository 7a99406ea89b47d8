"""The packaged recipes: one YAML per runnable configuration, read as ``vitembed.configs``."""
