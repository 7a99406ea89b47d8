"""Pixels to tokens: the vision transformer, its folder on disk and the encoder around it."""
