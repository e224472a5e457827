"""Captioned scenes for the demo: coloured shapes on 64 x 64 pixels, described by a small grammar."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from pipelines.datasets.writer import TarRow, caption_row

SIDE = 64
ZOOM = 4
"""Drawn this much larger and then reduced, for smooth edges."""
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 212, 40),
    "orange": (245, 135, 30),
    "purple": (135, 50, 170),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
BACKGROUNDS = {"grey": (150, 150, 150), "brown": (120, 85, 60), "pink": (240, 180, 195), "turquoise": (110, 200, 195)}
SIZES = {"small": (6.0, 8.5), "large": (12.0, 14.5)}
"""Half the extent in pixels, from and to."""
RELATIONS = {
    "above": ("below", (0, -1)),
    "below": ("above", (0, 1)),
    "to the left of": ("to the right of", (-1, 0)),
    "to the right of": ("to the left of", (1, 0)),
}
"""Relation → (its inverse, direction (x, y) of the first thing seen from the second)."""
PAIR_SHARE = 0.7
"""Share of scenes with two things."""

Points = list[tuple[float, float]]


def _regular(corners: int, turn: float) -> Callable[[], Points]:
    def outline() -> Points:
        angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
        return [(math.sin(a), -math.cos(a)) for a in angles]

    return outline


def _star() -> Points:
    radii = (1.0, 0.42)
    return [(radii[i % 2] * math.sin(math.pi * i / 5), -radii[i % 2] * math.cos(math.pi * i / 5)) for i in range(10)]


def _cross() -> Points:
    quarter = [(-0.33, -1.0), (0.33, -1.0), (0.33, -0.33)]
    points: Points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


SHAPES: dict[str, Callable[[], Points]] = {
    "circle": _regular(48, 0),
    "square": _regular(4, math.pi / 4),
    "triangle": _regular(3, 0),
    "diamond": _regular(4, 0),
    "star": _star,
    "cross": _cross,
}
"""Shape → its outline about the origin, within the unit circle."""


@dataclass(frozen=True)
class Thing:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        """`a large red circle`"""
        return f"{article(self.size)} {self.size} {self.colour} {self.shape}"

    @property
    def short_phrase(self) -> str:
        """`a red circle`"""
        return f"{article(self.colour)} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two things on a background; with two, `relation` is that of the first to the second."""

    things: tuple[Thing, ...]
    relation: str
    background: str


def article(word: str) -> str:
    """`a` or `an`."""
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws what is in a scene, not yet where exactly. The colours of two things differ."""
    colours = rng.choice(list(COLOURS), 2, replace=False)
    things = tuple(
        Thing(str(rng.choice(list(SIZES))), str(colour), str(rng.choice(list(SHAPES)))) for colour in colours
    )
    relation = str(rng.choice(list(RELATIONS)))
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(things if rng.random() < PAIR_SHARE else things[:1], relation, background)


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Two to five different true sentences, the plainest one first."""
    ground = f"on {article(scene.background)} {scene.background} background"
    if len(scene.things) == 1:
        (thing,) = scene.things
        plain = f"{thing.phrase} {ground}"
        others = [
            f"there is {thing.phrase}",
            f"{thing.short_phrase} {ground}",
            thing.phrase,
            f"a picture of {thing.phrase}",
        ]
    else:
        first, second = scene.things
        inverse = RELATIONS[scene.relation][0]
        plain = f"{first.phrase} {scene.relation} {second.phrase}"
        others = [
            f"{second.phrase} {inverse} {first.phrase}",
            f"{first.phrase} is {scene.relation} {second.phrase}",
            f"{first.short_phrase} {scene.relation} {second.short_phrase} {ground}",
            f"there is {first.phrase} {scene.relation} {second.phrase}",
        ]
    count = int(rng.integers(1, len(others) + 1))
    return [plain, *(others[i] for i in sorted(rng.choice(len(others), count, replace=False)))]


@dataclass(frozen=True)
class Placed:
    """One thing as it is drawn: `pose` is its centre (x, y), radius in pixels and tilt in radians."""

    shape: str
    pose: np.ndarray
    colour: tuple[int, ...]


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB image of 64 x 64 pixels, with jitter in place, size, tilt and colour, and some noise."""
    backdrop = jittered(BACKGROUNDS[scene.background], rng)
    return Image.fromarray(_noisy(_drawn(backdrop, _placed(scene, rng)), rng))


def shot(scene: Scene, frames: int, rng: np.random.Generator) -> np.ndarray:
    """The scene filmed, uint8 `[frames, 64, 64, 3]`: its things move a little, and its captions stay true."""
    backdrop = jittered(BACKGROUNDS[scene.background], rng)
    first, last = list(_placed(scene, rng)), list(_placed(scene, rng))
    moves = [(a, b.pose - a.pose) for a, b in zip(first, last, strict=True)]
    poses = ([replace(thing, pose=thing.pose + time * move) for thing, move in moves]
             for time in np.linspace(0, 1, frames))  # fmt: skip
    return np.stack([_noisy(_drawn(backdrop, things), rng) for things in poses])


def _drawn(backdrop: tuple[int, ...], things: Iterable[Placed]) -> np.ndarray:
    """Float32 `[64, 64, 3]`, 0 … 255."""
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), backdrop)
    canvas = ImageDraw.Draw(image)
    for thing in things:
        x, y, radius, tilt = thing.pose
        cos, sin = math.cos(tilt) * radius, math.sin(tilt) * radius
        points = [
            (ZOOM * (x + px * cos - py * sin), ZOOM * (y + px * sin + py * cos)) for px, py in SHAPES[thing.shape]()
        ]
        canvas.polygon(points, fill=thing.colour)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def _noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (pixels + rng.normal(0, 4, pixels.shape)).round().clip(0, 255).astype(np.uint8)


def jittered(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, ...]:
    """A colour near this one."""
    return tuple(int(c) for c in (np.array(colour) + rng.integers(-12, 13, 3)).clip(0, 255))


def _placed(scene: Scene, rng: np.random.Generator) -> Iterator[Placed]:
    """The things where they might stand; two stand on either side of the middle and never overlap."""
    radii = [rng.uniform(*SIZES[thing.size]) for thing in scene.things]
    direction = np.array(RELATIONS[scene.relation][1])
    for thing, radius, side in zip(scene.things, radii, (direction, -direction), strict=False):
        if len(radii) == 1:
            x, y = rng.uniform(radius + 1, SIDE - radius - 1, 2)
        else:
            away = rng.uniform(radius + 0.5, SIDE / 2 - radius - 0.5)
            across = rng.uniform(-6, 6)
            x, y = SIDE / 2 + side * away + side[::-1] * across
        pose = np.array([x, y, radius, rng.uniform(-0.15, 0.15)])
        yield Placed(thing.shape, pose, jittered(COLOURS[thing.colour], rng))


def film(scenes: Iterable[Scene], frames: int, rng: np.random.Generator) -> np.ndarray:
    """Shots of these scenes one after another, `frames` of each, uint8 `[time, 64, 64, 3]`."""
    return np.concatenate([shot(scene, frames, rng) for scene in scenes])


def scene_rows(name: str, count: int, rng: np.random.Generator) -> Iterator[TarRow]:
    """`count` captioned JPEG images."""
    for number in range(count):
        scene = random_scene(rng)
        buffer = io.BytesIO()
        render(scene, rng).save(buffer, "JPEG", quality=92)
        yield caption_row(f"{name}-{number:06d}", buffer.getvalue(), captions(scene, rng))
