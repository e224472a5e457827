"""What Python programs hand over as frames."""

import numpy as np
import pytest
from PIL import Image

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Visual
from hybrid_models.visual import frames_of

VISUAL = Visual(height=4, width=6, frames=2)


def test_photographs_and_clips_are_frames_of_the_wanted_size():
    colour = np.full((9, 9, 3), (10, 20, 30), np.uint8)
    for image in (colour, Image.fromarray(colour), Image.fromarray(colour).convert("RGBA")):
        frames = frames_of(image, VISUAL)
        assert frames.shape == (1, 4, 6, 3)
        assert (frames == (10, 20, 30)).all()
    clip = np.stack([np.full((8, 8, 3), t, np.uint8) for t in range(8)])
    assert [int(frame[0, 0, 0]) for frame in frames_of(clip, VISUAL)] == [2, 6], "the middles of two equal parts"


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)])
def test_what_is_neither_is_refused(bad):
    with pytest.raises(BadSample, match="is no uint8 image"):
        frames_of(bad, VISUAL)
