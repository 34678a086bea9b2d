"""The colour pictures of an emoji font, labelled with Unicode's groups (Unicode Technical Standard 51)."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from genflow.data.pictures import require_file
from genflow.errors import UserError, reason

#: Where Debian's package unicode-data puts the list.
TEST_FILE = Path("/usr/share/unicode/emoji/emoji-test.txt")
#: The one size of Noto's bitmaps, in points, for FreeType; and the width of a glyph that is one, in pixels.
_POINTS, _WIDEST = 109, 140
_SKIN_TONES = range(0x1F3FB, 0x1F3FF + 1)
_GROUP, _EMOJI = re.compile(r"# group: (.+)"), re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s+# \S+ E\S+ (.+)")
#: Groups that hold no pictures of their own: the skin tones.
_NO_GROUP = "Component"
#: White around a picture, as a share of its side.
_MARGIN = 1 / 32

Render = Callable[[str], Image.Image | None]


@dataclass(frozen=True)
class Emoji:
    """One line of Unicode's list.

    Args:
        text: the characters.
        name: what they show.
        group: number of the group.
    """

    text: str
    name: str
    group: int


def read_list(path: Path) -> tuple[list[Emoji], list[str]]:
    """The fully qualified emoji of ``emoji-test.txt`` without those that differ in the tone of a skin, and the groups.

    Raises:
        UserError: the file is missing or another one.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such list of emoji; Debian's package unicode-data has it, or name one: --emoji-test"
        )
    require_file(path, "list of emoji")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of emoji: {error}") from None
    groups: list[str] = []
    emoji: list[Emoji] = []
    for line in lines:
        group, entry = _GROUP.match(line), _EMOJI.match(line)
        if group and group[1] != _NO_GROUP:
            groups.append(group[1])
        elif entry and groups:
            points = [int(point, 16) for point in entry[1].split()]
            if not any(point in _SKIN_TONES for point in points):
                emoji.append(Emoji("".join(map(chr, points)), entry[2], len(groups) - 1))
    if not emoji:
        raise UserError(f"{path}: holds no emoji, expected lines as in Unicode's emoji-test.txt")
    return emoji, groups


def font_renderer(font: Path) -> Render:
    """What draws a text with a colour font on a transparent page; None where it is not one glyph.

    Raises:
        UserError: the font is missing or has no colour bitmaps, or Pillow cannot join characters.
    """
    require_file(font, "font")
    if not features.check("raqm"):
        raise UserError("emoji of several characters need Pillow with libraqm, which its wheels for Linux have")
    try:
        face = ImageFont.truetype(str(font), _POINTS, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(f"{font}: not a font of colour bitmaps of {_POINTS} points, as Noto's is: {error}") from None

    def render(text: str) -> Image.Image | None:
        left, top, right, bottom = (round(side) for side in face.getbbox(text))
        if not (0 < right - left <= _WIDEST and bottom > top):
            return None
        page = Image.new("RGBA", (right - left, bottom - top))
        try:
            ImageDraw.Draw(page).text((-left, -top), text, font=face, embedded_color=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{font}: cannot draw: {reason(error)}") from None
        return page if page.getbbox() else None

    return render


class EmojiSource:
    """Emoji as square pictures over white.

    Every emoji belongs to one half of the set, ``train`` or ``test``, by a hash of its characters.

    Args:
        emoji, groups: as :func:`read_list` returns them.
        render: draws them, see :func:`font_renderer`.
        image_size: side of the squares.
        split: which of them.
        origin: says which font and list they come from.

    Raises:
        UserError: nothing is left.
    """

    def __init__(
        self,
        emoji: list[Emoji],
        groups: list[str],
        render: Render,
        image_size: int,
        split: Literal["all", "train", "test"] = "all",
        origin: dict[str, Any] | None = None,
    ):
        pictures = [(entry, render(entry.text)) for entry in emoji if split in ("all", half_of(entry.text))]
        #: Names of those that the font has not as one glyph.
        self.missing = [entry.name for entry, picture in pictures if picture is None]
        drawn = [(entry, picture) for entry, picture in pictures if picture is not None]
        if not drawn:
            raise UserError("the font has none of the emoji in the list")
        self.class_names = groups
        self.num_classes = len(groups)
        self.labels = np.array([entry.group for entry, _ in drawn], dtype=np.int64)
        self._names = [entry.name for entry, _ in drawn]
        self._pixels = np.stack([on_white(picture, image_size) for _, picture in drawn])
        self.description = {
            "pictures": hashlib.sha256(self._pixels.tobytes()).hexdigest(),
            "transform": f"over white, to {image_size} x {image_size} pixels",
            "split": split,
            **(origin or {}),
        }

    def read(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def path(self, index: int) -> str:
        return self._names[index]


def half_of(text: str) -> str:
    """``train`` or ``test``, whichever an emoji belongs to."""
    return ("train", "test")[hashlib.sha256(text.encode()).digest()[0] % 2]


def on_white(picture: Image.Image, side: int) -> np.ndarray:
    """An RGBA picture in the middle of a white square with a margin, (side, side, 3) uint8."""
    longest = max(picture.size)
    margin = round(longest * _MARGIN)
    page = Image.new("RGBA", (longest + 2 * margin,) * 2, "white")
    page.alpha_composite(picture, tuple((page.width - length) // 2 for length in picture.size))
    return np.asarray(page.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
