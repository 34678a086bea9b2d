"""The prior of a flow that only shifts: it follows the latents of training (docs/biflow.md, B5)."""

import torch

from genflow.flow_teachers.tarflow import TARFlow
from genflow.layers.patches import patchify

SIDE, CHANNELS, PATCH, CLASSES = 4, 2, 2, 3


def make_flow(**options):
    """A flow in float64 with random weights, output maps included, small enough to be tame."""
    torch.manual_seed(0)
    flow = TARFlow(SIDE, CHANNELS, PATCH, 16, 3, 1, CLASSES, head_width=8, **options).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return flow


def make_data(batch=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x, torch.arange(batch) % (CLASSES + 1)


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


def test_prior_of_two_processes_is_that_of_the_whole_batch(monkeypatch):
    halves = make_data(batch=8)[0].chunk(2)
    whole, process = make_flow(scaled=False), make_flow(scaled=False)
    for flow in (whole, process):
        flow.prior_variance.fill_(1.0)
    whole.update_prior(torch.cat(halves))
    other = patchify(halves[1], PATCH).square().mean(dim=0)

    def all_reduce(square, op):
        assert op == "mean"
        square.add_(other).div_(2)

    monkeypatch.setattr("genflow.flow_teachers.tarflow.all_reduce", all_reduce)
    process.update_prior(halves[0])
    assert torch.allclose(process.prior_variance, whole.prior_variance, atol=1e-12)


def test_an_update_shows_it_the_latents_of_all_micro_batches_once():
    x, labels = make_data(batch=8)
    whole, parts = make_flow(scaled=False), make_flow(scaled=False)
    whole.update_prior(whole(x, labels).latent.detach())
    for rows in (slice(0, 3), slice(3, 8)):
        parts(x[rows], labels[rows])
    assert parts.prior_variance.eq(1).all()
    parts.after_update()
    assert torch.allclose(parts.prior_variance, whole.prior_variance, atol=1e-12)
    parts.after_update()  # there is nothing new
    parts.eval()(x, labels)
    parts.after_update()
    assert torch.allclose(parts.prior_variance, whole.prior_variance, atol=1e-12)


def test_a_flow_that_scales_keeps_its_prior():
    flow = make_flow()
    flow(*make_data())
    flow.after_update()
    assert flow.prior_variance.eq(1).all()
