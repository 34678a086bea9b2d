"""Invariants of the affine coupling flow, and that it learns (docs/biflow.md, B3, B4, B7)."""

import itertools
import math

import pytest
import torch

from genflow.data import Toy2D
from genflow.draws import Draws
from genflow.flow_teachers import CouplingFlow
from genflow.registry import FLOW_TEACHERS

CASES = [(dimensions, bound) for dimensions in (2, 3, 5) for bound in (None, 0.7)]


def make_flow(dimensions=2, bound=None, blocks=3, scale=0.4):
    """A flow in float64 with random weights, output maps included."""
    torch.manual_seed(0)
    flow = CouplingFlow(dimensions, blocks, width=16, bound=bound).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return flow


def make_data(dimensions=2, batch=6, seed=1):
    return torch.randn(batch, dimensions, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dimensions", "bound"), CASES)
def test_log_determinant_is_that_of_the_jacobian(dimensions, bound):
    flow, x = make_flow(dimensions, bound), make_data(dimensions)
    trajectory = flow(x)
    assert trajectory.log_det.abs().min() > 1e-3
    for row in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None]).latent.flatten(), x[row])
        sign, log_det = torch.linalg.slogdet(jacobian.view(dimensions, dimensions))
        assert sign == 1
        assert trajectory.log_det[row].item() == pytest.approx(log_det.item() / dimensions, abs=1e-12)


@pytest.mark.parametrize(("dimensions", "bound"), CASES)
def test_round_trip_both_ways(dimensions, bound):
    flow, x = make_flow(dimensions, bound), make_data(dimensions)
    before = x.clone()
    assert (flow.inverse(flow(x).latent) - x).abs().max() < 1e-10
    assert (flow(flow.inverse(x)).latent - x).abs().max() < 1e-10
    assert torch.equal(x, before)
    single = flow.float()
    assert (single.inverse(single(x.float()).latent) - x.float()).abs().max() < 1e-4


def test_states_change_one_half_at_a_time():
    flow, x = make_flow(5), make_data(5)
    states = flow(x).states
    assert len(states) == 4 and torch.equal(states[0], x)
    for index, (before, after) in enumerate(itertools.pairwise(states)):
        kept, changed = (slice(0, 2), slice(2, 5)) if index % 2 == 0 else (slice(2, 5), slice(0, 2))
        assert torch.equal(after[:, kept], before[:, kept])
        assert (after[:, changed] != before[:, changed]).all()


def test_starts_as_the_identity():
    flow, x = CouplingFlow(2, 4, 16), make_data().float()
    trajectory = flow(x)
    assert all(torch.equal(state, x) for state in trajectory.states)
    assert not trajectory.log_det.any()
    assert torch.equal(flow.inverse(x), x)


def test_log_scales_stay_within_the_bound():
    wild = make_flow(2, bound=0.5, scale=3.0)
    trajectory = wild(10 * make_data(batch=50))
    assert all((log_det.abs() <= 0.25).all() for log_det in trajectory.log_dets)  # one of two entries
    assert 0.3 < trajectory.saturation <= 1
    assert make_flow(2, bound=0.5, scale=0.01)(make_data()).saturation == 0
    assert make_flow(2, bound=None, scale=3.0)(make_data()).saturation == 0
    loose = make_flow(2, bound=1e6)(make_data()).latent
    assert (loose - make_flow(2, bound=None)(make_data()).latent).abs().max() < 1e-9


def test_labels_and_guidance_have_no_effect():
    flow, x = make_flow(), make_data()
    labels = torch.zeros(len(x), dtype=torch.int64)
    assert torch.equal(flow(x, labels).latent, flow(x).latent)
    assert torch.equal(flow.inverse(x, labels, 2.0), flow.inverse(x))


def test_affine_maths_is_in_float32_under_autocast():
    flow = make_flow().float()
    x = make_data().float()
    with torch.autocast("cpu", torch.bfloat16):
        trajectory = flow(x)
    assert {state.dtype for state in trajectory.states} == {torch.float32} == {trajectory.log_det.dtype}
    assert 0 < (trajectory.latent - flow(x).latent).abs().max() < 0.3


def test_contract():
    flow = FLOW_TEACHERS.build({"type": "CouplingFlow", "dimensions": 3, "blocks": 4, "width": 8, "bound": 2.0})
    assert (flow.image_shape, flow.num_classes, flow.blocks) == ((3, 1, 1), 0, 4)
    assert flow.inverse_evaluations == 4
    assert len(flow(make_data(3).float()).log_dets) == 4


@pytest.fixture(scope="module")
def trained():
    """A flow that has seen 250 batches of eight Gaussians."""
    torch.manual_seed(0)
    flow = CouplingFlow(2, 4, 32, bound=2.0)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=5e-3)
    dataset = Toy2D("eight_gaussians")
    for step in range(250):
        x = dataset.batch(torch.arange(256 * step, 256 * (step + 1)), None)["images"]
        trajectory = flow(x)
        loss = 0.5 * trajectory.latent.square().mean() - trajectory.log_det.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


def test_training_beats_the_best_gaussian(trained):
    x = Toy2D("eight_gaussians").batch(torch.arange(64000, 65536), None)["images"]
    covariance = torch.cov(x.flatten(1).T)
    gaussian = (torch.logdet(2 * math.pi * math.e * covariance) / 2).item()  # its cross-entropy in nats
    ours = -trained.log_prob(x).mean().item()
    assert ours < gaussian - 0.5


def test_prior_samples_are_finite_and_about_where_the_data_is(trained):
    for seed in range(20):
        z = Draws(seed, torch.arange(500)).normal("sampling noise", (2, 1, 1))
        samples = trained.inverse(trained.sample_prior(z))
        assert samples.isfinite().all()
        assert (samples.abs() < 1).all(dim=1).float().mean() > 0.9
