"""One picture of a user's: every mode with the values that a viewer shows, and what is refused in one line."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data.pictures import colour_values, read_picture, read_pixels
from genflow.errors import UserError


def save(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def values(path: Path, channels: int = 3) -> np.ndarray:
    picture = read_picture(path, channels)
    assert picture.mode == {1: "L", 3: "RGB"}[channels]
    return np.asarray(picture)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_shades(tmp_path, ending):
    shades = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    file = tmp_path / f"deep.{ending}"
    if ending == "pgm":
        file.write_bytes(b"P5 6 1 65535\n" + shades.astype(">u2").tobytes())
        with pytest.raises(UserError, match="found mode I, whose range is not known, expected 8 or 16 bits"):
            read_picture(file, 1)
        return
    save(file, Image.fromarray(shades))
    assert values(file, 1).tolist() == [[0, 0, 1, 1, 128, 255]]
    assert (values(file)[..., 1] == values(file, 1)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_show_white_and_no_hidden_colour(tmp_path, mode):
    alpha = Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8))
    picture = Image.new("RGB", (3, 1), (40, 40, 40)).convert("RGBA")
    picture.putalpha(alpha)
    file = save(tmp_path / "x.tif" if mode == "PA" else tmp_path / "x.png", picture.convert(mode))
    assert values(file, 1).tolist()[0][:2] == [255, 40]
    assert abs(values(file, 1)[0, 2] - 147) <= 1  # half of 40, half of 255


def test_a_transparent_shade_or_palette_entry_is_white_too(tmp_path):
    grey = save(tmp_path / "grey.png", Image.fromarray(np.array([[7, 9]], dtype=np.uint8)), transparency=7)
    assert values(grey, 1).tolist() == [[255, 9]]
    colours = Image.new("P", (2, 1))
    colours.putpalette([200, 0, 0, 0, 0, 200])
    colours.putdata([0, 1])
    assert values(save(tmp_path / "p.png", colours, transparency=0)).tolist() == [[[255, 255, 255], [0, 0, 200]]]
    deep = save(tmp_path / "deep.png", Image.fromarray(np.array([[7, 9]], dtype=np.uint16)), transparency=7)
    with pytest.raises(UserError, match="16 bits of grey with a transparent shade"):
        read_picture(deep, 1)


@pytest.mark.parametrize(("ending", "orientation"), [("jpg", 6), ("png", 8), ("webp", 3), ("jpg", 2)])
def test_pictures_are_turned_as_exif_says(tmp_path, ending, orientation):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :16] = 255  # white in the corner at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / f"x.{ending}", Image.fromarray(pixels), exif=exif)
    turned = {6: np.rot90(pixels, -1), 8: np.rot90(pixels), 3: np.rot90(pixels, 2), 2: pixels[:, ::-1]}[orientation]
    found = values(file)
    assert found.shape == turned.shape and np.abs(found.astype(int) - turned).mean() < 4


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff", b"xx"])
def test_damage_in_what_is_not_shown_is_passed_over(tmp_path, exif, recwarn):
    file = save(tmp_path / "x.jpg", Image.new("RGB", (4, 2)), exif=exif)
    assert values(file).shape == (2, 4, 3) and not recwarn.list


def test_colours_become_grey_by_their_luma_and_grey_becomes_colours(tmp_path):
    file = save(tmp_path / "x.png", Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [10, 10, 10]]], np.uint8)))
    assert values(file, 1).tolist() == [[76, 150, 10]]
    file = save(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8)))
    assert values(file, 1).min() > 250 and values(file).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [("white", [255, 255, 255]), ("RebeccaPurple", [102, 51, 153]), ("#0102ff", [1, 2, 255]), ([9, 8, 7], [9, 8, 7])],
)
def test_transparent_pixels_show_the_colour_behind_them(tmp_path, colour, expected):
    file = save(tmp_path / "x.png", Image.new("RGBA", (1, 1), (40, 50, 60, 0)))
    assert read_pixels(file, colour_values(colour)).tolist() == [[expected]]
    half = save(tmp_path / "half.png", Image.new("RGBA", (1, 1), (100, 100, 100, 51)))
    found = read_pixels(half, colour_values(colour))[0, 0].astype(int)
    assert np.abs(found - (0.8 * np.array(expected) + 20)).max() <= 1


@pytest.mark.parametrize(
    ("colour", "hint"),
    [("whit", "; nearest match: 'white'"), ("#01020304", ""), ("rgb(", ""), ("", "")],
)
def test_colours_that_are_none(colour, hint):
    with pytest.raises(UserError) as caught:
        colour_values(colour)
    expected = "expected a CSS name of a colour or [red, green, blue]"
    assert str(caught.value).startswith(f"background: found {colour!r}, {expected}") and hint in str(caught.value)


def test_what_is_read_can_be_changed_in_place(tmp_path):
    for name, picture in (("plain.jpg", Image.new("RGB", (4, 2))), ("alpha.png", Image.new("RGBA", (4, 2)))):
        pixels = read_pixels(save(tmp_path / name, picture))
        pixels += 1
        assert pixels.shape == (2, 4, 3) and pixels.flags["C_CONTIGUOUS"]


def test_a_file_that_is_larger_than_any_picture_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(2**30 + 1)
    assert refused(tmp_path / "x.png").endswith("found 1073741825 bytes, expected at most 1073741824")


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(path, 3)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable picture: ") and message.isprintable()
    return message


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png").endswith("found a pipe")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    assert refused(tmp_path / "link.png").endswith("found a pipe")
    assert refused(tmp_path).endswith("found a folder")
    assert refused(Path("/dev/zero")).endswith("found a device")
    assert refused(tmp_path / "none.png").endswith("No such file or directory")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize(("side", "problem"), [(12_000, "exceeds limit"), (60_000, "exceeds limit")])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, side, problem):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    assert problem in refused(tmp_path / "bomb.png")


def test_a_text_that_unpacks_without_end_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    text = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(2**27)))
    content = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(content[:33] + text + content[33:])
    refused(tmp_path / "x.png")


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="expected BMP, GIF, JPEG"):
        read_picture(path, 3)
