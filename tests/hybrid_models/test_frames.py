"""What Python programs hand over as frames."""

import numpy as np
import pytest
from PIL import Image

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.frames import frames_of
from hybrid_models.inputs import Visual

VISUAL = Visual(height=4, width=6, frames=2)


def test_photographs_and_clips_are_frames_of_the_wanted_size():
    colour = np.full((9, 9, 3), (10, 20, 30), np.uint8)
    for image in (colour, Image.fromarray(colour), Image.fromarray(colour).convert("RGBA")):
        frames = frames_of(image, VISUAL)
        assert frames.shape == (1, 4, 6, 3)
        assert (frames == (10, 20, 30)).all()
    clip = np.stack([np.full((8, 8, 3), t, np.uint8) for t in range(8)])
    assert [int(frame[0, 0, 0]) for frame in frames_of(clip, VISUAL)] == [2, 6], "the middles of two equal parts"


def test_a_clip_whose_rate_is_known_is_looked_at_by_time():
    """A hundred frames, each as bright as its second is late: so many a second, or as many as there may be."""
    clip = np.stack([np.full((8, 8, 3), number // 25, np.uint8) for number in range(100)])
    slow = Visual(height=4, width=6, frames=16, sampling="fps", fps=1.0)
    assert [int(frame[0, 0, 0]) for frame in frames_of(clip, slow, frame_rate=25)] == [0, 1, 2, 3]
    assert len(frames_of(clip, slow, frame_rate=50)) == 2, "it lasts two seconds"
    assert len(frames_of(clip, slow, frame_rate=1)) == 16, "at most"
    assert len(frames_of(clip, slow)) == 16, "no times"
    for rate in (25, 7.3):
        np.testing.assert_array_equal(frames_of(clip, VISUAL, rate), frames_of(clip, VISUAL))
    for rate in (0, -1, np.inf, np.nan):
        with pytest.raises(UsageError, match="it must be more than 0 frames a second"):
            frames_of(clip, slow, rate)


@pytest.mark.parametrize("bad", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)])
def test_what_is_neither_is_refused(bad):
    with pytest.raises(BadSample, match="is no uint8 image"):
        frames_of(bad, VISUAL)
