"""The generator of Drifting: what an image depends on, the smallest scale, networks that want times."""

import pytest
import torch

from genflow.backbones import DiT, LightningDiT
from genflow.codecs import Identity
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.generators.drifting import DriftingGenerator

SIDE, CHANNELS, CLASSES = 4, 2, 5


def build(backbone=None, **options):
    """A small network with random weights in the place of its zeros."""
    torch.manual_seed(0)
    if backbone is None:
        backbone = LightningDiT(
            SIDE, 2, 16, 1, 2, CHANNELS, CLASSES, context_tokens=1, style_codebooks=3, style_entries=7
        )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return DriftingGenerator(backbone, Identity(SIDE, CHANNELS), **options).eval()


def test_images_of_a_seed_do_not_depend_on_the_batch():
    generator, labels = build(), torch.arange(6) % CLASSES
    together = generator.sample(labels, seed=3, guidance=1.5)
    apart = [generator.sample(labels[i : i + 1], seed=3, guidance=1.5, first_index=i) for i in range(6)]
    assert torch.allclose(torch.cat(apart), together, atol=1e-6)
    assert not torch.allclose(generator.sample(labels, seed=4, guidance=1.5), together, atol=1e-3)
    assert not torch.allclose(generator.sample(labels, seed=3, guidance=2.5), together, atol=1e-3)


def test_every_sample_has_its_style(monkeypatch):
    generator = build()
    monkeypatch.setattr(Draws, "normal", lambda self, stream, shape: torch.ones(len(self), *shape))
    samples = generator.sample(torch.zeros(8, dtype=torch.int64), seed=0)
    assert len(samples.flatten(1).unique(dim=0)) == 8  # label and noise are the same


def test_styles_are_drawn_beside_the_noise():
    generator, conditions = build(), []
    generator.network.register_forward_pre_hook(lambda _, given: conditions.append(given[1]))
    generator.sample(torch.arange(4), seed=3)
    draws = Draws(3, torch.arange(4))
    assert torch.equal(generator.draw(draws, torch.arange(4))[1].style, conditions[0].style)
    style = generator.draw(draws[:2], torch.arange(4))[1].style
    assert style.shape == (4, 3) and torch.equal(style, draws[:2].integers("sampling style", 7, (2, 3)).flatten(0, 1))
    assert torch.equal(generator.draw(draws[1:2], torch.arange(2))[1].style, style[2:])
    assert not torch.equal(generator.draw(draws[:2], torch.arange(4), prefix="")[1].style, style)


def test_a_network_that_wants_times_is_told_those_of_one_step():
    backbone, conditions = DiT(SIDE, 2, 16, 1, 2, CHANNELS, num_classes=CLASSES), []
    backbone.register_forward_pre_hook(lambda _, given: conditions.append(given[1]))
    build(backbone).sample(torch.arange(3), seed=0)
    assert torch.equal(conditions[0].time, torch.ones(3)) and torch.equal(conditions[0].duration, torch.ones(3))


@pytest.mark.parametrize("scale", [0.0, 0.99, float("nan")])
def test_scales_below_one_are_refused(scale):
    with pytest.raises(UserError, match=r"guidance: found .*, expected at least 1"):
        build().sample(torch.arange(2), seed=0, guidance=scale)
    with pytest.raises(ValueError, match=r"default_guidance is .*, 1 means no guidance and 1 is the least"):
        build(default_guidance=scale)


def test_scales_that_training_has_shown_are_taken():
    generator = build(lowest_guidance=0.5, default_guidance=0.7)
    assert generator.sample(torch.arange(2), seed=0, guidance=0.5).isfinite().all()
    with pytest.raises(UserError, match=r"^guidance: found 0\.4, expected at least 0\.5$"):
        generator.sample(torch.arange(2), seed=0, guidance=0.4)


def test_codec_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the codec's latents are \(1, 4, 4\), the backbone takes \(2, 4, 4\)"):
        DriftingGenerator(build().network, Identity(SIDE, 1))
