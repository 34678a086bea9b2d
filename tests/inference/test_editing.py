"""Editing without training (docs/biflow.md, B18, B19), on networks of random weights."""

import pytest
import torch
from torch import nn

from genflow.backbones import GroupedTransformer
from genflow.codecs import Identity
from genflow.codecs.base import Codec
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.flow_teachers import CouplingFlow, TARFlow
from genflow.guidance import TrainingTimeCFG
from genflow.inference.editing import class_edit, edit_pictures, encode, inpaint, paste, pixel_shape, reduce_mask
from genflow.inverse_heads import HiddenAlignment
from genflow.losses import SquaredError
from genflow.methods import BiFlow

SIZE, CHANNELS, PATCH, CLASSES = 8, 1, 2, 3
NOISE_STD = 0.3
SEED = 5


class Halving(Codec):
    """Latents are means of 2 x 2 pixels, normalised by 3 x - 1."""

    latent_shape = (CHANNELS, SIZE, SIZE)

    def encode(self, images):
        return nn.functional.avg_pool2d(images, 2)

    def normalize(self, latents):
        return 3 * latents - 1

    def decode(self, samples):
        return nn.functional.interpolate((samples + 1) / 3, scale_factor=2)


def make_method(codec=None):
    torch.manual_seed(0)
    teacher = TARFlow(SIZE, CHANNELS, PATCH, 16, 2, 1, CLASSES, head_width=8, prefix_tokens=2, bound=3.0)
    head = HiddenAlignment(GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, 2, 1, 1, CLASSES, 2, 1), SquaredError())
    codec = codec or Identity(SIZE, CHANNELS)
    method = BiFlow(teacher, head, codec, SquaredError(), NOISE_STD, TrainingTimeCFG())
    for parameter in method.parameters():  # the output maps of both networks start at zero
        nn.init.normal_(parameter, std=0.2)
    return method.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def method():
    return make_method()


