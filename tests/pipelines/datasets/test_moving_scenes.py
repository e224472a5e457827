"""What a clip's caption says is what its frames show."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Visual
from pipelines.datasets import moving_scenes
from pipelines.datasets.demo.scenes import COLOURS, SHAPES
from pipelines.datasets.moving_scenes import ACTIONS, FRAMES, SIDE, MovingScene, prepare_moving_scenes
from pipelines.reading.media.decode import decode_media
from tests.pipelines.datasets.test_public_data import members
from tests.pipelines.datasets.test_writer import files

BLUE, WHITE = ("blue", "circle"), ("white", "square")
COUNTS = {"train": 12, "val": 3, "test": 4}


def clip(action: str, seed: int, other: tuple[str, str] | None = None) -> np.ndarray:
    return moving_scenes.render(MovingScene(*BLUE, action, other, "grey"), np.random.default_rng(seed))


def blue(frames: np.ndarray) -> np.ndarray:
    """Where the blue thing is, [T,H,W]."""
    pixels = frames.astype(int)
    return (pixels[..., 2] > 170) & (pixels[..., 0] < 90)


def centre(seen: np.ndarray) -> np.ndarray:
    """Mean (x, y) of each frame, NaN where there is nothing."""
    y, x = np.mgrid[:SIDE, :SIDE]
    area = seen.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.stack([(seen * x).sum((1, 2)) / area, (seen * y).sum((1, 2)) / area], axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("action", "axis", "sign"),
    [("moves left", 0, -1), ("moves right", 0, 1), ("moves up", 1, -1), ("moves down", 1, 1)],
)
def test_what_moves_goes_its_way_and_no_other(action: str, axis: int, sign: int, seed: int) -> None:
    place = centre(blue(clip(action, seed)))
    assert (np.diff(place[:, axis]) * sign > 0.5).all()
    assert abs(place[:, 1 - axis] - place[0, 1 - axis]).max() < 0.5
    assert abs(place[-1, axis] - place[0, axis]) > 25


@pytest.mark.parametrize("seed", range(5))
def test_what_grows_or_shrinks_stays_where_it_is(seed: int) -> None:
    for action, sign in (("grows", 1), ("shrinks", -1)):
        seen = blue(clip(action, seed))
        area = seen.sum((1, 2))
        assert (area[-1] - area[0]) * sign > 150
        assert (np.diff(area) * sign >= 0).all()
        assert abs(centre(seen) - centre(seen)[0]).max() < 1


@pytest.mark.parametrize("seed", range(5))
def test_what_appears_or_vanishes_does_it_once(seed: int) -> None:
    for action, ends in (("appears", (False, True)), ("vanishes", (True, False))):
        there = blue(clip(action, seed)).any((1, 2))
        assert (there[0], there[-1]) == ends
        assert np.abs(np.diff(there.astype(int))).sum() == 1
        assert 1 / 4 < there.mean() < 3 / 4


@pytest.mark.parametrize("seed", range(5))
def test_what_passes_behind_is_hidden_on_its_way(seed: int) -> None:
    area = blue(clip("passes behind", seed, WHITE)).sum((1, 2))
    assert area[0] > 0
    assert area[-1] > 0
    assert area[FRAMES // 2] < 0.4 * area.max()


def test_from_its_end_a_clip_is_one_of_the_other_action() -> None:
    """On average over many, in each pixel: nothing but the order of the frames tells them apart."""
    for action, other in ACTIONS.items():
        assert ACTIONS[other] == action
        means = [
            np.mean([blue(clip(name, seed, WHITE)).mean(0) for seed in range(60)], axis=0) for name in (action, other)
        ]
        assert np.abs(means[0] - means[1]).mean() < 0.03, action


def test_a_second_thing_stands_still_and_apart() -> None:
    for action in set(ACTIONS) - {"passes behind"}:
        frames = clip(action, 3, WHITE).astype(int)
        white = (frames > 215).all(-1)
        assert white[0].sum() > 30
        assert (white == white[0]).mean() > 0.99


def test_captions_are_different_and_true() -> None:
    rng = np.random.default_rng(0)
    alone = MovingScene("orange", "star", "moves left", None, "grey")
    said = {text for _ in range(50) for text in moving_scenes.captions(alone, rng)}
    assert said == {
        "an orange star moves left", "there is an orange star that moves left", "we see an orange star moving left",
        "an orange star moving left on a grey background",
    }  # fmt: skip
    behind = MovingScene("red", "circle", "passes behind", ("blue", "square"), "pink")
    for _ in range(20):
        texts = moving_scenes.captions(behind, rng)
        assert 3 <= len(texts) == len(set(texts)) <= 5
        assert all("a red circle" in text and "behind a blue square" in text for text in texts)
    near = MovingScene("red", "circle", "grows", ("blue", "square"), "pink")
    assert moving_scenes.captions(near, rng)[0] == "a red circle grows near a blue square"


def test_each_split_has_combinations_of_its_own_of_all_words() -> None:
    found = moving_scenes.split_combinations(0)
    every = [one for combinations in found.values() for one in combinations]
    assert len(every) == len(set(every)) == len(COLOURS) * len(SHAPES) * len(ACTIONS)
    for combinations in found.values():
        for position, words in enumerate((COLOURS, SHAPES, ACTIONS)):
            assert {one[position] for one in combinations} == set(words)
    sizes = Counter({split: len(combinations) for split, combinations in found.items()})
    assert sizes["train"] / sizes.total() == pytest.approx(0.6, abs=0.01)
    assert moving_scenes.split_combinations(1) != found


def test_clips_are_files_that_nights_read(tmp_path: Path) -> None:
    prepared = prepare_moving_scenes(str(tmp_path / "out"), 5, COUNTS, seed=0)
    assert prepared.splits == COUNTS
    assert prepared.in_train == {"val": 0, "test": 0}
    found = members(tmp_path / "out", "test")
    clips = [name for name in found if name.endswith(".mp4")]
    assert len(clips) == 4
    for name in clips:
        fields = json.loads(found[name.replace(".mp4", ".json")])
        assert f" {fields['label']}" in fields["captions"][0]
        frames = decode_media(found[name], "mp4", Visual(SIDE, SIDE, FRAMES)).array
        assert frames.shape == (FRAMES, SIDE, SIDE, 3)
        assert len(found[name]) < 40_000
    again = prepare_moving_scenes(str(tmp_path / "again"), 5, COUNTS, seed=0)
    assert again.bytes == prepared.bytes
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_no_split_is_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`val` is 0: it must be at least 1"):
        prepare_moving_scenes(str(tmp_path), 5, {**COUNTS, "val": 0}, seed=0)
