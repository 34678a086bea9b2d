"""BiFlow's denoising modes, perceptual terms and guidance by two passes (docs/biflow.md, B13 to B17)."""

import pytest
import torch
from torch import nn

from genflow.backbones import GroupedMLP, GroupedTransformer
from genflow.codecs import Identity
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.feature_encoders import ConvNet
from genflow.flow_teachers import CouplingFlow, TARFlow
from genflow.generators.reverse import TwoPassGenerator
from genflow.guidance import ClassifierFreeGuidance
from genflow.inverse_heads import HiddenAlignment, NaiveDistillation
from genflow.losses import AdaptiveWeighting, FeatureDistance, SquaredError
from genflow.methods import BiFlow
from genflow.methods.perceptual import PerceptualSection, PerceptualTerm

SIZE, CHANNELS, PATCH, CLASSES, BLOCKS = 4, 2, 2, 3, 2
NOISE_STD = 0.3


class Upsampling(Codec):
    """Three-channel images of twice the side, by a map with parameters."""

    latent_shape = (CHANNELS, SIZE, SIZE)

    def __init__(self):
        super().__init__()
        self.map = nn.ConvTranspose2d(CHANNELS, 3, 2, stride=2)

    def normalize(self, latents):
        return latents

    def decode(self, samples):
        return self.map(samples)


def make_method(denoise_layers=1, head=HiddenAlignment, width=16, **options):
    torch.manual_seed(0)
    teacher = TARFlow(SIZE, CHANNELS, PATCH, 16, BLOCKS, 1, CLASSES, head_width=8, prefix_tokens=2, bound=3.0)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.15)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, width, 2, BLOCKS, 1, denoise_layers, CLASSES, 2, 1)
    loss = AdaptiveWeighting(SquaredError())
    inverse = head(backbone) if head is NaiveDistillation else head(backbone, loss)
    return BiFlow(teacher, inverse, Upsampling(), loss, NOISE_STD, **options)


def make_perceptual(crop=8):
    return PerceptualSection(
        {"features": PerceptualTerm(AdaptiveWeighting(FeatureDistance(ConvNet(3, [4, 8], 2))), weight=0.4)}, crop
    )


def make_batch(batch=8, seed=1):
    images = torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(batch) % CLASSES, Draws(0, torch.arange(batch))


def spy_on_reconstruction(method):
    seen = {}
    method.reconstruction.register_forward_pre_hook(lambda _, inputs: seen.update(sample=inputs[0], target=inputs[1]))
    return seen


@pytest.mark.parametrize("denoising", ["learned", "score", "none"])
def test_target_is_clean_only_where_denoising_is_learned(denoising):
    method = make_method(denoising=denoising)
    seen = spy_on_reconstruction(method)
    images, labels, draws = make_batch()
    method(images, labels, draws)
    noise = NOISE_STD * draws.normal("data noise", images.shape[1:])
    assert torch.equal(seen["target"], images if denoising == "learned" else images + noise)


def test_score_denoising_samples_with_one_more_evaluation_of_the_teacher():
    method, plain = make_method(denoising="score"), make_method(denoising="none")
    for module in (method, plain):
        nn.init.normal_(module.inverse.backbone.output.weight, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, CLASSES])
    noisy = plain.generator.sample(labels, 0, decode=False)
    clean = method.generator.sample(labels, 0, decode=False)
    assert torch.allclose(clean, method.teacher.denoise(noisy, labels, NOISE_STD), atol=1e-6)
    assert not torch.allclose(clean, noisy, atol=1e-3)
    assert (method.generator.nfe, plain.generator.nfe) == (2, 1)
    # The artifact is the reverse model alone.
    assert method.artifact_module is method.inverse.backbone
    assert not any(name.startswith("generator") for name in method.trained_state())


@pytest.mark.slow
def test_learned_denoising_beats_none_by_the_noise():
    """Mean squared errors to clean data differ by the variance of the noise.

    The corners of a square are far enough apart to be told under the noise; the flow is the identity.
    """
    errors = {}
    for denoising in ("learned", "none"):
        torch.manual_seed(0)
        teacher, backbone = CouplingFlow(2, blocks=2, width=8), GroupedMLP(1, 2, 64, groups=2, layers=1)
        loss, codec = SquaredError(), Identity(1, channels=2)
        inverse = HiddenAlignment(backbone, loss)
        method = BiFlow(teacher, inverse, codec, loss, NOISE_STD, denoising=denoising)
        optimizer = torch.optim.AdamW(method.trained_parameters().values(), lr=5e-3)
        for step in range(300):
            draws = Draws(0, torch.arange(256) + 256 * step)
            corners = 2.0 * (draws.uniform("corner", (2, 1, 1)) < 0.5) - 1
            terms = method(corners, torch.zeros(256, dtype=torch.int64), draws)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            method.after_update()
            errors.setdefault(denoising, []).append(terms["mean_squared_error"].item())
    late = {name: sum(values[-50:]) / 50 for name, values in errors.items()}
    assert late["none"] - late["learned"] == pytest.approx(NOISE_STD**2, rel=0.1)


