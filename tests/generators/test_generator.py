"""Generators: image i of a seed is the same in any batch; guidance defaults; the flow's inverse by hand."""

import pytest
import torch

from genflow.backbones import GroupedTransformer
from genflow.codecs.base import Codec
from genflow.codecs.identity import Identity
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.flow_teachers import TARFlow
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator

SIZE, CHANNELS, PATCH, CLASSES = 4, 2, 2, 3
LABELS = torch.tensor([0, 1, 2, CLASSES, 1, 0, 2])


class Halving(Codec):
    """Images are half the samples."""

    latent_shape = (CHANNELS, SIZE, SIZE)

    def decode(self, samples):
        return samples / 2


def make_one_pass(codec=None, **options):
    torch.manual_seed(0)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, 2, 1, 1, CLASSES, 3, 2)
    for parameter in backbone.parameters():
        if parameter.dim() == 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return OnePassGenerator(backbone, codec or Identity(SIZE, CHANNELS), **options)


def make_flow_generator(codec=None, noise_std=0.3, classes=CLASSES, **options):
    torch.manual_seed(0)
    flow = TARFlow(SIZE, CHANNELS, PATCH, 16, 3, 1, classes, head_width=8, prefix_tokens=2)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return FlowGenerator(flow, codec or Identity(SIZE, CHANNELS), noise_std, **options)


@pytest.fixture(params=[make_one_pass, make_flow_generator], ids=["one-pass", "flow"])
def make(request):
    return request.param


def record_noise(generator):
    noises = []
    generator.register_forward_pre_hook(lambda _, arguments: noises.append(arguments[0]))
    return noises


def test_image_of_a_seed_and_number_is_the_same_in_any_batch(make):
    generator = make()
    noises = record_noise(generator)
    whole = generator.sample(LABELS, seed=5, guidance=1.5, decode=False)
    for sizes in ([1] * 7, [3, 4], [2, 5]):
        parts, first = [], 0
        for size in sizes:
            part = LABELS[first : first + size]
            parts.append(generator.sample(part, seed=5, guidance=1.5, first_index=first, decode=False))
            first += size
        assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
    for parts in (noises[1:8], noises[8:10], noises[10:]):
        assert torch.equal(torch.cat(parts), noises[0])
    assert torch.equal(noises[0], Draws(5, torch.arange(7)).normal("sampling noise", (CHANNELS, SIZE, SIZE)))


def test_seeds_and_numbers_give_different_images(make):
    generator, labels = make(), torch.zeros(3, dtype=torch.int64)
    one, other = (generator.sample(labels, seed=seed, decode=False) for seed in (1, 2))
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-2
    assert (one[0] - one[1]).abs().max() > 1e-2


def test_sampling_ignores_and_leaves_global_random_state(make):
    generator = make()
    torch.manual_seed(1)
    one = generator.sample(LABELS, seed=5)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(generator.sample(LABELS, seed=5), one) and not one.requires_grad


def test_default_and_explicit_guidance(make):
    plain, guided = make(), make(default_guidance=2.0)
    two = guided.sample(LABELS, seed=0, guidance=2.0, decode=False)
    assert torch.equal(guided.sample(LABELS, seed=0, decode=False), two)
    assert torch.equal(plain.sample(LABELS, seed=0, guidance=2.0, decode=False), two)
    zero = plain.sample(LABELS, seed=0, decode=False)
    assert torch.equal(guided.sample(LABELS, seed=0, guidance=0.0, decode=False), zero)
    labelled = LABELS < CLASSES
    assert (zero - two).abs().amax(dim=(1, 2, 3))[labelled].min() > 1e-4


