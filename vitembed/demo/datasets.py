"""The data sets that ``vitembed demo --dataset`` offers: the emoji that ship with the project, and larger ones."""

from __future__ import annotations

from vitembed.demo.emoji import EmojiData, emoji

__all__ = ["EmojiData", "emoji"]
