"""Moving scenes: clips in which a coloured shape does something, captioned. What it does is in the order of the frames.

Each action has another that is the same clip from its end: whoever averages frames, looks at one, or at shuffled ones
can tell a thing's shape and colour, and guesses between *moves left* and *moves right*; `passes behind` alone is seen
without order. No combination of colour, shape and action of the test split is in another one.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image, ImageDraw

from hybrid_models.errors import UsageError
from pipelines.datasets.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, article, jittered
from pipelines.datasets.writer import DatasetWriter, Prepared, TarRow, caption_row

SIDE, FRAMES, RATE = 64, 24, 12
"""Pixels of a side, frames of a clip, frames a second."""
ZOOM = 3
"""Drawn this much larger and then reduced, for smooth edges."""
ACTIONS = {
    "moves left": "moves right",
    "moves right": "moves left",
    "moves up": "moves down",
    "moves down": "moves up",
    "grows": "shrinks",
    "shrinks": "grows",
    "appears": "vanishes",
    "vanishes": "appears",
    "passes behind": "passes behind",
}
"""Action → what the clip shows from its end."""
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
SECOND_SHARE = 0.5
"""Share of clips with a second thing, which stands still, besides those in which something passes behind one."""
PARTS = {"test": 5, "val": 5}
"""One in so many combinations of colour, shape and action is of the split."""
Combination = tuple[str, str, str]
"""Colour, shape, action."""


@dataclass(frozen=True)
class MovingScene:
    """What a clip shows: what acts, and how (one of `ACTIONS`); and the colour and shape of what stands still."""

    colour: str
    shape: str
    action: str
    other: tuple[str, str] | None
    background: str


def prepare_moving_scenes(out: str, rows_per_shard: int, counts: dict[str, int], seed: int) -> Prepared:
    """Renders the clips as mp4, with captions and the action as `label`.

    Raises:
        UsageError: a count is not positive.
    """
    for split, count in counts.items():
        if count < 1:
            raise UsageError(f"`{split}` is {count}: it must be at least 1")
    writer = DatasetWriter(out, "moving-scenes", rows_per_shard, {**counts, "seed": seed})
    for number, (split, combinations) in enumerate(split_combinations(seed).items()):
        rng = np.random.default_rng([seed, 7, number])
        writer.write_tar(split, clip_rows(split, combinations, counts[split], rng))
    return writer.finish()


def split_combinations(seed: int) -> dict[str, list[Combination]]:
    """Split → the combinations of its clips; each colour, shape and action is in every split."""
    every = list(itertools.product(COLOURS, SHAPES, ACTIONS))
    drawn = [every[i] for i in np.random.default_rng([seed, 7]).permutation(len(every))]
    found: dict[str, list[Combination]] = {"train": [], "val": [], "test": []}
    for number, combination in enumerate(drawn):
        split = "test" if number % PARTS["test"] == 0 else "val" if number % PARTS["val"] == 1 else "train"
        found[split].append(combination)
    return found


def clip_rows(split: str, combinations: list[Combination], count: int, rng: np.random.Generator) -> Iterator[TarRow]:
    """`count` captioned clips."""
    for number in range(count):
        scene = random_scene(combinations[int(rng.integers(len(combinations)))], rng)
        mp4 = encode(render(scene, rng))
        yield caption_row(f"{split}-{number:06d}", mp4, captions(scene, rng), "mp4", label=scene.action)


def random_scene(combination: Combination, rng: np.random.Generator) -> MovingScene:
    """Draws what else is in a clip; what stands still has another colour."""
    colour, shape, action = combination
    others = [name for name in COLOURS if name != colour]
    other = (str(rng.choice(others)), str(rng.choice(list(SHAPES))))
    needed = action == "passes behind" or rng.random() < SECOND_SHARE
    return MovingScene(colour, shape, action, other if needed else None, str(rng.choice(list(BACKGROUNDS))))


def captions(scene: MovingScene, rng: np.random.Generator) -> list[str]:
    """Three to five different true sentences, the plainest one first."""
    thing = f"{article(scene.colour)} {scene.colour} {scene.shape}"
    does, doing = scene.action, _ing(scene.action)
    if scene.other is None:
        aside, object_ = "", ""
    else:
        other = f"{article(scene.other[0])} {scene.other[0]} {scene.other[1]}"
        aside, object_ = (f" {other}", f" {other}") if does == "passes behind" else (f" near {other}", "")
    plain = f"{thing} {does}{aside}"
    others = [
        f"{thing} {does}{object_}",
        f"there is {thing} that {does}{object_}",
        f"{thing} {doing}{aside} on {article(scene.background)} {scene.background} background",
        f"we see {thing} {doing}{object_}",
    ]
    different = [text for text in dict.fromkeys(others) if text != plain]
    chosen = sorted(rng.choice(len(different), int(rng.integers(2, len(different) + 1)), replace=False))
    return [plain, *(different[i] for i in chosen)]


def _ing(action: str) -> str:
    verb, _, rest = action.partition(" ")
    stem = {"moves": "moving", "grows": "growing", "shrinks": "shrinking", "appears": "appearing"}.get(verb)
    stem = stem or {"vanishes": "vanishing", "passes": "passing"}[verb]
    return f"{stem} {rest}".strip()


def render(scene: MovingScene, rng: np.random.Generator) -> np.ndarray:
    """The clip, uint8 `[FRAMES, SIDE, SIDE, 3]`, with jitter in place, size and colour."""
    centres, radii = _course(scene.action, rng)
    still = _still(centres, radii, scene.action, rng)
    backdrop, colour = (jittered(table[name], rng) for table, name in
                        ((BACKGROUNDS, scene.background), (COLOURS, scene.colour)))  # fmt: skip
    other = None if scene.other is None else (jittered(COLOURS[scene.other[0]], rng), scene.other[1])
    frames = []
    for centre, radius in zip(centres, radii, strict=True):
        image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), backdrop)
        canvas = ImageDraw.Draw(image)
        if radius > 0:
            _draw(canvas, scene.shape, centre, radius, colour)
        if other is not None:  # in front of what passes behind it
            _draw(canvas, other[1], still[:2], still[2], other[0])
        frames.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(frames)


def _course(action: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centre [FRAMES,2] (x, y) and radius [FRAMES] of what acts, 0 where it is not there. From its end, a course is one
    of the other action, as likely."""
    time = np.linspace(0, 1, FRAMES)
    radius = float(rng.uniform(7, 10))
    radii = np.full(FRAMES, radius)
    centres = np.tile(rng.uniform(radius + 6, SIDE - radius - 6, 2), (FRAMES, 1))
    if action in DIRECTIONS or action == "passes behind":
        direction = DIRECTIONS.get(action) or ((1, 0), (-1, 0))[int(rng.integers(2))]
        length = float(rng.uniform(26, 34))
        room = SIDE - 2 * radius - length - 2
        low = radius + 1 + float(rng.uniform(0, room))
        along = low + length * (time if sum(direction) > 0 else time[::-1])
        centres[:, 0 if direction[0] else 1] = along
    elif action in ("grows", "shrinks"):
        sizes = np.linspace(float(rng.uniform(4, 5.5)), float(rng.uniform(11, 13)), FRAMES)
        radii = sizes if action == "grows" else sizes[::-1]
    else:
        when = int(rng.integers(FRAMES // 3, FRAMES - FRAMES // 3 + 1))
        there = np.arange(FRAMES) >= when if action == "appears" else np.arange(FRAMES) < FRAMES - when
        radii = np.where(there, radius, 0.0)
    return centres, radii


def _still(centres: np.ndarray, radii: np.ndarray, action: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Centre (x, y) and radius of what stands still: amid the course of what passes behind it, else away from it."""
    if action == "passes behind":
        middle = centres[FRAMES // 2]
        return float(middle[0]), float(middle[1]), float(rng.uniform(1.15, 1.35) * radii.max())
    radius = float(rng.uniform(5, 7))
    for _ in range(200):
        place = rng.uniform(radius + 1, SIDE - radius - 1, 2)
        if (np.hypot(*(centres - place).T) > radii + radius + 1).all():
            return float(place[0]), float(place[1]), radius
    corner = max(itertools.product((radius + 1, SIDE - radius - 1), repeat=2),
                 key=lambda place: np.hypot(*(centres - place).T).min())  # fmt: skip
    return corner[0], corner[1], radius


def _draw(canvas: ImageDraw.ImageDraw, shape: str, centre: np.ndarray | tuple[float, float], radius: float,
          colour: tuple[int, ...]) -> None:  # fmt: skip
    points = [(ZOOM * (centre[0] + x * radius), ZOOM * (centre[1] + y * radius)) for x, y in SHAPES[shape]()]
    canvas.polygon(points, fill=colour)


def encode(frames: np.ndarray) -> bytes:
    """An mp4 file (H.264, 4:2:0) of frames uint8 [T,H,W,3]; the same frames give the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        # Without a look ahead: with one, x264 gave other bytes now and then, seen in one of 20 clips ("veryfast").
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
        output.mux(stream.encode())
    return buffer.getvalue()
