"""Faster generators, at the price of exactness."""

import torch
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.generators.base import Generator, Precision, cast_weights


def accelerate(
    generator: Generator,
    precision: Precision = "float32",
    compile: bool = False,
    decode_precision: Precision = "float32",
) -> Generator:
    """Make a generator that lies on its device faster, in place.

    Noise and samples stay float32. So do buffers, such as rotary angles, a flow's affine maps, and the score step
    after a backbone.

    Args:
        generator: one pass or more through a backbone, or a flow.
        precision: what the network's weights are cast to, and its products are computed in.
        compile: a backbone is compiled with torch.compile, once per batch size, while the first batch waits; on a
            GPU as CUDA graphs. The inverse of a TARFlow is recorded as CUDA graphs, again once per batch size, on
            a GPU only. What concerns the GPU has not been measured on one.
        decode_precision: the same as ``precision`` for the codec.

    Raises:
        UserError: the generator is of another sort, or does not compile; torch.compile fails only when a compiled
            generator is first called.
    """
    generator.accelerate(precision, compile)
    if decode_precision != "float32":
        generator.codec = LowPrecisionCodec(generator.codec, decode_precision)
    return generator


class LowPrecisionCodec(Codec):
    """Another codec, whose weights are cast and which decodes in their precision to float32 images.

    Args:
        codec: decodes; its weights are cast in place.
        precision: what to.
    """

    def __init__(self, codec: Codec, precision: Precision):
        super().__init__()
        cast_weights(codec, precision)
        self.codec = codec
        self.precision = getattr(torch, precision)
        self.latent_shape = codec.latent_shape
        self.can_decode = codec.can_decode

    def encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images.to(self.precision)).float()

    def normalize(self, latents: Tensor) -> Tensor:
        return self.codec.normalize(latents)

    def decode(self, samples: Tensor) -> Tensor:
        return self.codec.decode(samples.to(self.precision)).float()
