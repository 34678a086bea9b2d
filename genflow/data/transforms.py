"""GenFlow's transforms of pictures. The module imports OpenCV with mmcv, so it is imported when one is asked for.

All take and return what :class:`~genflow.data.pipeline.TransformSlot` describes. Without draws, random ones do what is
likeliest or in the middle.
"""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from genflow.data.crops import AREA, draw_boxes
from genflow.data.pictures import center_crop
from genflow.ranges import Interval, Positive, Share
from genflow.registry import TRANSFORMS


class _PictureTransform(BaseTransform):
    """A transform that is a function of Pillow's picture and the sample's draws."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels = results["img"]
        grey = pixels.ndim == 2 or pixels.shape[2] == 1
        picture = Image.fromarray(pixels.reshape(pixels.shape[:2]) if grey else pixels)
        pixels = np.array(self.change(picture, results["draws"]))
        results["img"] = pixels if pixels.ndim == 3 else pixels[..., None]
        return results

    def change(self, picture: Image.Image, draws: Any) -> Image.Image:
        """The picture of mode ``RGB`` or ``L`` that comes of one."""
        raise NotImplementedError


@TRANSFORMS.register_module()
class CenterCrop(_PictureTransform):
    """The middle, as ADM crops; see :func:`~genflow.data.pictures.center_crop`. mmcv's of the same name is hidden.

    Args:
        size: side of the square.
    """

    def __init__(self, size: Positive):
        self.size = size

    def change(self, picture, draws):
        return center_crop(picture, self.size)


@TRANSFORMS.register_module()
class RandomBox(_PictureTransform):
    """A random box, resized to a square (docs/drifting.md, D16); see :func:`~genflow.data.crops.draw_boxes`.

    Without draws it is the middle of the picture, as :class:`CenterCrop` takes it.

    Args:
        size: side of the square.
        area: smallest and largest share of the picture's area.
    """

    def __init__(self, size: Positive, area: Interval = AREA):
        self.size = size
        self.area = area

    def change(self, picture, draws):
        if draws is None:
            return center_crop(picture, self.size)
        boxes = draw_boxes(draws, picture.height, picture.width, self.area, use="picture crop")
        top, left, height, width = boxes[0].tolist()
        side = (self.size, self.size)
        return picture.resize(side, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


@TRANSFORMS.register_module()
class Flip(_PictureTransform):
    """The mirror image of a share of the pictures; without draws, of none.

    Args:
        share: of the pictures.
    """

    def __init__(self, share: Share = 0.5):
        self.share = share

    def change(self, picture, draws):
        mirrored = draws is not None and bool(draws.uniform("flip") < self.share)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


@TRANSFORMS.register_module()
class Resize(_PictureTransform):
    """The whole picture as a square, bicubic with antialiasing. mmcv's of the same name, without it, is hidden.

    Args:
        size: side of the square.
    """

    def __init__(self, size: Positive):
        self.size = size

    def change(self, picture, draws):
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC)


@TRANSFORMS.register_module()
class ToGrey(_PictureTransform):
    """One channel, the luma of ITU-R 601."""

    def change(self, picture, draws):
        return picture.convert("L")
