"""Self-critical training: captions that the model draws are rewarded by CIDEr-D, against the model's own usual reward.

Rennie et al. 2017, "Self-critical sequence training for image captioning", with the mean of the other drawn captions of
an image as the baseline instead of a greedy one (Luo 2020, "A better variant of self-critical sequence training").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import CiderD

DRAWN = 5
"""Captions drawn of each image."""
_STOP = "endofcaption"


def whole(text: str) -> str:
    """A caption that ends, with a last word that says so: what comes before it is compared too, so that to break off as
    in "a dog in the" does not pay."""
    return f"{text} {_STOP}"


def advantages(drawn: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """How much better each drawn caption is than the mean of the others of its image, in CIDEr-D: `[images, captions]`.

    Args:
        drawn: two or more captions of each image, as many of each.
        references: captions of each image. Document frequencies are those of these images.

    Raises:
        UsageError: one image alone, of which every word is in every document and worth nothing.
    """
    if len(references) < 2:
        raise UsageError("rewards compare images: raise train.batch_size to 2 or more for each worker")
    count = len(drawn[0])
    judge = CiderD(references)
    rewards = np.asarray([[judge.score(i, text) for text in texts] for i, texts in enumerate(drawn)])
    return np.asarray((rewards - rewards.mean(axis=1, keepdims=True)) * (count / (count - 1)))