def batch(count=6):
    images = torch.rand(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return images, torch.arange(count) % CLASSES, Draws(SEED, torch.arange(count))


def hole(rows=slice(None), columns=slice(None), size=SIZE):
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[rows, columns] = False
    return mask


def generate(method, noise, labels, guidance=None):
    return method.generator(noise, method.generator.condition(labels, guidance))


def test_encoding_is_the_flow_of_noisy_data(method):
    images, labels, draws = batch()
    latent = encode(method, images, labels, draws)
    noise = (method.teacher.inverse(latent, labels) - images) / NOISE_STD
    assert noise.mean().abs() < 0.15 and noise.std() == pytest.approx(1, abs=0.1)
    assert torch.equal(latent, encode(method, images, labels, draws))
    assert not torch.allclose(latent, encode(method, images, labels, Draws(SEED + 1, draws.positions)))
    assert not torch.allclose(latent, encode(method, images, (labels + 1) % CLASSES, draws))


def test_inpainting_without_a_hole_is_reconstruction(method):
    images, labels, draws = batch()
    reconstruction = generate(method, encode(method, images, labels, draws), labels, 1.5)
    assert torch.equal(inpaint(method, images, hole(slice(0)), labels, draws, 1.5), reconstruction)
    assert torch.equal(class_edit(method, images, labels, labels, draws, 1.5), reconstruction)


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_inpainting_a_hole_that_is_everything_is_sampling(method, fill):
    images, labels, draws = batch()
    samples = method.generator.sample(labels, SEED, 1.5, decode=False)
    assert torch.equal(inpaint(method, images, hole(), labels, draws, 1.5, fill), samples)


def test_class_edit_encodes_with_the_old_class_and_generates_the_new(method):
    images, old, draws = batch()
    new = (old + 1) % CLASSES
    expected = generate(method, encode(method, images, old, draws), new, [0.0, 2.0])
    assert torch.equal(class_edit(method, images, old, new, draws, [0.0, 2.0]), expected)
    assert not torch.allclose(class_edit(method, images, old, old, draws, [0.0, 2.0]), expected)


class Recorder(nn.Module):
    """Stands for a generator; its samples are the noise that it is given."""

    def condition(self, labels, guidance):
        return None

    def forward(self, noise, condition):
        return noise


@pytest.fixture
def noise_of():
    """Inpainting that returns the noise given to the generator."""
    recorded = make_method()
    recorded.generator = Recorder()
    return lambda *arguments, **options: inpaint(recorded, *arguments, **options)


def test_a_patch_with_one_unknown_pixel_is_new_noise(noise_of):
    images, labels, draws = batch()
    fresh = draws.normal("sampling noise", images.shape[1:])
    noise = noise_of(images, hole(3, 4), labels, draws)  # one pixel of the patch in row 1, column 2
    assert torch.equal(noise[..., 2:4, 4:6], fresh[..., 2:4, 4:6])
    new = noise == fresh
    assert new.sum() == len(images) * PATCH**2


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_the_hole_is_filled_before_encoding(method, noise_of, fill):
    images, labels, draws = batch()
    mask = hole(slice(4, 8))
    filled = images.clone()
    filled[..., 4:, :] = images[..., :4, :].mean((-2, -1), keepdim=True) if fill == "mean" else 0.0
    noise = noise_of(images, mask, labels, draws, fill=fill)
    assert torch.allclose(noise[..., :4, :], encode(method, filled, labels, draws)[..., :4, :], atol=1e-5)
    images[..., 4:, :] = 7.0  # what is in the hole has no influence
    assert torch.equal(noise_of(images, mask, labels, draws, fill=fill), noise)


def test_every_image_may_have_a_mask_of_its_own(method):
    images, labels, draws = batch(2)
    masks = torch.stack([hole(slice(4, 8)), hole(columns=slice(0, 4))])
    both = inpaint(method, images, masks, labels, draws)
    for index in range(2):
        part = slice(index, index + 1)
        alone = inpaint(method, images[part], masks[index], labels[part], draws[part])
        assert torch.allclose(both[part], alone, atol=1e-5)


def test_a_mask_of_pixels_is_reduced_to_the_latents():
    """8 x 8 latents of 16 x 16 pixels: the zero of the latents' normalised space fills, in whole latents."""
    method = make_method(Halving())
    images, labels, draws = batch()
    assert pixel_shape(method.codec) == (CHANNELS, 2 * SIZE, 2 * SIZE)
    mask = hole(slice(7, 8), slice(10, 13), size=2 * SIZE)  # latents in row 3, columns 5 and 6
    assert torch.equal(reduce_mask(mask, SIZE), hole(3, slice(5, 7)))
    assert torch.equal(
        inpaint(method, images, mask, labels, draws, fill="zero"),
        inpaint(method, images, hole(3, slice(5, 7)), labels, draws, fill="zero"),
    )


def test_reduce_mask():
    mask = hole(0, 3, size=6)
    assert reduce_mask(mask, 3).tolist() == [[True, False, True], [True] * 3, [True] * 3]
    assert torch.equal(reduce_mask(torch.stack([mask, ~mask]), 6), torch.stack([mask, ~mask]))
    with pytest.raises(ValueError, match=r"a mask of \(6, 6\) does not divide into 4 x 4 cells"):
        reduce_mask(mask, 4)


def test_paste_keeps_known_pixels_and_nothing_else():
    images, _, _ = batch()
    mask = hole(slice(2, 5), 3)
    pasted = paste(images, torch.full_like(images, 9.0), mask)
    assert torch.equal(pasted[..., mask], images[..., mask])
    assert (pasted[..., ~mask] == 9).all() and (~mask).sum() == 3


@pytest.mark.parametrize("stored", [True, False])
def test_batches_do_not_change_edits(stored):
    method = make_method(Halving())
    images, labels, _ = batch(7)
    other = (labels + 1) % CLASSES
    images = images if stored else nn.functional.interpolate(images, scale_factor=2)

    def edit(part, old, new, draws):
        assert part.shape[1:] == method.codec.latent_shape
        assert torch.equal(old, labels[draws.positions]) and torch.equal(new, other[draws.positions])
        assert draws.seed == SEED
        return inpaint(method, part, hole(slice(4, 8)), old, draws)

    def run(batch_size):
        counts = []
        edited = edit_pictures(method, edit, images, (labels, other), SEED, stored, batch_size, counts.append)
        assert sum(counts) == 7 and counts[:-1] == [batch_size] * (len(counts) - 1)
        return edited

    (before, after), (split_before, split_after) = run(7), run(3)
    assert torch.equal(before, split_before)
    assert torch.allclose(after, split_after, atol=1e-5)
    assert after.abs().max() <= 1 and after.shape == before.shape == (7, CHANNELS, 2 * SIZE, 2 * SIZE)
    if not stored:
        assert torch.equal(before, images)


def test_a_flow_without_patches_is_refused():
    method = make_method()
    images, labels, draws = batch()
    method.teacher = CouplingFlow(2, 2, 4)
    with pytest.raises(UserError, match="CouplingFlow does not work in patches"):
        inpaint(method, images, hole(slice(4, 8)), labels, draws)


def test_samples_that_are_not_finite_are_refused():
    method = make_method()
    images, labels, draws = batch()
    nn.init.constant_(method.inverse.backbone.output.bias, float("inf"))
    with pytest.raises(UserError, match="samples that are not finite"):
        class_edit(method, images, labels, labels, draws)


def test_wrong_guidance_is_refused(method):
    images, labels, draws = batch()
    with pytest.raises(UserError, match="found 3 scales, expected 1 or 2"):
        class_edit(method, images, labels, labels, draws, [1.0, 2.0, 3.0])
