"""Decoding of photographs, clips and arrays, honest and hostile; every file is made here."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Visual
from pipelines.reading.media.decode import IMAGE_FORMATS, MEDIA_TYPES, Limits, decode_media, sniff_media_type

VISUAL = Visual(height=24, width=32, frames=4)


def image_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    pillow_heif.register_heif_opener()  # which writes HEIF, too
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def suffix(kind: str) -> str:
    """A name's suffix that Pillow's name of a format has."""
    return next(each for each, name in IMAGE_FORMATS.items() if name == kind)


def halves(mode: str, left: object, right: object, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """An image whose left half has one colour and whose right half has another."""
    image = Image.new(mode, size, left)  # type: ignore[arg-type]
    image.paste(right, (size[0] // 2, 0, size[0], size[1]))  # type: ignore[arg-type]
    return image


def decode(media: bytes, kind: str, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 - immutable
    return decode_media(media, kind, VISUAL, limits).array


def kind_of(media: bytes, kind: str, limits: Limits = Limits()) -> str:  # noqa: B008 - immutable
    with pytest.raises(BadSample) as caught:
        decode(media, kind, limits)
    return caught.value.kind


def sides(pixels: np.ndarray) -> tuple[list[int], list[int]]:
    """The colours near the left and the right edge of a `[1, H, W, 3]` image."""
    return pixels[0, 12, 4].tolist(), pixels[0, 12, 27].tolist()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes of pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


# ---- photographs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", dict.fromkeys(IMAGE_FORMATS.values()))
def test_an_image_becomes_one_rgb_frame_of_the_asked_size(kind: str) -> None:
    image = halves("RGB", (200, 10, 20), (10, 180, 30))
    pixels = decode(image_bytes(image, kind, **({"lossless": True} if kind == "WEBP" else {})), suffix(kind))
    assert (pixels.shape, pixels.dtype) == ((1, 24, 32, 3), np.uint8)
    left, right = sides(pixels)
    np.testing.assert_allclose(left, (200, 10, 20), atol=4)
    np.testing.assert_allclose(right, (10, 180, 30), atol=4)


def test_an_image_is_told_by_its_content_not_its_name() -> None:
    png = image_bytes(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG")
    assert decode(png, "jpg")[0, 0, 0].tolist() == [1, 2, 3]
    assert decode(png, ".PNG")[0, 0, 0].tolist() == [1, 2, 3]


def test_draft_mode_gives_nearly_the_full_decode() -> None:
    y, x = np.mgrid[0:480, 0:640]
    smooth = np.stack([x * 255 / 639, y * 255 / 479, (x + y) * 255 / 1118], -1).astype(np.uint8)
    jpeg = image_bytes(Image.fromarray(smooth), "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(jpeg)).resize((32, 24), Image.Resampling.BICUBIC))
    assert np.abs(decode(jpeg, "jpg")[0].astype(int) - full).max() <= 6


def test_cmyk_and_16_bit_and_palette_images_keep_their_colours() -> None:
    cmyk = halves("RGB", (255, 0, 0), (0, 0, 255)).convert("CMYK")
    left, right = sides(decode(image_bytes(cmyk, "JPEG", quality=95), "jpg"))
    np.testing.assert_allclose([left, right], [(255, 0, 0), (0, 0, 255)], atol=12)

    deep = np.full((48, 64), 65535 // 4, np.uint16)
    deep[:, 32:] = 65535
    assert sides(decode(image_bytes(Image.fromarray(deep), "PNG"), "png")) == ([63] * 3, [255] * 3)

    palette = halves("RGB", (0, 0, 255), (255, 255, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert sides(decode(image_bytes(palette, "PNG"), "png")) == ([0, 0, 255], [255, 255, 0])

    bilevel = halves("1", 0, 1)
    assert sides(decode(image_bytes(bilevel, "PNG"), "png")) == ([0] * 3, [255] * 3)

    assert sides(decode(image_bytes(Image.fromarray(deep), "TIFF"), "tif")) == ([63] * 3, [255] * 3)
    left, right = sides(decode(image_bytes(cmyk, "TIFF", compression="tiff_lzw"), "tif"))
    np.testing.assert_allclose([left, right], [(255, 0, 0), (0, 0, 255)], atol=12)
    fractions = image_bytes(Image.fromarray(deep.astype(np.float32)), "TIFF")
    with pytest.raises(BadSample, match="ImageDecodeError: its pixels are fractions of no known range"):
        decode(fractions, "tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    image = halves("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)).convert(mode)
    assert sides(decode(image_bytes(image, "PNG"), "png")) == ([0] * 3, [255] * 3)


def test_exif_orientation_is_applied_and_broken_exif_ignored() -> None:
    image = halves("RGB", (255, 255, 255), (0, 0, 0), size=(64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held turned: the left half is the picture's upper half
    turned = decode(image_bytes(image, "JPEG", exif=exif), "jpg")
    assert turned[0, 4, 16].tolist() == [255] * 3
    assert turned[0, 19, 16].tolist() == [0] * 3
    for kind in ("HEIF", "AVIF"):
        turned = decode(image_bytes(image, kind, exif=exif.tobytes()), "heic")
        assert turned[0, 4, 16].mean() > 240 > 20 > turned[0, 19, 16].mean(), kind
    broken = image_bytes(image, "JPEG", exif=b"Exif\0\0nonsense that is no TIFF header")
    assert sides(decode(broken, "jpg")) == ([255] * 3, [0] * 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF"])
def test_truncated_images_are_bad_samples(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = image_bytes(noise, kind)
    for share in (0.02, 0.3, 0.7, 0.95):
        assert kind_of(whole[: int(len(whole) * share)], suffix(kind)) == "ImageDecodeError"


def test_bit_flips_never_raise_anything_but_bad_samples() -> None:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    bad = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        whole = image_bytes(noise, kind)
        for _ in range(60):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 4):
                damaged[position] ^= 1 << rng.integers(8)
            try:
                assert decode(bytes(damaged), kind.lower()).shape[1:] == (24, 32, 3)
            except BadSample:
                bad += 1
    assert bad > 60


@pytest.mark.parametrize("media", [b"", b"hello", b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_a_bad_sample(media: bytes) -> None:
    assert kind_of(media, "jpg") == "ImageDecodeError"


def test_a_bomb_is_refused_by_its_header() -> None:
    assert kind_of(png_of_size(10_000, 10_000), "png") == "ImageTooLarge"
    assert kind_of(png_of_size(60_000, 60_000), "png") == "ImageTooLarge"  # beyond Pillow's own limit
    allowed = Limits(max_pixels=4_000_000_000, max_memory=1 << 40)
    assert kind_of(png_of_size(60_000, 60_000), "png", allowed) != "ImageTooLarge", "as many as the user allows"
    assert kind_of(png_of_size(101, 100), "png", Limits(max_pixels=10_000)) == "ImageTooLarge"
    assert kind_of(png_of_size(100, 100), "png", Limits(max_pixels=10_000)) == "ImageDecodeError"
    small = Image.new("RGB", (64, 48))
    for kind, where in (("HEIF", b"ispe\0\0\0\0"), ("AVIF", b"ispe\0\0\0\0"), ("JPEG2000", b"ihdr")):
        whole = image_bytes(small, kind)
        at = whole.index(where) + len(where)
        claimed = whole[:at] + struct.pack(">II", 16_000, 16_000) + whole[at + 8 :]
        assert kind_of(claimed, "heic") in ("ImageTooLarge", "ImageDecodeError"), kind
        assert kind_of(whole, "heic", Limits(max_pixels=1000)) == "ImageTooLarge", kind


# ---- clips ----------------------------------------------------------------------------------------------------------
def clip_bytes(container: str, codec: str, greys: list[int], pix_fmt: str = "yuv420p", **options: str) -> bytes:
    """A clip of 48 x 64 frames, each of one grey."""
    buffer = io.BytesIO()
    write_clip(buffer, container, codec, greys, pix_fmt, **options)
    return buffer.getvalue()


def write_clip(
    target: io.BytesIO | str, container: str, codec: str, greys: list[int], pix_fmt: str = "yuv420p", **options: str
) -> None:
    with av.open(target, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.thread_count = 1
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=pix_fmt)))
        output.mux(stream.encode())


CLIPS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_is_sampled_in_the_middle_of_equal_parts(kind: str) -> None:
    greys = [20 + 10 * i for i in range(20)]
    pixels = decode(clip_bytes(*CLIPS[kind], greys), kind)
    assert (pixels.shape, pixels.dtype) == ((4, 24, 32, 3), np.uint8)
    expected = [greys[i] for i in (2, 7, 12, 17)]  # four parts of five frames
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), expected, atol=5)


def test_a_clip_with_fewer_frames_repeats_them() -> None:
    pixels = decode(clip_bytes("mp4", "libx264", [40, 200]), "mp4")
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), [40, 40, 200, 200], atol=4)


@pytest.mark.parametrize(("wanted", "found"), [(3, 3), (9, 5)])
def test_the_first_frames_of_a_clip_are_as_many_as_there_are(wanted: int, found: int) -> None:
    greys = [20, 60, 100, 140, 180]
    visual = Visual(24, 32, wanted, sampling="first")
    pixels = decode_media(clip_bytes("mp4", "libx264", greys), "mp4", visual).array
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), greys[:found], atol=5)


def test_a_stream_that_does_not_say_its_length_is_sampled_all_the_same() -> None:
    greys = [20 + 10 * i for i in range(20)]
    live = clip_bytes("matroska", "libx264", greys, live="1")
    with av.open(io.BytesIO(live), "r") as container:
        assert container.streams.video[0].frames == 0
        assert container.duration is None
    np.testing.assert_allclose(decode(live, "mkv").mean(axis=(1, 2, 3)), [40, 90, 140, 190], atol=5)


def test_an_animated_gif_is_a_clip_and_a_still_one_a_photograph() -> None:
    frames = [Image.new("RGB", (64, 48), (grey, grey, grey)) for grey in range(20, 220, 10)]
    animated = image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    np.testing.assert_allclose(decode(animated, "gif").mean(axis=(1, 2, 3)), [40, 90, 140, 190], atol=3)
    assert decode(image_bytes(frames[0], "GIF"), "gif").shape == (1, 24, 32, 3)


def test_the_cameras_rotation_is_applied() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_image(halves("RGB", (255, 255, 255), (0, 0, 0), size=(64, 64)))
        output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode())
    mp4 = bytearray(buffer.getvalue())
    matrix = mp4.index(b"tkhd") + 4 + 40
    quarter_turn_clockwise = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # ISO 14496-12, 8.3.2.3
    mp4[matrix : matrix + 36] = struct.pack(">9i", *quarter_turn_clockwise)
    pixels = decode(bytes(mp4), "mp4")
    assert pixels[0, 4].min() > 240  # the left half has become the upper one
    assert pixels[0, 19].max() < 15


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_a_truncated_mp4_is_a_bad_sample(share: float, movflags: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"  # with `faststart` the index comes first, so that the file opens all the same
    greys = np.random.default_rng(2).integers(0, 256, 40).tolist()
    write_clip(str(path), "mp4", "libx264", greys, **({"movflags": movflags} if movflags else {}))
    whole = path.read_bytes()
    assert len(decode(whole, "mp4")) == 4
    assert kind_of(whole[: int(len(whole) * share)], "mp4") == "VideoDecodeError"


@pytest.mark.parametrize("before", [b"\xec\x84abcd", b"\xec\x83\0\0\1", b"\xbf\x84\0\0\0\0\xec\x80"])
def test_padding_before_a_matroska_segment_says_nothing_of_its_length(before: bytes) -> None:
    whole = clip_bytes("matroska", "libx264", [40, 90, 140, 190])
    segment = whole.index(b"\x18\x53\x80\x67")
    assert len(decode(whole[:segment] + before + whole[segment:], "mkv")) == 4
    with pytest.raises(BadSample, match="VideoDecodeError: "):
        decode(whole[:segment] + before + whole[segment:-200], "mkv")


@pytest.mark.parametrize(
    ("size", "said"),
    [(b"\0" + b"\xff" * 8, "tells no length"), (b"\x10\xff", "cut off in its header"), (b"", "cut off")],
)
def test_a_matroska_header_that_is_garbled_is_said(size: bytes, said: str) -> None:
    with pytest.raises(BadSample, match=said):
        decode(b"\x1aE\xdf\xa3" + size, "mkv")


@pytest.mark.parametrize("kind", ["mov", "mkv", "webm", "avi"])
def test_other_truncated_clips_are_bad_samples(kind: str) -> None:
    whole = clip_bytes(*CLIPS[kind], np.random.default_rng(2).integers(0, 256, 40).tolist())
    for share in (0.001, 0.01, 0.3, 0.6, 0.9):
        assert kind_of(whole[: int(len(whole) * share)], kind) == "VideoDecodeError"


def test_damaged_clips_never_raise_anything_but_bad_samples() -> None:
    rng = np.random.default_rng(3)
    bad = 0
    for kind, made in CLIPS.items():
        whole = clip_bytes(*made, rng.integers(0, 256, 10).tolist())
        for _ in range(15):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 8):
                damaged[position] ^= 1 << rng.integers(8)
            try:
                assert decode(bytes(damaged), kind).shape == (4, 24, 32, 3)
            except BadSample:
                bad += 1
    assert bad > 15


def test_a_playlist_in_disguise_is_not_followed() -> None:
    assert kind_of(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "mp4") == "VideoDecodeError"


def test_clips_over_the_limits_are_bad_samples() -> None:
    clip = clip_bytes("mp4", "libx264", [0] * 11)
    assert kind_of(clip, "mp4", Limits(max_frames=10)) == "VideoTooLarge"
    assert kind_of(clip, "mp4", Limits(max_pixels=3000)) == "VideoTooLarge"
    assert kind_of(clip, "mp4", Limits(max_bytes=100)) == "MediaTooLarge"
    assert len(decode(clip, "mp4", Limits(max_frames=11, max_pixels=48 * 64))) == 4


def test_a_file_without_video_is_a_bad_sample() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    assert kind_of(buffer.getvalue(), "mp4") == "VideoDecodeError"


# ---- arrays ---------------------------------------------------------------------------------------------------------
def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "float16", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were(dtype: str, order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    packed = io.BytesIO()
    np.savez_compressed(packed, frames=array)
    for kind, media in (("npy", npy(array)), ("npz", packed.getvalue())):
        decoded = decode_media(media, kind, None).array
        np.testing.assert_array_equal(decoded, array)
        assert decoded.dtype == array.dtype.newbyteorder("=")
        assert decoded.flags.c_contiguous
        assert decoded.flags.writeable


def test_of_an_array_in_colour_the_wanted_frames_are_taken() -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_media(npy(array), "npy", None).array, array)
    np.testing.assert_array_equal(decode_media(npy(array), "npy", Visual(5, 4, 3)).array, array[[1, 4, 7]])
    for other in (Visual(8, 8, 3), Visual(5, 4, 3, sampling="first")):
        np.testing.assert_array_equal(decode_media(npy(array), "npy", other).array, array)
    np.testing.assert_array_equal(decode_media(npy(array[..., 0]), "npy", Visual(8, 8, 3)).array, array[..., 0])
    for other in (array.astype(np.float32), array.astype(bool), array[..., :2], array[None]):
        with pytest.raises(BadSample, match=r"ArrayDecodeError: an array \[time, height, width\] or, in colour, uint8"):
            decode_media(npy(other), "npy", None)


def test_truth_values_become_numbers() -> None:
    mask = np.array([[[True, False]]])
    decoded = decode_media(npy(mask), "npy", None).array
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [[[1, 0]]]


def test_an_array_header_that_lies_allocates_nothing() -> None:
    honest = npy(np.zeros((2, 3, 4), np.uint8))
    lies = ("(200000, 300000, 400000,)", "(2, 3, 5)", "(1, 1, 1)", "(2, -3, 4)", "(0, 3, 4)", "(2, 3)", "(9, 9, 9, 3)")
    for shape in lies:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        lying = honest[:8] + struct.pack("<H", len(header)) + header + honest[-24:]
        assert kind_of(lying, "npy") == "ArrayDecodeError"


class Trap:
    """Anything that unpickles this has run its code."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled() -> None:
    objects = np.empty((1, 1, 1), dtype=object)
    objects[0, 0, 0] = Trap()
    for media in (
        npy(objects),
        pickle.dumps(Trap()),
        npy(np.zeros((1, 1, 1), [("a", "u1")])),
        npy(np.array([[["x"]]])),
    ):
        assert kind_of(media, "npy") == "ArrayDecodeError"


