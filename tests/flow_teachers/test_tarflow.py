"""Invariants of flows, for every combination of options (BiFlow spec, section 4)."""

import itertools

import pytest
import torch

from genflow.flow_teachers.tarflow import TARFlow
from genflow.layers.patches import patchify, unpatchify

SIDE, CHANNELS, PATCH, CLASSES = 4, 2, 2, 3  # T = 4 tokens of D = 8 features
IMPROVED = {"norm": "rms", "feedforward": "swiglu", "qk_norm": True}
STYLES = {
    f"{positions}-prefix{prefix}-bound{bound}-{'improved' if style else 'published'}": {
        "positions": positions,
        "prefix_tokens": prefix,
        "bound": bound,
        **style,
    }
    for positions, prefix, bound, style in itertools.product(
        ("learned", "rotary"), (0, 3), (None, 1.0), ({}, IMPROVED)
    )
}


def make_flow(blocks=3, scale=0.12, seed=0, classes=CLASSES, **options):
    """A flow in float64 with random weights, output maps included, small enough to be tame."""
    torch.manual_seed(seed)
    flow = TARFlow(SIDE, CHANNELS, PATCH, 16, blocks, 1, classes, head_width=8, **options).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return flow


def make_data(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x, torch.arange(batch) % (CLASSES + 1)


@pytest.fixture(params=STYLES.values(), ids=STYLES)
def style(request):
    return request.param


def test_log_determinant_is_that_of_the_jacobian(style):
    flow = make_flow(**style)
    x, labels = make_data(batch=2)
    trajectory = flow(x, labels)
    size = x[0].numel()
    for row in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(
            lambda image, row=row: flow(image[None], labels[row : row + 1]).latent[0].flatten(), x[row]
        ).reshape(size, size)
        sign, log_det = torch.linalg.slogdet(jacobian)
        assert sign == 1
        assert trajectory.log_det[row].item() == pytest.approx(log_det.item() / size, abs=1e-12)


def test_block_jacobian_is_triangular_in_block_order(style):
    flow = make_flow(**style)
    x, labels = make_data(batch=1)
    tokens = patchify(x, PATCH)
    count, features = tokens.shape[1:]
    for index, block in enumerate(flow.flow_blocks):
        jacobian = torch.autograd.functional.jacobian(lambda u, block=block: block(u[None], labels)[0][0], tokens[0])
        if index % 2:  # reversed raster order
            jacobian = jacobian.flip(0, 2)
        for i in range(count):
            assert not jacobian[i, :, i + 1 :].any()
            diagonal_block = jacobian[i, :, i]
            assert torch.equal(diagonal_block, torch.diag(diagonal_block.diag()))
            assert (diagonal_block.diag() > 0).all()
        earlier = [jacobian[i, :, :i].abs().sum() for i in range(1, count)]
        assert all(value > 0 for value in earlier)
        log_det = torch.stack([jacobian[i, :, i].diag().log().sum() for i in range(count)]).sum()
        ours = block(tokens, labels)[1][0] * count * features
        assert ours.item() == pytest.approx(log_det.item(), abs=1e-10)


def test_causality(style):
    flow = make_flow(**style)
    x, labels = make_data()
    tokens = patchify(x, PATCH)
    for index, block in enumerate(flow.flow_blocks):
        before = block(tokens, labels)[0]
        for token in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[:, token] += 1.0
            after = block(changed, labels)[0]
            unaffected = slice(token + 1, None) if index % 2 else slice(0, token)
            assert torch.equal(after[:, unaffected], before[:, unaffected])


def test_first_token(style):
    flow = make_flow(**style)
    x, _ = make_data()
    tokens = patchify(x, PATCH)
    for index, block in enumerate(flow.flow_blocks):
        first = -1 if index % 2 else 0
        outputs = [block(tokens, torch.full((len(x),), label))[0][:, first] for label in (0, 1)]
        if style["prefix_tokens"]:
            assert not torch.allclose(outputs[0], outputs[1])
        else:
            assert torch.equal(outputs[0], tokens[:, first]) and torch.equal(outputs[1], tokens[:, first])


def test_round_trip_both_ways(style):
    flow = make_flow(**style)
    x, labels = make_data()
    for given in (labels, torch.full_like(labels, -1), None):
        z = flow(x, given).latent
        assert (flow.inverse(z, given) - x).abs().max() < 1e-10
        data = flow.inverse(x, given)
        assert (flow(data, given).latent - x).abs().max() < 1e-10
    single, z = make_flow(**style).float(), None
    z = single(x.float(), labels).latent
    assert z.dtype == torch.float32
    assert (single.inverse(z, labels) - x.float()).abs().max() < 1e-4


def test_inverse_leaves_its_input_alone_and_repeats(style):
    flow = make_flow(**style)
    z, labels = make_data()
    copy = z.clone()
    first = flow.inverse(z, labels, 1.5)
    assert torch.equal(z, copy)
    assert torch.equal(flow.inverse(z, labels, 1.5), first)


def test_cached_inverse_equals_recomputation(style):
    """The same inverse without a cache: the whole forward network again for every token."""
    flow = make_flow(blocks=2, **style)
    z, labels = make_data()
    tokens = patchify(z, PATCH)
    for block in reversed(flow.flow_blocks):
        v = block._ordered(tokens)
        u = v.clone()
        for token in range(v.shape[1]):
            # The forward map of the current guess gives token's affine map from tokens before it.
            out = block._ordered(block(block._ordered(u), labels)[0])
            moved = u.clone()
            moved[:, token] += 1.0
            out_moved = block._ordered(block(block._ordered(moved), labels)[0])
            slope = out_moved[:, token] - out[:, token]
            u[:, token] = u[:, token] + (v[:, token] - out[:, token]) / slope
        tokens = block._ordered(u)
    expected = unpatchify(tokens, PATCH, CHANNELS)
    assert (flow.inverse(z, labels) - expected).abs().max() < 1e-9


def test_zero_output_maps_are_the_identity(style):
    flow = make_flow(**style)
    for block in flow.flow_blocks:
        torch.nn.init.zeros_(block.out.weight)
        torch.nn.init.zeros_(block.out.bias)
    x, labels = make_data()
    trajectory = flow(x, labels)
    assert torch.equal(trajectory.latent, x)
    assert not trajectory.log_det.any()


def test_guidance_without_class_changes_nothing(style):
    flow = make_flow(**style)
    z, labels = make_data()
    null = torch.full_like(labels, CLASSES)
    assert torch.allclose(flow.inverse(z, null, 2.0), flow.inverse(z, null), atol=1e-10)
    unlabelled = make_flow(classes=0, **style)
    assert torch.allclose(unlabelled.inverse(z, None, 2.0), unlabelled.inverse(z, None), atol=1e-10)
    with_temperature = unlabelled.inverse(z, None, 2.0, temperature=0.5)
    assert not torch.allclose(with_temperature, unlabelled.inverse(z, None), atol=1e-6)


def test_guidance_zero_never_runs_the_null_branch(monkeypatch):
    flow = make_flow()
    z, labels = make_data()
    batches = []
    original = type(flow.flow_blocks[0])._network

    def record(self, hidden, *arguments):
        batches.append(len(hidden))
        return original(self, hidden, *arguments)

    monkeypatch.setattr(type(flow.flow_blocks[0]), "_network", record)
    flow.inverse(z, labels, 0.0)
    assert set(batches) == {len(z)}
    assert len(batches) == flow.inverse_evaluations
    batches.clear()
    flow.inverse(z, labels, 1.0)
    assert set(batches) == {2 * len(z)}


def test_guidance_scale_per_sample():
    flow = make_flow(**STYLES["rotary-prefix3-boundNone-improved"])
    z, labels = make_data()
    scales = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    together = flow.inverse(z, labels, scales)
    for row, scale in enumerate(scales.tolist()):
        alone = flow.inverse(z[row : row + 1], labels[row : row + 1], scale)
        assert torch.allclose(together[row], alone[0], atol=1e-10)


def test_bound(style):
    flow = make_flow(scale=3.0, **style)
    x, labels = make_data()
    trajectory = flow(x, labels)
    if style["bound"] is None:
        assert trajectory.saturation == 0
        return
    assert trajectory.saturation > 0.1
    assert trajectory.log_det.abs().max() <= flow.blocks * style["bound"]
    assert (flow.inverse(trajectory.latent, labels) - x).abs().max() < 1e-8
    loose = make_flow(**{**style, "bound": 1e9})
    free = make_flow(**{**style, "bound": None})
    assert torch.equal(loose(x, labels).latent, free(x, labels).latent)


def test_null_class_is_the_mean_of_the_table():
    flow = make_flow()
    x, labels = make_data()
    null = flow(x, None).latent
    for value in (-1, CLASSES):
        assert torch.equal(flow(x, torch.full_like(labels, value)).latent, null)
    assert not torch.allclose(flow(x, torch.full_like(labels, CLASSES - 1)).latent, null)
    with torch.no_grad():
        flow.flow_blocks[0].classes.table[0] += 1.0
    assert not torch.allclose(flow(x, None).latent, null)


def test_label_above_the_null_class_is_refused():
    x, labels = make_data()
    with pytest.raises(IndexError):
        make_flow()(x, torch.full_like(labels, CLASSES + 1))


def test_score_agrees_with_finite_differences(style):
    flow = make_flow(**style)
    x, labels = make_data()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-5
    slope = (flow.log_prob(x + step * direction, labels) - flow.log_prob(x - step * direction, labels)) / (2 * step)
    exact = (flow.score(x, labels) * direction).flatten(1).sum(dim=1)
    assert torch.allclose(slope, exact, rtol=1e-6)


def test_denoising_of_a_gaussian_is_exact_and_independent_of_the_batch():
    x, labels = make_data()
    identity = make_flow(scale=0.0)
    assert torch.allclose(identity.denoise(x, labels, 0.3), x * (1 - 0.3**2), atol=1e-14)
    flow = make_flow()
    whole = flow.denoise(x, labels, 0.3)
    halves = torch.cat([flow.denoise(x[:2], labels[:2], 0.3), flow.denoise(x[2:], labels[2:], 0.3)])
    assert torch.allclose(whole, halves, atol=1e-12)


def test_shift_only_flow_has_no_log_determinant_and_tracks_its_prior():
    flow = make_flow(scaled=False)
    x, labels = make_data()
    flow.prior_variance.fill_(1.0)
    trajectory = flow(x, labels)
    assert not trajectory.log_det.any()
    flow.update_prior(trajectory.latent)
    square = patchify(trajectory.latent, PATCH).square().mean(dim=0)
    assert torch.allclose(flow.prior_variance, 0.9 + 0.1 * square)
    scaled = flow.sample_prior(torch.ones_like(x))
    assert torch.allclose(patchify(scaled, PATCH)[0], flow.prior_variance.sqrt())


def test_bfloat16_network_keeps_affine_arithmetic_in_float32(style):
    flow = make_flow(scale=0.1, **style).float()
    x, labels = make_data()
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            trajectory = flow(x.float(), labels)
        assert trajectory.latent.dtype == torch.float32 and trajectory.log_det.dtype == torch.float32
        losses.append(0.5 * trajectory.latent.square().mean() - trajectory.log_det.mean())
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch_size"):
        TARFlow(5, 1, 2, 16, 1, 1, head_width=8)
    with pytest.raises(ValueError, match="head_width"):
        TARFlow(4, 1, 2, 20, 1, 1, head_width=8)
    with pytest.raises(ValueError, match="lists 2 blocks"):
        TARFlow(4, 1, 2, 16, 3, [1, 2], head_width=8)
    assert len(TARFlow(4, 1, 2, 16, 2, [1, 3], head_width=8).flow_blocks[1].layers) == 3


def test_patches_run_row_by_row_and_channel_by_channel():
    ramp = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    tokens = patchify(ramp, 2)
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(unpatchify(tokens, 2, 2), ramp)
