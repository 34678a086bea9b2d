"""The law of Drifting's guidance scales and the weights of negatives, against the published code's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.draws import Draws
from genflow.guidance import NegativeMixing

ARCHIVE = np.load(Path(__file__).parents[1] / "golden" / "drifting" / "cfg_sampling.npz", allow_pickle=False)
CONFIG = json.loads(str(ARCHIVE["config"]))


@pytest.mark.parametrize("name", CONFIG)
def test_scales_and_weights(name):
    case = CONFIG[name]
    assert case["cfg_min"] == 1
    guidance = NegativeMixing(case["n_uncond"], case["cfg_max"], case["neg_cfg_pw"], case["no_cfg_frac"])
    scale = guidance.scale(torch.from_numpy(ARCHIVE["frac"]), torch.from_numpy(ARCHIVE["frac2"]))
    np.testing.assert_allclose(scale, ARCHIVE[f"cfg/{name}"], rtol=1e-5)
    weight = guidance.weight(torch.from_numpy(ARCHIVE[f"cfg/{name}"]), case["gen_per_label"])
    np.testing.assert_allclose(weight, ARCHIVE[f"uncond_w/{name}"], rtol=1e-5, atol=1e-6)


def test_draws_follow_the_law():
    """Spec 7.3: for the power 3 in [1, 4] the mean is 1.6, the median 1.372 and a fifth lies above 2."""
    guidance = NegativeMixing(16, unguided_share=0.5)
    scale = guidance.draw(Draws(0, torch.arange(40_000)))
    guided = scale[scale != 1]
    assert len(guided) / len(scale) == pytest.approx(0.5, abs=0.01)
    assert scale.min() == 1 and scale.max() < 4
    assert guided.mean().item() == pytest.approx(1.6, abs=0.02)
    assert guided.median().item() == pytest.approx(1.372, abs=0.01)
    assert (guided > 2).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_negatives_have_the_share_that_the_scale_says():
    """Spec 7.3: negatives of share s of what repels give the scale 1 / (1 - s)."""
    guidance = NegativeMixing(negatives=8)
    scale = torch.tensor([1.0, 1.5, 4.0])
    others = 16 - 1  # generated samples that repel one of them
    repelling = 8 * guidance.weight(scale, 16)
    assert torch.allclose(1 / (1 - repelling / (others + repelling)), scale)


def test_largest_scale_below_one_is_refused():
    with pytest.raises(ValueError, match=r"max_scale is 0\.5, 1 means no guidance and is the least"):
        NegativeMixing(negatives=8, max_scale=0.5)
