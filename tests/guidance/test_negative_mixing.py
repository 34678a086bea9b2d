"""The law of Drifting's guidance scales and the weights of negatives, against the published code's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.backbones import LightningDiT
from genflow.codecs import Identity
from genflow.draws import Draws
from genflow.field_estimators import DriftingField, SinkhornField
from genflow.field_estimators.base import FeatureSets
from genflow.guidance import NegativeMixing
from genflow.methods import Drifting

ARCHIVE = np.load(Path(__file__).parents[1] / "golden" / "drifting" / "cfg_sampling.npz", allow_pickle=False)
CONFIG = json.loads(str(ARCHIVE["config"]))


@pytest.mark.parametrize("name", CONFIG)
def test_scales_and_weights(name):
    case = CONFIG[name]
    law = (case["cfg_max"], case["neg_cfg_pw"], case["no_cfg_frac"], case["cfg_min"])
    guidance = NegativeMixing(case["n_uncond"], *law)
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


def test_scales_of_any_interval():
    """The published law: scale to the power 1 - k is uniform between the two ends' own."""
    guidance = NegativeMixing(negatives=8, max_scale=2.0, power=3.0, min_scale=0.5)
    uniform, never = torch.tensor([0.0, 0.25, 1.0]), torch.ones(3)
    assert torch.allclose(guidance.scale(uniform, never), torch.tensor([0.5, (4 - 0.25 * 3.75) ** -0.5, 2.0]))
    assert torch.allclose(guidance.weight(torch.tensor([0.5, 1.0, 2.0]), 17), torch.tensor([-1.0, 0.0, 2.0]))
    below = NegativeMixing(negatives=8, max_scale=0.9, power=1.0, min_scale=0.1)
    assert below.scale(uniform, never).tolist() == pytest.approx([0.1, 0.1 * 9**0.25, 0.9])


def test_below_one_points_settle_in_the_mixture():
    """The right one of two modes is the class: with scale a, (1 - a) / 2 of the points belong in the left one."""
    generator = torch.Generator().manual_seed(0)
    count, scale, share = 500, 0.6, 0.2

    def points(right):
        """A share ``right`` of points in the right mode, the others in the left one."""
        side = torch.where(torch.arange(count).unsqueeze(1) < right * count, 1.0, -1.0)
        spread = 0.3 * torch.randn(count, 2, generator=generator)
        return (spread + torch.cat([side, torch.zeros_like(side)], dim=1)).view(1, count, 1, 2)

    guidance = NegativeMixing(count, max_scale=scale, min_scale=scale)
    weights = guidance.weights(torch.tensor([scale]), count, count)
    field = DriftingField(temperatures=(0.2,), floor=0.0)
    found = torch.randn(1, count, 1, 2, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.03)
    for _ in range(300):
        loss = field({"x": FeatureSets(found, points(1.0), points(0.5))}, weights).losses["x"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (found[..., 0] < 0).float().mean().item() == pytest.approx(share, abs=0.05)
    assert (found[..., 0].abs() - 1).abs().quantile(0.95) < 0.8  # none but stragglers is off both


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match=r"max_scale is 0\.5, below min_scale, 1\.0 \(1 means no guidance\)"):
        NegativeMixing(negatives=8, max_scale=0.5)


def test_a_field_that_knows_no_attracting_negatives_refuses_scales_below_one():
    backbone = LightningDiT(8, 4, 16, 1, 2, channels=1, num_classes=3)
    parts = {"codec": Identity(8, 1), "labels_per_update": 2, "samples_per_label": 4}
    guidance = NegativeMixing(negatives=2, min_scale=0.5)
    assert Drifting(backbone, DriftingField(), **parts, guidance=guidance).generator.lowest_guidance == 0.5
    with pytest.raises(ValueError, match=r"guidance has min_scale 0\.5: below 1 negatives attract, which a SinkhornF"):
        Drifting(backbone, SinkhornField(), **parts, guidance=guidance)
