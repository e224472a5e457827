"""Bytes → arrays: photographs, clips, arrays and radar events, with limits, so that no input can exhaust a worker.

Whatever a decoder says about broken bytes becomes a `BadSample`: the row turns into an error row and the night goes on.
The one door to `reading.limits`, `reading.radar` and `reading.video`, too.
"""

from __future__ import annotations

import io
import math
import zipfile
from functools import cache
from typing import NamedTuple

import numpy as np
import pillow_heif
from PIL import AvifImagePlugin, Image, ImageOps
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Visual
from pipelines.reading.limits import DEFAULT_LIMITS, Limits, bad_sample, check_pixels, check_size
from pipelines.reading.media.clip import CLIP_FORMATS, Frames
from pipelines.reading.media.container import sniff_media_type, why_unreadable
from pipelines.reading.media.radar import RadarWindow, radar_windows
from pipelines.reading.media.video import decode_clip

__all__ = [
    "DEFAULT_LIMITS",
    "FRAMES",
    "MEDIA_TYPES",
    "Limits",
    "RadarWindow",
    "check_size",
    "decode_array",
    "decode_clip",
    "decode_image",
    "decode_media",
    "radar_windows",
    "sniff_media_type",
]

IMAGE_FORMATS = {
    "jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF",
    "tiff": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "heic": "HEIF", "heif": "HEIF",
}  # fmt: skip
"""Media type → Pillow's name. A photograph may be any of these whatever its name says, and nothing else: other
formats of Pillow start programs or are rarely fuzzed."""
NO_IMAGE = f"not a {', '.join(dict.fromkeys(IMAGE_FORMATS.values()))} image"
ARRAY_TYPES = ("npy", "npz")
MEDIA_TYPES = tuple(dict.fromkeys([*IMAGE_FORMATS, *CLIP_FORMATS, *ARRAY_TYPES]))
FRAMES = "frames"
"""Media type of what a reader has decoded itself, the windows of a clip (`pack_frames`). No file is called so."""


class Decoded(NamedTuple):
    """One media member of a sample."""

    array: np.ndarray
    """uint8 `[frames, height, width, 3]` RGB for a photograph (one frame) or a clip; `[time, height, width]` in its own
    number type for an array, or of one in colour the wanted frames, in its own size."""
    times: np.ndarray | None = None
    """Of a clip's frames, float32 `[frames]`: seconds from its first one."""


def decode_media(media: bytes, media_type: str, visual: Visual | None, limits: Limits = DEFAULT_LIMITS) -> Decoded:
    """Decodes one media member of a sample.

    Args:
        media: the member's bytes.
        media_type: its suffix, such as `jpg`.
        visual: the size wanted; None for a model that takes no photographs or clips.
        limits: what it may cost.

    Raises:
        BadSample: `UnsupportedMedia`, `MediaTooLarge`, `ImageDecodeError`, `ImageTooLarge`, `VideoDecodeError`,
            `VideoTooLarge`, `ArrayDecodeError` or `ArrayTooLarge`.
    """
    if media_type == FRAMES:
        return Decoded(**unpack_arrays(media))
    kind = media_type.lower().lstrip(".")
    if kind not in MEDIA_TYPES:
        raise BadSample("UnsupportedMedia", f"'{kind}' is none of {', '.join(MEDIA_TYPES)}")
    check_size(media, limits)
    if kind in ARRAY_TYPES:
        return Decoded(_wanted(decode_array(media, kind, limits), visual))
    if visual is None:
        raise BadSample("UnsupportedMedia", f"this model reads arrays ({', '.join(ARRAY_TYPES)}), not '{kind}'")
    if kind not in IMAGE_FORMATS or (kind == "gif" and _is_animated(media)):
        return Decoded(*decode_clip(media, kind, visual, limits))
    return Decoded(decode_image(media, visual, limits))


def _wanted(array: np.ndarray, visual: Visual | None) -> np.ndarray:
    """Of an array in colour the frames that are looked at. One of another size is refused by who reads it, and is not
    copied before; whoever looks at the first ones takes them itself."""
    if array.ndim == 3 or visual is None or visual.sampling == "first":
        return array
    if array.shape[1:3] != (visual.height, visual.width):
        return array
    return array[list(visual.positions(len(array)))]


