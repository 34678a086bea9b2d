"""Invariants of flows, for every combination of options (docs/biflow.md, B1 to B10)."""

import itertools
import math

import pytest
import torch

from genflow.flow_teachers.flow_block import GuidedInverse
from genflow.flow_teachers.tarflow import TARFlow
from genflow.layers.patches import patchify, unpatchify
from genflow.layers.transformer import CachedLayer

SIDE, CHANNELS, PATCH, CLASSES = 4, 2, 2, 3  # T = 4 tokens of D = 8 features
IMPROVED = {"norm": "rms", "feedforward": "swiglu", "qk_norm": True}
BOUNDS = {"free": {}, "hard": {"bound": 1.0}, "soft": {"bound": 1.0, "clip": "soft"}}
LEADING = {"shifted": {}, "prefix": {"prefix_tokens": 3}, "start": {"start_token": True}}
# Every combination, for the invariants that make a flow one.
COMBINATIONS = {
    f"{positions}-{lead}-{bound}-{scale}-{'improved' if style else 'published'}": {
        "positions": positions,
        "scale": scale,
        **LEADING[lead],
        **BOUNDS[bound],
        **style,
    }
    for positions, lead, bound, scale, style in itertools.product(
        ("learned", "rotary"), LEADING, BOUNDS, ("exp", "softplus"), ({}, IMPROVED)
    )
}
# A few that hold every option and every pair of those that meet in the code, for the rest.
STYLES = {
    name: COMBINATIONS[name]
    for name in (
        "learned-shifted-free-exp-published",
        "learned-prefix-hard-exp-published",
        "rotary-shifted-hard-exp-improved",
        "rotary-prefix-free-exp-improved",
        "rotary-prefix-hard-softplus-improved",
        "learned-start-soft-softplus-published",
        "rotary-start-free-exp-improved",
        "rotary-start-soft-softplus-improved",
    )
}


def make_flow(blocks=3, std=0.12, seed=0, classes=CLASSES, layers=1, **options):
    """A flow in float64 with random weights, output maps included, small enough to be tame."""
    torch.manual_seed(seed)
    flow = TARFlow(SIDE, CHANNELS, PATCH, 16, blocks, layers, classes, head_width=8, **options).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return flow


