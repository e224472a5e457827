"""The special symbols with which every vocabulary begins: nothing, unknown, a text's start and its end."""

from __future__ import annotations

PAD, UNK, BOS, EOS = 0, 1, 2, 3
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
MIN_VOCABULARY = len(SPECIALS) + 256
"""Every vocabulary has the special symbols and all bytes."""