def test_broken_and_oversized_npz_files_are_bad_samples() -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, zeros=np.zeros((100, 100, 100), np.uint8))
    assert len(packed.getvalue()) < 10_000
    assert kind_of(packed.getvalue(), "npz", Limits(max_array_bytes=100_000)) == "ArrayTooLarge"
    assert kind_of(packed.getvalue()[:200], "npz") == "ArrayDecodeError"
    two = io.BytesIO()
    np.savez(two, a=np.zeros((1, 1, 1)), b=np.zeros((1, 1, 1)))
    with pytest.raises(BadSample, match="exactly one array"):
        decode(two.getvalue(), "npz")
    none = io.BytesIO()
    zipfile.ZipFile(none, "w").close()
    assert kind_of(none.getvalue(), "npz") == "ArrayDecodeError"


# ---- dispatch -------------------------------------------------------------------------------------------------------
def test_unknown_types_and_models_without_pictures_say_what_they_take() -> None:
    with pytest.raises(BadSample, match="UnsupportedMedia: 'psd' is none of jpg, jpeg, png, webp, gif, bmp"):
        decode(b"", "psd")
    with pytest.raises(BadSample, match=r"UnsupportedMedia: this model reads arrays \(npy, npz\), not 'jpg'"):
        decode_media(b"", "jpg", None)


def test_media_are_recognised_by_their_first_bytes() -> None:
    image = Image.new("RGB", (8, 8))
    made = {
        kind: image_bytes(image, name) for kind, name in IMAGE_FORMATS.items() if kind not in ("jpeg", "tif", "heif")
    }
    made |= {kind: clip_bytes(*CLIPS[kind], [0]) for kind in ("mp4", "mkv", "avi")}
    packed = io.BytesIO()
    np.savez(packed, a=np.zeros((1, 1, 1)))
    made |= {"npy": npy(np.zeros((1, 1, 1))), "npz": packed.getvalue()}
    assert {kind: sniff_media_type(media) for kind, media in made.items()} == {kind: kind for kind in made}
    assert set(made) <= set(MEDIA_TYPES)
    assert sniff_media_type(b"plain text") == "unknown"
