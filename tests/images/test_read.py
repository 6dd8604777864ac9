"""Images come in with their own depth and channels, and every broken file gives one line that names it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from effdet_tf.errors import UserError
from effdet_tf.images import gray as gray_values
from effdet_tf.images import read as image_io
from effdet_tf.images.read import Stack, encode_png, read_image

GRAY8 = np.arange(63, dtype=np.uint8).reshape(7, 9) * 4
GRAY16 = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
RGB8 = np.stack([GRAY8, 255 - GRAY8, GRAY8 // 2], axis=-1)
RGB16 = np.stack([GRAY16, 65535 - GRAY16, GRAY16 // 2], axis=-1)


def _save(path: Path, image: np.ndarray, **options: object) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, image, **options)
    else:
        Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("image", [GRAY8, GRAY16, RGB8], ids=["gray8", "gray16", "rgb8"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_lossless_files_are_read_exactly(tmp_path: Path, image: np.ndarray, suffix: str) -> None:
    read = image_io.read_image(_save(tmp_path / f"a{suffix}", image))
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read, image.reshape(7, 9, -1))


def test_sixteen_bit_colour_keeps_all_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RGB16[..., ::-1])
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "a.png"), RGB16)
    alpha = np.concatenate([RGB16, np.full((7, 9, 1), 9, np.uint16)], axis=-1)
    cv2.imwrite(str(tmp_path / "b.png"), alpha[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "b.png"), RGB16)
    np.testing.assert_array_equal(image_io.read_image(_save(tmp_path / "c.tif", RGB16)), RGB16)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([RGB8, np.full((7, 9), 3, np.uint8)])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(image_io.read_image(_save(tmp_path / name, rgba)), RGB8)
    Image.fromarray(np.dstack([GRAY8, GRAY8 // 3]), mode="LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "la.png"), GRAY8[..., None])


def test_palette_is_expanded_for_images_and_kept_for_labels(tmp_path: Path) -> None:
    indices = (GRAY8 // 64).astype(np.uint8)
    colours = np.uint8([[0, 0, 0], [10, 200, 30], [250, 1, 2], [7, 8, 9]])
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "p.png")
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, :4] = colours.T.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "p.tif", indices, photometric="palette", colormap=colormap)
    for name in ("p.png", "p.tif"):
        np.testing.assert_array_equal(image_io.read_image(tmp_path / name), colours[indices])
        np.testing.assert_array_equal(image_io.read_labels(tmp_path / name), indices)


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    mask = GRAY8 > 99
    Image.fromarray(mask).save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "b.tif", mask, photometric="minisblack")
    for name in ("b.png", "b.tif"):
        np.testing.assert_array_equal(image_io.read_image(tmp_path / name)[..., 0], mask * np.uint8(255))
        np.testing.assert_array_equal(image_io.read_labels(tmp_path / name), mask)


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    _save(tmp_path / "w.tif", GRAY8, photometric="miniswhite")
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "w.tif")[..., 0], 255 - GRAY8)


@pytest.mark.parametrize("codec", ["lzw", "zlib", "zstd", "packbits", "lzma", "png", "jpeg2000"])
def test_compressed_tifs_are_read(tmp_path: Path, codec: str) -> None:
    image = np.kron(GRAY8, np.ones((8, 8), np.uint8))
    read = image_io.read_image(_save(tmp_path / "c.tif", image, compression=codec))
    np.testing.assert_array_equal(read[..., 0], image)


def test_planar_and_big_endian_tifs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", np.moveaxis(RGB8, -1, 0), planarconfig="separate", photometric="rgb")
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "p.tif"), RGB8)
    tifffile.imwrite(tmp_path / "e.tif", GRAY16, byteorder=">")
    read = image_io.read_image(tmp_path / "e.tif")
    assert read.dtype == np.dtype("uint16")
    np.testing.assert_array_equal(read[..., 0], GRAY16)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (GRAY8.astype(np.float64) / 7, np.float32),
        (GRAY8.astype(np.float16), np.float32),
        (GRAY16.astype(np.int32), np.uint16),
        (GRAY16.astype(np.uint32), np.uint16),
        (GRAY8.astype(np.int16) - 5, np.float32),
        (GRAY16.astype(np.uint32) * 1000, np.float32),
    ],
)
def test_other_number_types_keep_their_values(tmp_path: Path, stored: np.ndarray, expected: type) -> None:
    read = image_io.read_image(_save(tmp_path / "n.tif", stored))
    assert read.dtype == expected
    np.testing.assert_allclose(read[..., 0], stored.astype(np.float64), rtol=1e-6)


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(np.kron(RGB8, np.ones((8, 8, 1), np.uint8)), (0, 0), 5)
    read = image_io.read_image(_save(tmp_path / "a.jpg", smooth, quality=98))
    assert read.shape == smooth.shape and np.abs(read.astype(int) - smooth).mean() < 3


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", GRAY8).rename(tmp_path / "a.tif")
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "a.tif")[..., 0], GRAY8)


def test_thumbnails_are_passed_over_and_a_stack_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(GRAY8, contiguous=False)
        writer.write(GRAY8[::2, ::2], contiguous=False)
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "s.tif")[..., 0], GRAY8)
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for page in range(2):  # two channels: which one is meant is not for us to guess
            writer.write(GRAY8 + np.uint8(page), contiguous=False)
    with pytest.raises(UserError, match=r"s\.tif.*2 pages"):
        image_io.read_image(tmp_path / "s.tif")
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((5, 7, 9), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match=r"s\.tif.*5 pages"):
        image_io.read_image(tmp_path / "s.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "z.tif"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)
    options = {"compression": "zlib"} if name == "z.tif" else {}
    path = _save(tmp_path / name, noise, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=name) as caught:
        image_io.read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "0 bytes"), (b"not an image at all", "no image"), (b"II*\0", "damaged")]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(UserError, match=message):
        image_io.read_image(tmp_path / "x.tif")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "none.png", "cannot be read"), (tmp_path, "is a folder; name an image")):
        with pytest.raises(UserError, match=told):
            image_io.read_image(path)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(UserError, match="100000x100000"):
        image_io.read_image(tmp_path / "bomb.png")
    for name in ("a.tif", "a.jpg", "a.bmp"):
        with pytest.raises(UserError, match="7x9 is more than 62 pixels"):
            image_io.read_image(_save(tmp_path / name, GRAY8), max_pixels=62)
        image_io.read_image(tmp_path / name, max_pixels=63)


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        image_io.read_image(_save(tmp_path / "n.tif", np.full((3, 3), np.nan, np.float32)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32])
def test_label_maps_keep_their_numbers(tmp_path: Path, dtype: type) -> None:
    labels = GRAY8.astype(dtype) * (1000 if np.dtype(dtype).itemsize == 4 else 1)
    read = image_io.read_labels(_save(tmp_path / "m.tif", labels))
    assert read.ndim == 2 and read.dtype.kind in "iu"
    np.testing.assert_array_equal(read, labels.astype(np.int64))
    if dtype in (np.uint8, np.uint16):
        np.testing.assert_array_equal(image_io.read_labels(_save(tmp_path / "m.png", labels)), labels)


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    for bad, message in (
        (RGB8, "colour"),
        (GRAY8 / np.float32(3), "fractions"),
        (-GRAY8.astype(np.int32), "negative"),
    ):
        with pytest.raises(UserError, match=message):
            image_io.read_labels(_save(tmp_path / "m.tif", bad))
    same = np.repeat(GRAY8[..., None], 3, axis=2)
    np.testing.assert_array_equal(image_io.read_labels(_save(tmp_path / "m.png", same)), GRAY8)


def test_gray_is_luma_or_the_channel_itself() -> None:
    np.testing.assert_allclose(
        gray_values.to_gray(np.uint8([[[10, 20, 30]]])), [[2.99 + 11.74 + 3.42]], rtol=1e-6
    )
    same = np.repeat(GRAY16[..., None], 3, axis=2)
    for image in (same, GRAY16, GRAY16[..., None]):
        gray = gray_values.to_gray(image)
        assert gray.dtype == np.float32
        np.testing.assert_array_equal(gray, GRAY16)
    with pytest.raises(ValueError, match="H, W"):
        gray_values.to_gray(np.zeros((2, 2, 4)))


def test_statistics_and_their_floor() -> None:
    assert gray_values.image_statistics(np.float32([[1, 3]])) == (2.0, 1.0)
    assert gray_values.image_statistics(np.full((4, 4), 5000, np.float32)) == (5000.0, 5.0)
    assert gray_values.image_statistics(np.zeros((4, 4), np.float32)) == (0.0, 1e-3)


@pytest.mark.parametrize("image", [GRAY8, GRAY16, RGB8, RGB16, GRAY8[..., None]])
def test_png_comes_back_the_same(tmp_path: Path, image: np.ndarray) -> None:
    data = image_io.encode_png(image)
    assert data == image_io.encode_png(image.copy())
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(image_io.read_image(tmp_path / "a.png"), image.reshape(7, 9, -1))


def test_png_refuses_what_it_cannot_hold() -> None:
    for bad in (GRAY8.astype(np.float32), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(ValueError):
            image_io.encode_png(bad)


@pytest.mark.real_data
def test_real_images(real_data: Path) -> None:
    livecell = next(iter(sorted((real_data / "livecell" / "images").rglob("*.tif"))))
    usiigaci = next(iter(sorted((real_data / "usiigaci" / "images").glob("*.tif"))))
    masks = next(iter(sorted((real_data / "usiigaci" / "masks").glob("*.png"))))
    assert image_io.read_image(livecell).shape == (520, 704, 1)
    read = image_io.read_image(usiigaci)
    assert read.dtype == np.uint16 and read.max() > 255
    assert image_io.read_labels(masks).shape == read.shape[:2]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_stack_is_read_page_by_page(tmp_path: Path, compression, dtype) -> None:
    pages = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype)
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, compression=compression)
        writer.write(pages[0, :3, :3], compression=compression)  # a thumbnail
    with Stack(path) as stack:
        assert stack.pages == 5
        for number in (4, 0, 2):
            found = stack.read(number)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found[..., 0], pages[number])


def test_a_stack_of_imagej_that_has_one_page_for_all(tmp_path: Path) -> None:
    pages = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    path = tmp_path / "stack.tif"
    # So ImageJ writes stacks above 4 GB; tifffile does by a limit on the pages.
    tifffile.imwrite(path, pages, imagej=True)
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        next_page = page.offset + 2 + 12 * len(page.tags)
    with open(path, "r+b") as file:
        file.seek(next_page)
        file.write(b"\0\0\0\0")  # no further page
    with Stack(path) as stack:
        assert stack.pages == 5
        np.testing.assert_array_equal(np.stack([stack.read(k)[..., 0] for k in range(5)]), pages)
    with pytest.raises(UserError, match="is a stack of 5 pages"):
        read_image(path)


def test_a_stack_of_one_page_and_of_none(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encode_png(np.full((3, 4), 9, np.uint8)))
    with Stack(tmp_path / "one.png") as stack:
        assert stack.pages == 1 and stack.read().shape == (3, 4, 1)
    (tmp_path / "cut.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match="is damaged or cut short"):
        Stack(tmp_path / "cut.tif")
    with pytest.raises(UserError, match="cannot be read"):
        Stack(tmp_path / "none.tif")


def test_a_damaged_page_spares_the_others(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path) as writer:
        for value in range(3):
            writer.write(np.full((40, 50), value, np.uint8), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[1].dataoffsets[0]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 8)
    with Stack(path) as stack:
        assert stack.read(2).max() == 2
        with pytest.raises(UserError, match="damaged"):
            stack.read(1)


@pytest.mark.parametrize("imagej", [False, True])
def test_a_stack_that_is_cut_between_two_pages_is_told(tmp_path: Path, imagej: bool) -> None:
    path = tmp_path / "stack.tif"
    pages = np.arange(6 * 40 * 50).astype(np.uint16).reshape(6, 40, 50)
    if imagej:
        tifffile.imwrite(path, pages, imagej=True)
    else:
        with tifffile.TiffWriter(path) as writer:
            for page in pages:
                writer.write(page, contiguous=False)
    with open(path, "r+b") as file:
        file.truncate(int(0.6 * path.stat().st_size))
    with pytest.raises(UserError, match="cut short"):
        Stack(path)


def test_each_page_of_a_stack_has_its_own_kind(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tif"
    image = np.full((8, 9), 200, np.uint8)
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, photometric="miniswhite", metadata=None)
        writer.write(image, photometric="minisblack", metadata=None)
        writer.write(image > 0, photometric="minisblack", metadata=None)
    with Stack(path) as stack:
        assert [int(stack.read(page).max()) for page in range(3)] == [55, 200, 255]


def test_a_tif_whose_page_holds_no_pixels_is_refused(tmp_path: Path, monkeypatch) -> None:
    """What tifffile makes of some damaged headers."""
    tifffile.imwrite(tmp_path / "a.tif", GRAY16)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page, **_: np.zeros(0, np.uint16))
    for read in (read_image, image_io.read_labels):
        with pytest.raises(UserError, match="a page without pixels"):
            read(tmp_path / "a.tif")


def write_tif(path: Path, pixels: np.ndarray, photometric: str, **options) -> np.ndarray:
    tifffile.imwrite(path, pixels, photometric=photometric, **options)
    return read_image(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_white_is_zero_for_every_type(tmp_path: Path, dtype: str) -> None:
    found = write_tif(tmp_path / "a.tif", GRAY8.astype(dtype), "miniswhite")[..., 0]
    top = np.iinfo(dtype).max if dtype != "float32" else GRAY8.max()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(int), int(top) - GRAY8.astype(int))


@pytest.mark.parametrize("samples", [2, 3, 4, 5])
def test_samples_that_are_channels_are_no_colours(tmp_path: Path, samples: int, caplog) -> None:
    pixels = np.stack([GRAY16, *[65535 - GRAY16] * (samples - 1)], axis=-1)
    found = write_tif(tmp_path / "a.tif", pixels, "minisblack", planarconfig="contig")
    np.testing.assert_array_equal(found, GRAY16[..., None])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "effdet_tf"]
    assert f"has {samples} channels, which are no colours: the first is used" in line


def test_transparency_of_gray_is_no_channel(tmp_path: Path, caplog) -> None:
    pixels = np.stack([GRAY8, 255 - GRAY8], axis=-1)
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    np.testing.assert_array_equal(
        write_tif(tmp_path / "a.tif", pixels, "minisblack", **options), GRAY8[..., None]
    )
    assert not caplog.records


def test_colours_of_print_and_video(tmp_path: Path) -> None:
    ink = np.stack([GRAY8, 255 - GRAY8, GRAY8 * 0, GRAY8 // 2], axis=-1)
    found = write_tif(tmp_path / "cmyk.tif", ink, "separated", planarconfig="contig")
    light = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert np.abs(found - light).max() <= 0.5 + 1e-9
    Image.fromarray(RGB8).convert("YCbCr").save(tmp_path / "y.tif")
    assert np.abs(read_image(tmp_path / "y.tif").astype(int) - RGB8).max() <= 3
    lab = Image.fromarray(np.stack([GRAY8] * 3, -1)).convert("RGB")
    pixels = np.dstack([np.asarray(lab.convert("L")), GRAY8 * 0 + 128, GRAY8 * 0 + 128])
    Image.merge("LAB", [Image.fromarray(np.ascontiguousarray(pixels[..., k])) for k in range(3)]).save(
        tmp_path / "lab.tif"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "lab.tif"), pixels[..., :1])


@pytest.mark.parametrize(
    ("orientation", "turned"), [(1, GRAY8), (6, np.rot90(GRAY8, -1)), (3, GRAY8[::-1, ::-1])]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_camera_that_was_held_upright(tmp_path: Path, orientation, turned, suffix) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRAY8).save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    found = read_image(tmp_path / f"a{suffix}")[..., 0].astype(int)
    assert found.shape == turned.shape and np.abs(found - turned).max() <= (0 if suffix == ".png" else 4)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_animations_are_refused_and_still_pictures_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(GRAY8), Image.fromarray(255 - GRAY8)]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"a\\{suffix}: is an animation of 2 frames"):
        read_image(path)
    frames[0].save(path, lossless=True)
    assert read_image(path).shape[:2] == GRAY8.shape


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}])
@pytest.mark.parametrize("axes", ["TYX", "ZYX", "CYX", "TYXS"])
def test_an_ome_image_of_several_pages_is_read_page_by_page(tmp_path: Path, axes: str, options: dict) -> None:
    shape = (3, 7, 9, 3) if axes.endswith("S") else (3, 7, 9)
    pages = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    rgb = {"photometric": "rgb"} if axes.endswith("S") else {"photometric": "minisblack"}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pages, ome=True, metadata={"axes": axes}, **rgb, **options)
    with Stack(path) as stack:
        assert (stack.pages, stack.axes) == (3, (axes[0], (3,)))
        for number in (2, 0, 1):
            np.testing.assert_array_equal(stack.read(number), pages[number].reshape(7, 9, -1))


def test_pages_of_other_sizes_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    sizes = [GRAY8, np.pad(GRAY8, 4), GRAY8 + np.uint8(1)]
    with tifffile.TiffWriter(path) as writer:
        for page in sizes:
            writer.write(page, contiguous=False)
    with Stack(path) as stack:
        assert stack.pages == 3
        np.testing.assert_array_equal(stack.read(2)[..., 0], sizes[2])
        with pytest.raises(UserError, match=r"s\.tif: page 2 is 15x17, page 1 7x9; save pages of different"):
            stack.read(1)


def test_a_compression_that_nobody_knows_is_no_reason_to_copy_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GRAY8, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(34676)  # SGI's LogLuv
    with pytest.raises(UserError, match=r"a\.tif: cannot be decoded .*save it again as tif or png"):
        read_image(path)


def test_a_tif_that_ends_before_its_first_directory_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    data = bytearray(path.read_bytes())
    # Microscopes write the pixels first, and the directory at the end.
    data[4:8] = len(data).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match="cut short .*copy it again"):
        read_image(path)