def make_data(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x, torch.arange(batch) % (CLASSES + 1)


@pytest.fixture(params=STYLES.values(), ids=STYLES)
def style(request):
    return request.param


@pytest.fixture(params=COMBINATIONS.values(), ids=COMBINATIONS)
def combination(request):
    return request.param


def test_log_determinant_is_that_of_the_jacobian(combination):
    flow = make_flow(blocks=2, **combination)
    x, labels = make_data(batch=1)
    trajectory = flow(x, labels)
    size = x[0].numel()
    for row in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(
            lambda image, row=row: flow(image[None], labels[row : row + 1]).latent[0].flatten(), x[row]
        ).reshape(size, size)
        sign, log_det = torch.linalg.slogdet(jacobian)
        assert sign == 1
        assert trajectory.log_det[row].item() == pytest.approx(log_det.item() / size, abs=1e-12)


def test_block_jacobian_is_triangular_in_block_order(combination):
    flow = make_flow(blocks=2, **combination)
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


def test_causality(combination):
    flow = make_flow(blocks=2, **combination)
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
        if flow.inverse_evaluations == flow.blocks * tokens.shape[1]:
            assert not torch.allclose(outputs[0], outputs[1])
        else:
            assert torch.equal(outputs[0], tokens[:, first]) and torch.equal(outputs[1], tokens[:, first])


def test_round_trip_both_ways(combination):
    flow = make_flow(layers=[1, 2, 1], **combination)
    x, labels = make_data()
    for given in (labels, torch.full_like(labels, -1), None):
        z = flow(x, given).latent
        assert (flow.inverse(z, given) - x).abs().max() < 1e-10
        data = flow.inverse(x, given)
        assert (flow(data, given).latent - x).abs().max() < 1e-10
    single = flow.float()
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
    assert torch.allclose(trajectory.latent, x, atol=1e-14)
    assert trajectory.log_det.abs().max() < 1e-14


def test_guidance_without_class_changes_nothing(style):
    flow = make_flow(**style)
    z, labels = make_data()
    null = torch.full_like(labels, CLASSES)
    for rule in ("linear", "gaussian"):
        assert torch.allclose(flow.inverse(z, null, 2.0, rule=rule), flow.inverse(z, null), atol=1e-10)
        assert not torch.allclose(flow.inverse(z, labels, 2.0, rule=rule), flow.inverse(z, labels), atol=1e-6)
    unlabelled = make_flow(classes=0, **style)
    assert torch.allclose(unlabelled.inverse(z, None, 2.0), unlabelled.inverse(z, None), atol=1e-10)
    with_temperature = unlabelled.inverse(z, None, 2.0, temperature=0.5)
    assert not torch.allclose(with_temperature, unlabelled.inverse(z, None), atol=1e-6)


@pytest.mark.parametrize("lead", LEADING)
def test_guidance_zero_never_runs_the_null_branch(monkeypatch, lead):
    flow = make_flow(**LEADING[lead])
    z, labels = make_data()
    rows = []
    original = CachedLayer.__call__

    def record(self, x, start):
        rows.append(self.rows)
        return original(self, x, start)

    monkeypatch.setattr(CachedLayer, "__call__", record)
    flow.inverse(z, labels, 0.0)
    assert rows == [len(z)] * flow.inverse_evaluations
    assert len(rows) == flow.blocks * (4 if lead != "shifted" else 3)
    rows.clear()
    flow.inverse(z, labels, 1.0)
    assert rows == [2 * len(z)] * flow.inverse_evaluations


def test_annealing_ends_at_the_full_scale(monkeypatch):
    """The factor of the token j in block order is j / (T - 1), so 1 / (T - 1) first without leading tokens."""
    flow = make_flow()
    z, labels = make_data()
    factors = []
    original = GuidedInverse.combine

    def record(self, log_scale, shift, progress):
        factors.append(progress)
        return original(self, log_scale, shift, progress)

    monkeypatch.setattr(GuidedInverse, "combine", record)
    annealed = flow.inverse(z, labels, 2.0, anneal=True)
    assert factors == pytest.approx([1 / 3, 2 / 3, 1] * flow.blocks)
    monkeypatch.setattr(GuidedInverse, "combine", lambda self, *given: original(self, *given[:2], 1.0))
    assert torch.equal(flow.inverse(z, labels, 2.0, anneal=True), flow.inverse(z, labels, 2.0))
    assert not torch.allclose(annealed, flow.inverse(z, labels, 2.0))


def test_guidance_scale_per_sample():
    flow = make_flow(**COMBINATIONS["rotary-prefix-free-exp-improved"])
    z, labels = make_data()
    scales = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    together = flow.inverse(z, labels, scales)
    for row, scale in enumerate(scales.tolist()):
        alone = flow.inverse(z[row : row + 1], labels[row : row + 1], scale)
        assert torch.allclose(together[row], alone[0], atol=1e-10)


@pytest.mark.parametrize("scale", ["exp", "softplus"])
@pytest.mark.parametrize("clip", ["hard", "soft"])
def test_bound(clip, scale):
    flow = make_flow(std=0.5, bound=1.0, clip=clip, scale=scale)
    x, labels = make_data()
    trajectory = flow(x, labels)
    assert 0.1 < trajectory.saturation < 1
    assert trajectory.log_det.abs().max() <= flow.blocks
    assert (flow.inverse(trajectory.latent, labels) - x).abs().max() < 1e-8
    loose, free = make_flow(bound=1e6, clip=clip, scale=scale), make_flow(scale=scale)
    assert torch.allclose(loose(x, labels).latent, free(x, labels).latent, atol=1e-9)
    assert free(x, labels).saturation == 0
    # The network is the same: both clips report the same share of outputs that reach the bound in the first block.
    other = make_flow(blocks=1, std=0.5, bound=1.0, clip="hard" if clip == "soft" else "soft", scale=scale)
    same = make_flow(blocks=1, std=0.5, bound=1.0, clip=clip, scale=scale)
    assert other(x, labels).saturation == same(x, labels).saturation > 0


@pytest.mark.parametrize("clip", ["hard", "soft"])
def test_soft_clip_and_softplus_are_their_formulas(clip):
    """A block whose outputs are constants: v = (u - shift) / scale for every token but the first."""
    outputs = torch.tensor([0.3, -1.7, 2.5, 0.0, -0.4, 5.0, -9.0, 1.0], dtype=torch.float64)  # for scale and shift
    flow = make_flow(blocks=1, bound=2.0, clip=clip, scale="softplus")
    out = flow.flow_blocks[0].out
    torch.nn.init.zeros_(out.weight)
    with torch.no_grad():
        out.bias.copy_(outputs.repeat(2))
    bounded = outputs.clamp(-2, 2) if clip == "hard" else 2 * torch.tanh(outputs / 2)
    scale = torch.log1p((math.e - 1) * bounded.exp())
    x, labels = make_data()
    u = patchify(x, PATCH)
    trajectory = flow(x, labels)
    v = patchify(trajectory.latent, PATCH)
    assert torch.allclose(v[:, 1:], (u[:, 1:] - bounded) / scale, atol=1e-12)
    assert torch.allclose(trajectory.log_det, -scale.log().mean() * 3 / 4, atol=1e-12)


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
    identity = make_flow(std=0.0)
    assert torch.allclose(identity.denoise(x, labels, 0.3), x * (1 - 0.3**2), atol=1e-14)
    flow = make_flow()
    whole = flow.denoise(x, labels, 0.3)
    halves = torch.cat([flow.denoise(x[:2], labels[:2], 0.3), flow.denoise(x[2:], labels[2:], 0.3)])
    assert torch.allclose(whole, halves, atol=1e-12)


def test_weights_in_bfloat16(style):
    """The network rounds, the affine arithmetic and what it carries do not."""
    flow = make_flow(std=0.1, **style).float()
    x, labels = make_data()
    x = x.float()
    exact, inverse = flow(x, labels), flow.inverse(x, labels, 1.0)
    half = flow.to(torch.bfloat16)
    trajectory, sample = half(x, labels), half.inverse(x, labels, 1.0)
    assert {state.dtype for state in (*trajectory.states, trajectory.log_det, sample)} == {torch.float32}
    assert 0 < (trajectory.latent - exact.latent).abs().max() < 0.02
    assert 0 < (sample - inverse).abs().max() < 0.02
    assert (half.inverse(trajectory.latent, labels) - x).abs().max() < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(half.inverse(x, labels, 1.0), sample)
    for block, fresh in zip(half.flow_blocks, make_flow(**style).flow_blocks, strict=True):
        assert fresh.angles is None or torch.equal(block.angles, fresh.angles.float())


def test_inference_mode():
    flow = make_flow(**STYLES["rotary-prefix-free-exp-improved"])
    z, labels = make_data()
    with torch.inference_mode():
        inside = flow.inverse(z, labels, 1.0)
    assert torch.equal(inside, flow.inverse(z, labels, 1.0))


def test_bfloat16_network_keeps_affine_arithmetic_in_float32(style):
    flow = make_flow(std=0.1, **style).float()
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
    with pytest.raises(ValueError, match="start_token excludes prefix_tokens, found 2"):
        TARFlow(4, 1, 2, 16, 1, 1, head_width=8, prefix_tokens=2, start_token=True)
    with pytest.raises(ValueError, match="softplus"):
        TARFlow(4, 1, 2, 16, 1, 1, head_width=8, scaled=False, scale="softplus")


def test_patches_run_row_by_row_and_channel_by_channel():
    ramp = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    tokens = patchify(ramp, 2)
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(unpatchify(tokens, 2, 2), ramp)
