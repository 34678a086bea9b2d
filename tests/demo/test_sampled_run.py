"""Runs as the page samples them: the pictures of tools/sample.py, and walks between two seeds."""

import math

import pytest
import torch

from genflow.backbones import LightningDiT
from genflow.codecs import Identity
from genflow.demo.limits import MOST_PICTURES
from genflow.demo.sampled_run import Request, SampledRun, read_request, turn, walk
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.generators.drifting import DriftingGenerator
from genflow.runs.folder import open_run


@pytest.fixture(scope="module")
def subject(finished_run):
    return SampledRun(open_run(finished_run))


def test_pictures_are_those_of_the_seed_whatever_the_batch(subject):
    images, seconds = subject.sample(Request(label=None, count=20, seed=7), guidance=0.5)
    expected = open_run(subject.run.path).generator().sample(torch.arange(20) % 10, 7, 0.5)
    assert torch.allclose(images, expected, atol=1e-5) and seconds > 0
    (one, _), _ = subject.sample(Request(label=3, count=2, seed=7), guidance=0.5)
    assert torch.allclose(one, subject.generator.sample([3], 7, 0.5)[0], atol=1e-5)


def test_the_first_pictures_of_a_number_are_not_timed(subject, monkeypatch):
    calls, sample = [], subject.generator.sample
    monkeypatch.setattr(subject.generator, "sample", lambda *given: calls.append(given) or sample(*given))
    subject.sample(Request(count=5))
    assert len(calls) == 2
    subject.sample(Request(count=5, seed=1))
    assert len(calls) == 3


def test_what_the_page_says_of_a_run(subject):
    assert subject.class_names == [str(number) for number in range(10)] and subject.image_shape == (1, 8, 8)
    assert subject.description == "MaximumLikelihood, 9 network evaluations per picture"
    assert subject.name == "finished_tiny" and subject.guidance.none == 0
    subject.generator.steps = 3
    assert subject.description == "MaximumLikelihood, 3 steps, 9 network evaluations per picture"
    del subject.generator.steps


def test_wrong_requests_are_refused(subject):
    with pytest.raises(UserError, match="pictures: found 65, expected a whole number from 1 to 64"):
        read_request(None, MOST_PICTURES + 1, 0, 1, 0)
    with pytest.raises(UserError, match="seed: found nothing"):
        read_request(None, 1, None, 1, 0)
    with pytest.raises(UserError, match="walk to seed: found -1"):
        read_request(None, 1, 0, -1, 0)
    for position in (1.5, None, math.nan):
        with pytest.raises(UserError, match="walk: found"):
            read_request(None, 1, 0, 1, position)
    with pytest.raises(UserError, match="found 10, expected 0 to 9"):
        subject.sample(Request(label=10))
    with pytest.raises(UserError, match="guidance: found -1"):
        subject.sample(Request(), -1)
    assert read_request(2, 3.0, 4.0, 5, 1) == Request(2, 3, 4, 5, 1.0)


def test_a_turn_keeps_the_norm_of_noise():
    start, end = (Draws(seed, torch.arange(50)).normal("x", (1, 16, 16)) for seed in (0, 1))
    norms = [noise.flatten(1).norm(dim=1) for noise in (start, turn(start, end, 0.3), turn(start, end, 0.5), end)]
    for norm in norms[1:3]:
        low, high = torch.minimum(norms[0], norms[3]), torch.maximum(norms[0], norms[3])
        assert (norm > low - 1e-3).all() and (norm < high + 1e-3).all()
    middle = ((start + end) / 2).flatten(1).norm(dim=1)
    assert middle.mean() < 0.75 * norms[2].mean()  # what a straight line would give
    assert torch.equal(turn(start, end, 0), start) and torch.equal(turn(start, end, 1), end)
    assert torch.allclose(turn(start, start, 0.4), start, atol=1e-5)


def test_a_turn_goes_at_an_even_pace():
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    third = turn(start, end, 1 / 3)
    assert torch.allclose(third, (5 / 3) * torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))


def test_a_walk_leads_from_the_pictures_of_one_seed_to_those_of_another(subject):
    ends = [subject.sample(Request(None, 20, seed))[0] for seed in (3, 4)]
    begun, middle, ended = (subject.sample(Request(None, 20, 3, 4, position))[0] for position in (0.0, 0.5, 1.0))
    assert torch.equal(begun, ends[0]) and torch.allclose(ended, ends[1], atol=1e-5)
    assert not torch.allclose(middle, ends[0], atol=0.1) and not torch.allclose(middle, ends[1], atol=0.1)


def test_style_codes_change_one_after_the_other():
    backbone = LightningDiT(4, 2, 16, 1, 2, 2, 5, context_tokens=1, style_codebooks=4, style_entries=1000)
    generator, styles = DriftingGenerator(backbone, Identity(4, 2)).eval(), []
    backbone.register_forward_pre_hook(lambda _, given: styles.append(given[1].style))
    for position in (0.0, 0.5, 1.0):
        walk(generator, torch.arange(3), (0, 1), position)
    first, half, last = styles
    assert not (first == last).any()
    assert torch.equal(half, torch.cat([last[:, :2], first[:, 2:]], dim=1))
