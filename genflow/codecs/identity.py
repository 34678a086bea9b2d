"""The codec of generators that work in pixel space."""

from torch import Tensor, nn

from genflow.codecs.base import Codec
from genflow.ranges import Positive
from genflow.registry import CODECS


@CODECS.register_module()
class Identity(Codec):
    """Images are samples.

    Args:
        image_size: side of the square image.
        channels: its channels.
    """

    decoder_modules: tuple[nn.Module, ...] = ()

    def __init__(self, image_size: Positive, channels: Positive = 3):
        super().__init__()
        self.latent_shape = (channels, image_size, image_size)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def normalize(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, samples: Tensor) -> Tensor:
        return samples
