"""The autoencoder of Stable Diffusion (arXiv 2112.10752), through diffusers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from genflow.codecs.base import Codec
from genflow.errors import UserError, missing_extra
from genflow.ranges import Above0, Length, LocalPath, Positive
from genflow.registry import CODECS
from genflow.weights import file_digest

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# The published architecture, in the names of diffusers.
_ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "norm_num_groups": 32,
    "act_fn": "silu",
}


@CODECS.register_module()
class SDVAE(Codec):
    """Latents of a frozen VAE, normalised per channel.

    Stored latents are posterior means without the scaling factor of Stable Diffusion. Without ``weights``
    the codec normalises stored latents and its cost can be counted, but it neither encodes nor decodes.

    Args:
        image_size: side of the square image.
        weights: local folder in diffusers' format, e.g. a download of stabilityai/sd-vae-ft-mse; its
            ``config.json`` says the architecture. None for the published architecture without weights.
        latent_mean, latent_std: of stored latents, one number per channel; the defaults are those of
            ImageNet under the ft-mse weights.

    Raises:
        UserError: diffusers is not installed, or ``weights`` is not such a folder.
        ValueError: sizes that do not divide, or statistics for another number of channels.
    """

    weights_hint = "set its 'weights', e.g. GENFLOW_SD_VAE=path/to/sd-vae-ft-mse for the ImageNet recipes"
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        image_size: Positive = 256,
        weights: LocalPath | None = None,
        latent_mean: Annotated[tuple[float, ...], Length()] = (0.865, -0.278, 0.216, 0.374),
        latent_std: Annotated[tuple[Above0, ...], Length()] = (4.855, 5.319, 3.937, 3.987),
    ):
        super().__init__()
        vae = _load(weights)
        self.can_decode = weights is not None
        if self.can_decode:
            self.vae = vae
        else:
            # Past nn.Module's registration: parameters on the meta device could be neither moved nor saved.
            self.__dict__["vae"] = vae
        channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        if image_size % factor:
            raise ValueError(f"image_size {image_size} is not a multiple of {factor}, the VAE's factor")
        for name, values in {"latent_mean": latent_mean, "latent_std": latent_std}.items():
            if len(values) != channels:
                raise ValueError(f"{name} has {len(values)} numbers, the VAE {channels} latent channels")
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.latent_shape = (channels, image_size // factor, image_size // factor)
        self._folder = None if weights is None else Path(weights)

    @property
    def description(self) -> dict[str, Any]:
        """Its name, and the SHA-256 of the file of its weights; None without weights."""
        return {"type": type(self).__name__, "weights": None if self._folder is None else _digest(self._folder)}

    def randomize(self) -> None:
        self.vae = type(self.vae).from_config(self.vae.config).eval().requires_grad_(False)
        self.can_decode = True

    @property
    def decoder_modules(self) -> tuple[nn.Module, ...]:
        """What :meth:`decode` runs; their parameters are those of decoding."""
        return tuple(part for part in (self.vae.post_quant_conv, self.vae.decoder) if part is not None)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] to the (B, *latent_shape) means of their posteriors, unscaled.

        Raises:
            UserError: the codec has no weights.
        """
        self._require_weights(images)
        return self.vae.encode(images).latent_dist.mean

    def posterior(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] to the (B, 2C, H', W') means and standard deviations of their posteriors.

        Raises:
            UserError: the codec has no weights.
        """
        self._require_weights(images)
        posterior = self.vae.encode(images).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def normalize(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean.to(latents)) / self.latent_std.to(latents)

    def decode(self, samples: Tensor) -> Tensor:
        """(B, *latent_shape) normalised samples to (B, 3, H, W) images, nominally in [-1, 1], not clipped.

        Raises:
            UserError: the codec has no weights.
        """
        self._require_weights(samples)
        return self.vae.decode(samples * self.latent_std.to(samples) + self.latent_mean.to(samples)).sample

    def _require_weights(self, data: Tensor) -> None:
        """On the meta device there is nothing to compute, so counting needs no weights."""
        if not self.can_decode and not data.is_meta:
            raise UserError(
                "SDVAE has no weights: set weights: to a folder in diffusers format, "
                "e.g. a download of stabilityai/sd-vae-ft-mse"
            )


def _digest(folder: Path) -> str:
    """SHA-256 of the weights in a folder of diffusers' format, of the file that diffusers prefers."""
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"weights of SDVAE: '{folder}' holds neither {names[0]} nor {names[1]}")
    return file_digest(file)


def _load(weights: str | None) -> "AutoencoderKL":
    """The frozen VAE of a folder, or the published architecture on the meta device."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise missing_extra("diffusers", "vae") from error
    if weights is None:
        with torch.device("meta"):
            vae = AutoencoderKL(**_ARCHITECTURE)
    else:
        folder = Path(weights)
        if not folder.is_dir():
            raise UserError(f"weights of SDVAE: there is no folder '{folder}'")
        try:
            config = json.loads((folder / "config.json").read_text())
            if config.get("_class_name") != "AutoencoderKL":
                raise UserError(f"weights of SDVAE: '{folder}' does not hold an AutoencoderKL")
            if torch.get_default_device().type == "meta":  # a model that is built to be counted
                vae = AutoencoderKL.from_config(config)
            else:
                # The quick way to load needs a further package.
                vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
        except (OSError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"weights of SDVAE: '{folder}' is not in diffusers format: {reason}") from error
    return vae.eval().requires_grad_(False)