def test_eight_samples_of_fixed_noise_are_learned_by_heart():
    """Reconstruction and alignment fall below 1e-3, and G(F(x~)) is x."""
    torch.manual_seed(0)
    teacher = TARFlow(SIZE, CHANNELS, PATCH, 16, BLOCKS, 1, CLASSES, head_width=8, prefix_tokens=2, bound=3.0)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.15)
    loss = SquaredError("mean")
    backbone = GroupedMLP(SIZE, CHANNELS, 128, groups=BLOCKS, layers=1, num_classes=CLASSES)
    inverse = HiddenAlignment(backbone, loss, trajectory_norm="none")
    method = BiFlow(teacher, inverse, Identity(SIZE, CHANNELS), loss, NOISE_STD)
    optimizer = torch.optim.AdamW(method.trained_parameters().values(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    images, labels, draws = make_batch()
    for _ in range(400):
        terms = method(images, labels, draws)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        schedule.step()
    for name in ("align_0", "align_1", "reconstruction"):
        assert terms[name].item() < 1e-3
    with torch.no_grad():
        latent = teacher(images + NOISE_STD * draws.normal("data noise", images.shape[1:]), labels).latent
        samples = method.generator(latent, method.generator.condition(labels, 0.0))
    assert (samples - images).square().mean().item() < 1e-3


def test_perceptual_terms_are_named_weighted_and_added():
    method = make_method(perceptual=make_perceptual())
    images, labels, draws = make_batch()
    seen = spy_on_reconstruction(method)
    terms = method(images, labels, draws)
    names = [name for name in terms if name.startswith(("align", "reconstruction", "perceptual"))]
    assert "perceptual_features" in names
    assert terms["loss"].item() == pytest.approx(sum(terms[name].item() for name in names), rel=1e-6)
    distance = method.perceptual(method.codec.decode(seen["sample"]), method.codec.decode(images), draws)
    assert terms["perceptual_features"].item() == pytest.approx(distance["features"].mean().item(), rel=1e-5)
    assert 0.3 < terms["perceptual_features"].item() <= 0.4


def test_perceptual_gradient_passes_frozen_networks_into_the_reverse_model_only():
    method = make_method(perceptual=make_perceptual())
    method.reconstruction = SquaredError()
    method.reconstruction.forward = lambda prediction, target: prediction.flatten(1).sum(dim=1) * 0
    images, labels, draws = make_batch()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    terms = method.train()(images, labels, draws)
    terms["loss"].backward()
    assert method.inverse.backbone.output.weight.grad.abs().max() > 0  # through decoder and encoder alone
    for frozen in (method.codec, method.perceptual, method.teacher):
        assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
        assert not any(module.training for module in frozen.modules())
    torch.optim.AdamW(method.trained_parameters().values(), lr=1e-2).step()
    for name, value in method.state_dict().items():
        if name.startswith(("codec.", "perceptual.", "teacher.")):
            assert torch.equal(value, before[name]), name
    assert not any(name.startswith("perceptual") for name in method.trained_state())


def test_two_pass_guidance_drops_labels_and_tells_no_scale():
    method = make_method(guidance=ClassifierFreeGuidance(), default_guidance=1.5)
    assert isinstance(method.generator, TwoPassGenerator) and method.generator.per_group
    assert method.generator.default_guidance == 1.5
    seen = []
    method.inverse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    images, labels, draws = make_batch(200)
    method(images, labels, draws)
    (condition,) = seen
    assert not condition.guidance.any() and 5 < (condition.labels == CLASSES).sum() < 45


def test_naive_distillation_trains_on_the_reconstruction_alone_and_guides_the_sample():
    method = make_method(head=NaiveDistillation, guidance=ClassifierFreeGuidance())
    assert not method.generator.per_group
    terms = method(*make_batch())
    assert terms["loss"].item() == terms["reconstruction"].item()
    assert not any(name.startswith("align") for name in terms)


def test_sampling_needs_no_latent_of_the_teacher():
    """One pass from noise: the teacher is not called unless its score is asked for."""
    method, calls = make_method(), []
    method.teacher.register_forward_hook(lambda *_: calls.append(1))
    method.generator(torch.randn(2, CHANNELS, SIZE, SIZE), Condition(torch.tensor([0, 1]), torch.zeros(2)))
    assert not calls