def test_images_are_decoded_and_clipped(make):
    generator = make(Halving())
    samples = 3 * generator.sample(LABELS, seed=0, decode=False)
    generator.register_forward_hook(lambda *arguments: 3 * arguments[-1])
    images = generator.sample(LABELS, seed=0)
    assert torch.equal(images, (samples / 2).clamp(-1, 1))
    assert images.max() == 1 and images.min() == -1


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_one_pass_runs_every_group_once_at_any_scale(scale):
    generator = make_one_pass()
    calls = []
    groups = [*generator.network.group_layers, generator.network.denoise_layers]
    for index, group in enumerate(groups):
        group.register_forward_hook(lambda _, arguments, __, index=index: calls.append((index, len(arguments[0]))))
    generator.sample(LABELS, seed=0, guidance=scale)
    assert calls == [(1, 7), (0, 7), (2, 7)]  # groups 1, 0, then the denoising one: one pass, no second branch
    assert generator.nfe == 1


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_flow_generator_is_the_inverse_and_a_score_step(scale):
    generator = make_flow_generator()
    flow = generator.network
    noise = Draws(5, torch.arange(7)).normal("sampling noise", (CHANNELS, SIZE, SIZE))
    noisy = flow.inverse(noise, LABELS, scale)
    leaf = noisy.clone().requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(leaf, LABELS).sum(), leaf)
    by_hand = noisy + 0.3**2 * score
    found = generator.sample(LABELS, seed=5, guidance=scale, decode=False)
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert not torch.allclose(found, noisy, atol=1e-3)
    without = make_flow_generator(noise_std=0.0).sample(LABELS, seed=5, guidance=scale, decode=False)
    assert torch.allclose(without, noisy, atol=1e-5)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_flow_generator_scales_the_noise_by_the_tracked_prior():
    generator = make_flow_generator(noise_std=0.0)
    noise = torch.ones(1, CHANNELS, SIZE, SIZE)
    condition = Condition(labels=torch.tensor([0]))
    generator.network.prior_variance.fill_(4.0)
    found = generator(noise, condition)
    generator.network.prior_variance.fill_(1.0)
    assert torch.equal(found, generator(2 * noise, condition))


def test_numbers_of_evaluations():
    tokens = (SIZE // PATCH) ** 2
    assert make_flow_generator().nfe == 3 * tokens + 1
    assert make_flow_generator(noise_std=0.0).nfe == 3 * tokens
    torch.manual_seed(0)
    published = TARFlow(SIZE, CHANNELS, PATCH, 16, 3, 1, head_width=8)
    assert FlowGenerator(published, Identity(SIZE, CHANNELS), 0.0).nfe == 3 * (tokens - 1)


def test_unconditional_flow_ignores_labels():
    generator = make_flow_generator(classes=0)
    one = generator.sample(torch.zeros(2, dtype=torch.int64), seed=0)
    assert torch.equal(generator.sample(torch.ones(2, dtype=torch.int64), seed=0), one)


def test_missing_condition_is_named():
    with pytest.raises(ValueError, match=r"needs Condition\.guidance"):
        make_one_pass()(torch.zeros(1, CHANNELS, SIZE, SIZE), Condition(labels=torch.tensor([0])))


def test_an_evaluation_is_one_forward_pass():
    noise, condition = torch.randn(2, CHANNELS, SIZE, SIZE), Condition(labels=torch.tensor([0, 1]))
    generator = make_flow_generator()
    assert torch.equal(generator.evaluate(noise, condition), generator.network(noise, condition.labels).latent)
    condition = Condition(labels=torch.tensor([0, 1]), guidance=torch.zeros(2))
    generator = make_one_pass()
    assert torch.equal(generator.evaluate(noise, condition), generator(noise, condition))


def test_what_samples_are_made_of_can_be_drawn(make):
    generator = make()
    noises = record_noise(generator)
    generator.sample(LABELS, seed=5, guidance=1.5)
    noise, condition = generator.draw(Draws(5, torch.arange(7)), LABELS, 1.5)
    assert torch.equal(noise, noises[0]) and torch.equal(condition.labels, LABELS)
    assert condition.guidance.tolist() == [1.5] * 7 and condition.style is None


def test_a_draw_gives_noise_to_several_samples_that_follow_each_other(make):
    generator, draws = make(), Draws(5, torch.arange(3))
    labels, scales = torch.arange(3).repeat_interleave(4), torch.linspace(0, 1, 12)
    noise, condition = generator.draw(draws, labels, scales)
    assert noise.shape == (12, CHANNELS, SIZE, SIZE) and len(noise.flatten(1).unique(dim=0)) == 12
    assert torch.equal(noise, draws.normal("sampling noise", (4, CHANNELS, SIZE, SIZE)).flatten(0, 1))
    assert torch.equal(condition.guidance, scales) and torch.equal(condition.labels, labels)
    assert torch.equal(generator.draw(draws[1:2], labels[4:8])[0], noise[4:8])
    training = generator.draw(draws, labels, prefix="")[0]
    assert torch.equal(training, draws.normal("noise", (4, CHANNELS, SIZE, SIZE)).flatten(0, 1))
    assert not torch.equal(training, noise)


def test_labels_may_be_a_list(make):
    generator = make()
    assert torch.equal(generator.sample(LABELS.tolist(), seed=5), generator.sample(LABELS, seed=5))


def test_sizes_and_place_are_those_of_the_network(make):
    generator = make()
    assert generator.noise_shape == (CHANNELS, SIZE, SIZE) and generator.num_classes == CLASSES
    assert generator.device == torch.device("cpu") and generator.to("meta").device == torch.device("meta")
