"""Codecs: shapes, round trips, and the lines a user reads when something is missing."""

import copy
import sys

import pytest
import torch

from genflow.codecs import SDVAE, Identity
from genflow.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny VAE as a download would lie there; a side shrinks by 2."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path)
    return path, vae.eval()


def test_identity():
    codec = Identity(8)
    images = torch.randn(2, 3, 8, 8)
    assert codec.latent_shape == (3, 8, 8)
    assert Identity(8, channels=1).latent_shape == (1, 8, 8)
    assert torch.equal(codec.decode(codec.normalize(codec.encode(images))), images)


@torch.no_grad()
def test_sd_vae_round_trip(folder):
    path, vae = folder
    codec = SDVAE(16, weights=str(path))
    assert codec.latent_shape == (4, 8, 8)
    assert codec.can_decode
    assert not codec.vae.training
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    stored = codec.encode(images)
    assert torch.equal(stored, vae.encode(images).latent_dist.mean)
    samples = codec.normalize(stored)
    torch.testing.assert_close(samples[:, 1], (stored[:, 1] + 0.278) / 5.319)
    assert samples.shape[1:] == codec.latent_shape
    torch.testing.assert_close(codec.decode(samples), vae.decode(stored).sample)


def test_sd_vae_lets_gradients_through(folder):
    samples = torch.randn(1, 4, 8, 8, requires_grad=True)
    SDVAE(16, weights=str(folder[0])).decode(samples).sum().backward()
    assert samples.grad.abs().sum() > 0


def test_sd_vae_of_a_folder_on_meta(folder, recwarn):
    with torch.device("meta"):
        codec = SDVAE(16, weights=str(folder[0]))
    assert codec.decode(torch.zeros(1, 4, 8, 8, device="meta")).shape == (1, 3, 16, 16)
    assert not [warning for warning in recwarn.list if "no-op" in str(warning.message)]


def test_sd_vae_statistics(folder):
    codec = SDVAE(16, str(folder[0]), latent_mean=(1.0, 2.0, 3.0, 4.0), latent_std=(2.0, 2.0, 2.0, 4.0))
    latents = torch.ones(1, 4, 8, 8)
    assert codec.normalize(latents)[0, :, 0, 0].tolist() == [0.0, -0.5, -1.0, -0.75]
    with pytest.raises(ValueError, match="latent_std has 3 numbers"):
        SDVAE(16, str(folder[0]), latent_std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="image_size 15 is not a multiple of 2"):
        SDVAE(15, str(folder[0]))


def test_sd_vae_without_weights():
    pytest.importorskip("diffusers")
    codec = SDVAE()
    assert codec.latent_shape == (4, 32, 32)
    assert not codec.can_decode
    assert sum(p.numel() for part in codec.decoder_modules for p in part.parameters()) == 49_490_199
    # It takes part in training on stored latents, so it must survive being moved, copied and saved.
    codec = copy.deepcopy(codec).to(torch.device("cpu")).train()
    assert not codec.state_dict()
    assert not list(codec.parameters())
    assert codec.normalize(torch.zeros(1, 4, 32, 32)).isfinite().all()
    for function, shape in ((codec.decode, (1, 4, 32, 32)), (codec.encode, (1, 3, 256, 256))):
        with pytest.raises(UserError, match="SDVAE has no weights: set weights: to a folder"):
            function(torch.zeros(shape))
    assert codec.decode(torch.zeros(1, 4, 32, 32, device="meta")).shape == (1, 3, 256, 256)


def test_descriptions_tell_codecs_and_weights_apart(folder, tmp_path):
    assert Identity(8).description == Identity(16).description == {"type": "Identity"}
    assert SDVAE(64).description == {"type": "SDVAE", "weights": None}
    found = SDVAE(16, weights=str(folder[0])).description
    assert found == SDVAE(32, weights=str(folder[0])).description and len(found["weights"]) == 64
    other = copy.deepcopy(folder[1])
    other.decoder.conv_out.bias.data += 1
    other.save_pretrained(tmp_path)
    assert SDVAE(16, weights=str(tmp_path)).description["weights"] != found["weights"]


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError) as caught:
        SDVAE()
    assert str(caught.value) == "this feature needs the package 'diffusers': pip install \"genflow[vae]\""


def test_missing_folder(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError) as caught:
        SDVAE(weights=str(tmp_path / "nowhere"))
    assert str(caught.value) == f"weights of SDVAE: there is no folder '{tmp_path / 'nowhere'}'"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "is not in diffusers format"),
        ("{", "is not in diffusers format"),
        ('{"_class_name": "UNet"}', "does not hold an AutoencoderKL"),
    ],
)
def test_foreign_folders(tmp_path, config, reason):
    pytest.importorskip("diffusers")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=reason) as caught:
        SDVAE(weights=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_folder_without_weight_files(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder[0] / "config.json").read_bytes())
    with pytest.raises(UserError, match="not in diffusers format"):
        SDVAE(16, weights=str(tmp_path))
