"""A cache of latents is compared with the recipe's codec before anything is trained or written."""

import numpy as np
import pytest

from genflow.codecs import SDVAE
from genflow.config.graph import ComponentGraph
from genflow.data.latent_files import write_latent_cache
from genflow.engine.preflight import check
from genflow.errors import UserError


@pytest.fixture
def refusal(tiny_recipe, tmp_path):
    """Writes latents of (4, 8, 8); returns the line with which a recipe of SDVAE's latents is refused."""
    pytest.importorskip("diffusers")

    def line(codec, scale=1.0):
        normal = np.random.default_rng(0).normal(size=(20, 1, 4, 8, 8))
        vae = SDVAE(64)
        means = scale * (vae.latent_mean.numpy() + vae.latent_std.numpy() * normal)
        moments = np.concatenate([means, np.full_like(means, 0.1)], axis=2).astype(np.float32)
        write_latent_cache(tmp_path / "cache", moments, np.arange(20) % 10, codec, num_classes=10)
        data = {"type": "LatentCache", "data_root": str(tmp_path / "cache"), "latent_shape": [4, 8, 8]}
        tiny_recipe["train_dataloader"]["dataset"] = {**data, "num_classes": 10, "flip": False}
        tiny_recipe["model"]["codec"] = {"type": "SDVAE", "image_size": 64}
        tiny_recipe["model"]["flow"]["channels"] = 4
        tiny_recipe["evaluation"] = None
        with pytest.raises(UserError) as caught:
            check(ComponentGraph.from_recipe(tiny_recipe, "tiny.yaml"))
        return str(caught.value)

    return line


def test_latents_of_another_codec(refusal):
    expected = "' holds latents of another codec: its codec has type 'Other', the recipe's has 'SDVAE' (codec_hash "
    line = refusal({**SDVAE(64).description, "type": "Other"})
    assert line.startswith("tiny.yaml: train_dataloader.dataset: data_root '") and expected in line


def test_latents_that_are_scaled_already(refusal):
    line = refusal(SDVAE(64).description, scale=0.18215)
    assert line.startswith("tiny.yaml: train_dataloader.dataset: data_root '")
    assert "': 20 latents have mean " in line and "they are scaled already, or " in line


def test_latents_that_fit(refusal):
    assert "the codec has no weights, so samples cannot be decoded" in refusal(SDVAE(64).description)
