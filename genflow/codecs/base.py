"""The contract of codecs."""

from typing import Any

from torch import Tensor, nn

from genflow.errors import UserError


class Codec(nn.Module):
    """Pixels to the space the generator works in, and back.

    A subclass sets ``latent_shape`` (C, H, W), the shape of one sample in that space.
    """

    kind = "codec"
    latent_shape: tuple[int, int, int]
    #: Whether it has what decoding needs; one without can still be built and counted.
    can_decode: bool = True
    #: What a user can do about one that has not.
    weights_hint: str = "set its 'weights'"

    @property
    def description(self) -> dict[str, Any]:
        """What the latents that :meth:`encode` makes depend on, of plain JSON values; None where it is not known.

        A cache of latents keeps it, and is refused where it says something else than that of the recipe's codec.
        """
        return {"type": type(self).__name__}

    def randomize(self) -> None:
        """Give a codec that cannot decode random weights, so that decoding can be timed.

        Raises:
            UserError: this codec has no such form.
        """
        raise UserError(f"{type(self).__name__} has no weights to decode with, and no random ones")

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] to stored latents, before :meth:`normalize`."""
        raise NotImplementedError

    def posterior(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] to what a latent cache keeps: (B, 2C, H', W') means, then deviations.

        Raises:
            UserError: this codec has nothing that would be worth a cache, or no weights.
        """
        raise UserError(f"{type(self).__name__} makes no latents to be kept; pack the pictures themselves")

    def normalize(self, latents: Tensor) -> Tensor:
        """Stored latents to the generator's space, (B, *latent_shape), about unit variance."""
        raise NotImplementedError

    def decode(self, samples: Tensor) -> Tensor:
        """(B, *latent_shape) samples of the generator to images, nominally in [-1, 1], not clipped."""
        raise NotImplementedError
