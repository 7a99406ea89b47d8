"""Parts of embed_speed.py."""
