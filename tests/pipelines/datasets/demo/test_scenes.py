"""Captioned scenes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.demo.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    captions,
    film,
    random_scene,
    render,
    scene_rows,
    shot,
)


def centre_of(image: Image.Image, colour: str) -> tuple[float, float] | None:
    """Mean (x, y) of the pixels that are nearest to a colour."""
    pixels = np.asarray(image).astype(int)
    near = np.abs(pixels - COLOURS[colour]).max(axis=-1) < 45
    if near.sum() < 10:
        return None
    y, x = np.nonzero(near)
    return float(x.mean()), float(y.mean())


@pytest.mark.parametrize("relation", RELATIONS)
def test_pictures_show_what_captions_say(relation: str) -> None:
    scene = Scene((Thing("small", "red", "circle"), Thing("large", "blue", "star")), relation, "grey")
    for seed in range(20):
        image = render(scene, np.random.default_rng(seed))
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
        red, blue = centre_of(image, "red"), centre_of(image, "blue")
        assert red is not None
        assert blue is not None
        difference = {"above": blue[1] - red[1], "below": red[1] - blue[1]}
        difference |= {"to the left of": blue[0] - red[0], "to the right of": red[0] - blue[0]}
        assert difference[relation] == max(difference.values()) > 12


def test_what_is_said_of_a_scene_is_true_of_each_frame_of_its_shot() -> None:
    scene = Scene((Thing("small", "red", "circle"), Thing("large", "blue", "star")), "above", "grey")
    frames = shot(scene, 6, np.random.default_rng(3))
    assert (frames.shape, frames.dtype) == ((6, SIDE, SIDE, 3), np.uint8)
    places = []
    for frame in frames:
        red, blue = (centre_of(Image.fromarray(frame), colour) for colour in ("red", "blue"))
        assert red is not None
        assert blue is not None
        assert blue[1] - red[1] > 12
        places.append(red)
    steps = np.diff(places, axis=0)
    assert np.hypot(*steps.T).min() > 0.2
    assert np.allclose(steps, steps.mean(0), atol=0.7), "it moves evenly"


def test_a_film_is_one_shot_after_another() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(3)]
    drawn = film(scenes, 4, np.random.default_rng(1))
    assert drawn.shape == (12, SIDE, SIDE, 3)
    assert np.array_equal(drawn[:4], shot(scenes[0], 4, np.random.default_rng(1)))


@pytest.mark.parametrize("shape", SHAPES)
def test_large_things_are_larger_and_lie_within_the_picture(shape: str) -> None:
    areas = {}
    for size in ("small", "large"):
        image = np.asarray(render(Scene((Thing(size, "blue", shape),), "above", "brown"), np.random.default_rng(1)))
        blue = (image[..., 2].astype(int) - image[..., 0]) > 90
        areas[size] = blue.sum()
        assert not blue[[0, -1]].any()
        assert not blue[:, [0, -1]].any()
    assert areas["large"] > 1.8 * areas["small"] > 50


def test_captions_are_true_paraphrases() -> None:
    scene = Scene((Thing("large", "red", "circle"), Thing("small", "orange", "square")), "above", "turquoise")
    said = {caption for seed in range(40) for caption in captions(scene, np.random.default_rng(seed))}
    assert said == {
        "a large red circle above a small orange square",
        "a small orange square below a large red circle",
        "a large red circle is above a small orange square",
        "a red circle above an orange square on a turquoise background",
        "there is a large red circle above a small orange square",
    }


def test_scenes_have_two_to_five_different_captions() -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        scene = random_scene(rng)
        lines = captions(scene, rng)
        counts.add(len(lines))
        assert len(set(lines)) == len(lines)
        assert len({thing.colour for thing in scene.things}) == len(scene.things)
        assert all(scene.things[0].colour in line and scene.things[0].shape in line for line in lines)
    assert counts == {2, 3, 4, 5}


def test_rows_are_captioned_jpegs_that_depend_on_the_seed_alone() -> None:
    one, again = (list(scene_rows("s", 3, np.random.default_rng(4))) for _ in range(2))
    assert one == again
    key, members = one[2]
    assert key == "s-000002"
    assert Image.open(io.BytesIO(members["jpg"])).size == (SIDE, SIDE)
    assert len(json.loads(members["json"])["captions"]) >= 2