def pack_frames(frames: Frames) -> bytes:
    """A window's frames as media of type `FRAMES`."""
    return pack_arrays({"array": np.ascontiguousarray(frames.pixels), "times": frames.times})


# ---- photographs ----------------------------------------------------------------------------------------------------
def decode_image(media: bytes, visual: Visual, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """A photograph → uint8 `[1, height, width, 3]` RGB: upright by its EXIF orientation, transparency over white.

    Raises:
        BadSample: `ImageDecodeError` or, before anything is decoded, `ImageTooLarge`.
    """
    with bad_sample("ImageDecodeError"), _open_image(media) as image:
        check_pixels(image.width, image.height, "ImageTooLarge", limits)
        side = max(visual.height, visual.width)
        image.draft(None, (side, side))  # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is still large enough
        image.load()
        upright = _to_rgb(_upright(image))
        resized = upright.resize((visual.width, visual.height), Image.Resampling.BICUBIC)
        return np.asarray(resized)[None]


def _open_image(media: bytes) -> Image.Image:
    """Reads the header only."""
    Image.MAX_IMAGE_PIXELS = None  # `check_pixels` judges, before anything is decoded
    _read_heif()
    try:
        return Image.open(io.BytesIO(media), formats=tuple(dict.fromkeys(IMAGE_FORMATS.values())))
    except Image.UnidentifiedImageError as error:
        found = sniff_media_type(media)
        if found in IMAGE_FORMATS:
            why = f"the {found} image is damaged or cut off"
        else:
            why = why_unreadable(io.BytesIO(media), "a photograph", NO_IMAGE)
        raise BadSample("ImageDecodeError", why) from error


@cache
def _read_heif() -> None:
    """Teaches Pillow HEIF: the image itself, never a thumbnail in its place, and by one thread."""
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; a photograph with a broken EXIF block is taken as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadSample("ImageDecodeError", "its pixels are fractions of no known range: save it in 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _is_animated(media: bytes) -> bool:
    with bad_sample("ImageDecodeError"), _open_image(media) as image:
        return bool(getattr(image, "is_animated", False))


# ---- arrays ---------------------------------------------------------------------------------------------------------
def decode_array(media: bytes, media_type: str, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """A NumPy file → `[time, height, width]`, boolean as uint8, or in colour uint8 `[time, height, width, 3]`.

    Nothing is unpickled.

    Raises:
        BadSample: `ArrayDecodeError` or `ArrayTooLarge`.
    """
    with bad_sample("ArrayDecodeError"):
        data = _only_member(media, limits) if media_type == "npz" else media
        array = _parse_npy(data)
        if array.dtype == bool:
            array = array.view(np.uint8)
        return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _only_member(media: bytes, limits: Limits) -> bytes:
    """The bytes of the one array in an npz file, never more than allowed."""
    with zipfile.ZipFile(io.BytesIO(media)) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise BadSample("ArrayDecodeError", f"an npz file must hold exactly one array, this holds {names[:5]}")
        with archive.open(names[0]) as member:
            data = member.read(limits.max_array_bytes + 1)
    if len(data) > limits.max_array_bytes:
        raise BadSample("ArrayTooLarge", f"the array has more than max_array_bytes={limits.max_array_bytes:,} bytes")
    return data


def _parse_npy(data: bytes) -> np.ndarray:
    """Reads the header, checks it against the bytes that are there, and only then makes a view of them.

    The format is that of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise BadSample("ArrayDecodeError", f"npy version {version} is not known")
    shape, fortran_order, dtype = readers[version](stream)
    if dtype.kind not in "buif":
        raise BadSample("ArrayDecodeError", f"an array of numbers is needed, this holds {dtype}")
    in_colour = len(shape) == 4 and shape[3] == 3 and dtype == np.uint8
    if not (len(shape) == 3 or in_colour) or min(shape) < 1:
        wanted = "an array [time, height, width] or, in colour, uint8 [time, height, width, 3]"
        raise BadSample("ArrayDecodeError", f"{wanted} is needed, this is {dtype} {list(shape)}")
    promised, present = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if promised != present:
        raise BadSample("ArrayDecodeError", f"shape {shape} needs {promised:,} bytes, the file holds {present:,}")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")
