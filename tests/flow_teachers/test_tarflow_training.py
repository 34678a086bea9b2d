"""Tiny flows trained by maximum likelihood: likelihoods and samples (docs/biflow.md, B4)."""

import math

import pytest
import torch

from genflow.flow_teachers.tarflow import TARFlow

SHAPE = (2, 2, 2)  # T = 4 tokens of D = 2 features
MODES = 1.2 * torch.tensor([[1, 1, 1, -1, 1, 1, -1, -1], [-1, -1, 1, 1, -1, 1, 1, -1]], dtype=torch.float32)
SPREAD = 0.4


def make_flow(**options):
    torch.manual_seed(0)
    style = {"norm": "rms", "feedforward": "swiglu", "positions": "rotary", "bound": 3.0, **options}
    return TARFlow(2, 2, 1, 16, blocks=2, layers=1, head_width=16, **style)


def mixture(count, seed):
    """Two Gaussians far apart, so that every entry depends on the others."""
    generator = torch.Generator().manual_seed(seed)
    modes = MODES[torch.randint(2, (count,), generator=generator)]
    return (modes + SPREAD * torch.randn(count, 8, generator=generator)).view(count, *SHAPE)


def loss_of(flow, x):
    trajectory = flow(x)
    return 0.5 * trajectory.latent.square().mean() - trajectory.log_det.mean()


def train(flow, draw, updates, every=None):
    """Adam on fresh batches; returns the losses on one large batch, before and every so many updates."""
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    held_out, losses = draw(4096, 10**6), []
    for update in range(updates + 1):
        if update % (every or updates) == 0:
            losses.append(loss_of(flow.eval(), held_out).item())
        loss = loss_of(flow.train(), draw(256, update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return held_out, losses


@pytest.fixture(
    scope="module", params=[{"prefix_tokens": 2}, {"start_token": True, "clip": "soft", "scale": "softplus"}]
)
def trained(request):
    flow = make_flow(**request.param)
    held_out, losses = train(flow, mixture, 160)
    return flow, held_out, losses


def test_flow_beats_the_best_diagonal_gaussian(trained):
    _, held_out, (before, after) = trained
    diagonal = 0.5 + held_out.flatten(1).std(dim=0).log().mean().item()
    # Almost all of the mixture's entropy is that of one Gaussian and of the choice between the two.
    mixture_loss = 0.5 + math.log(SPREAD) + math.log(2) / 8
    assert before > diagonal > mixture_loss + 0.3
    assert mixture_loss - 0.02 < after < mixture_loss + 0.1


def test_samples_have_the_moments_of_the_data(trained):
    flow, held_out, _ = trained
    noise = torch.randn(4096, *SHAPE, generator=torch.Generator().manual_seed(5))
    samples, data = flow.inverse(flow.sample_prior(noise)).flatten(1), held_out.flatten(1)
    assert (samples.mean(dim=0) - data.mean(dim=0)).abs().max() < 0.15
    assert (torch.cov(samples.T) - torch.cov(data.T)).abs().max() < 0.2


def test_prior_samples_are_finite_and_outputs_rarely_reach_the_bound(trained):
    flow, held_out, _ = trained
    noise = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(100)])
    samples = flow.inverse(flow.sample_prior(noise))
    assert samples.isfinite().all() and samples.abs().max() < 10
    with torch.no_grad():
        assert 0 <= flow(held_out).saturation < 0.05
        assert 0 < make_flow(bound=1e-3)(held_out).saturation <= 1


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_loss_of_a_gaussian_approaches_its_optimum_from_above(scale):
    def draw(count, seed):
        return scale * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))

    held_out, losses = train(make_flow(prefix_tokens=2), draw, 60, every=15)
    optimum = math.log(scale) + 0.5 * (held_out / scale).square().mean().item()
    assert optimum == pytest.approx(0.5 + math.log(scale), abs=0.02)
    assert losses[0] > optimum + 0.05
    assert all(loss > optimum - 1e-3 for loss in losses)
    assert losses[-1] < optimum + 2e-3
