"""Self-critical training: captions that the model draws are rewarded by CIDEr-D, against the model's own usual reward.

Rennie et al. 2017, "Self-critical sequence training for image captioning", with the mean of the other drawn captions of
an image as the baseline instead of a greedy one (Luo 2020, "A better variant of self-critical sequence training").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_models import metrics

DRAWN = 5
"""Captions drawn of each image."""
_STOP = "endofcaption"
"""Counted as a word, so that captions which break off miss it. Without it "a dog in the" pays."""


def advantages(drawn: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """How much better each drawn caption is than the mean of the others of its image, in CIDEr-D: `[images, captions]`.

    Args:
        drawn: two or more captions of each image, as many of each.
        references: captions of each image. Document frequencies are those of these images.
    """
    count = len(drawn[0])
    ended = [[f"{text} {_STOP}" for text in texts] for texts in references]
    columns = [[f"{texts[k]} {_STOP}" for texts in drawn] for k in range(count)]
    rewards = np.stack([metrics.cider_d_tally(texts, ended).parts[:, 0] for texts in columns], axis=1)
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (count / (count - 1))
