"""The digits evaluator on generators whose quality is known."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.data import Digits
from genflow.errors import UserError
from genflow.evaluation import DigitsEvaluator
from genflow.generators.base import Generator
from genflow.registry import EVALUATORS


class Pixels(Codec):
    """Pixels as they are."""

    def decode(self, samples: Tensor) -> Tensor:
        return samples


class Network(torch.nn.Module):
    """What a generator asks of its network."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int = 10):
        super().__init__()
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(torch.zeros(()))


class Noise(Generator):
    """Returns its noise."""

    def __init__(self, noise_shape: tuple[int, int, int] = (1, 8, 8), num_classes: int = 10):
        super().__init__(Network(noise_shape, num_classes), Pixels())

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        return noise


class RealDigits(Noise):
    """Returns random held-out digits of the class asked for, shifted by ``shift`` classes."""

    def __init__(self, shift: int = 0, num_classes: int = 10):
        super().__init__(num_classes=num_classes)
        self.data = Digits("test")
        self.shift = shift

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        images = torch.empty(len(noise), 1, 8, 8)
        for row, (label, number) in enumerate(zip(condition.labels, noise[:, 0, 0, 0], strict=True)):
            members = self.data.images[self.data.labels == (label + self.shift) % 10]
            images[row] = members[int(torch.special.ndtr(number) * len(members))]
        return images


class Recorder(Noise):
    """Keeps what it was asked for."""

    def __init__(self, num_classes: int = 10):
        super().__init__(num_classes=num_classes)
        self.calls = []

    def sample(self, labels, seed, guidance=None, first_index=0, decode=True):
        self.calls.append((labels, seed, guidance, first_index))
        return super().sample(labels, seed, guidance, first_index, decode)


class Broken(Noise):
    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        return torch.full_like(noise, torch.nan)


@pytest.fixture(scope="module")
def evaluator() -> DigitsEvaluator:
    return DigitsEvaluator()


def test_registered_under_its_name():
    built = EVALUATORS.build({"type": "DigitsEvaluator", "per_class": 3})
    assert isinstance(built, DigitsEvaluator)
    assert built.num_samples == 30


def test_reference_figures_of_the_real_halves(evaluator):
    reference = evaluator.reference()
    assert reference["accuracy"] == pytest.approx(0.9911, abs=2e-3)
    assert reference["fd"] == pytest.approx(0.2932, abs=1e-3)
    assert reference["precision"] == pytest.approx(0.9154, abs=2e-3)
    assert reference["recall"] == pytest.approx(0.8888, abs=2e-3)


def test_real_digits_score_high(evaluator):
    figures = evaluator.evaluate(RealDigits())
    assert list(figures) == ["accuracy", "fd", "precision", "recall"]
    assert all(type(value) is float for value in figures.values())
    assert figures["accuracy"] > 0.97
    assert figures["fd"] < 0.3
    assert figures["precision"] == 1
    assert figures["recall"] > 0.8


def test_real_digits_of_the_wrong_class_have_no_accuracy(evaluator):
    figures = evaluator.evaluate(RealDigits(shift=1))
    assert figures["accuracy"] < 0.02
    assert figures["fd"] < 0.3


def test_error_bars_are_as_far_as_seeds_lie_apart():
    evaluator, found, bars = DigitsEvaluator(per_class=20), [], []
    for seed in range(12):
        figures = evaluator.evaluate(RealDigits(), seed=seed)
        found.append([figures["fd"], figures["accuracy"]])
        error = evaluator.bootstrap(10, seed=seed)
        bars.append([error["fd"], error["accuracy"]])
    apart, bars = torch.tensor(found).std(dim=0), torch.tensor(bars).mean(dim=0)
    assert ((apart / 3 < bars) & (bars < 3 * apart)).all()
    assert evaluator.bootstrap(3, seed=1) == evaluator.bootstrap(3, seed=1)
    evaluator.evaluate(Noise(num_classes=0))
    assert set(evaluator.bootstrap(2)) == {"fd"}


def test_noise_scores_as_chance(evaluator):
    figures = evaluator.evaluate(Noise())
    assert figures["accuracy"] == pytest.approx(0.1, abs=0.04)
    assert figures["fd"] > 10
    assert figures["precision"] == 0
    assert figures["recall"] < 0.2


def test_batches_and_labels_asked_for():
    generator, progress = Recorder(), []
    evaluator = DigitsEvaluator(per_class=3, batch_size=8)
    evaluator.evaluate(generator, 5, guidance=1.5, progress=lambda *counts: progress.append(counts))
    assert torch.cat([call[0] for call in generator.calls]).tolist() == list(range(10)) * 3
    assert [call[1:] for call in generator.calls] == [(5, 1.5, first) for first in (0, 8, 16, 24)]
    assert progress == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_batch_size_does_not_change_the_figures_and_the_seed_does():
    generator = RealDigits()
    one = DigitsEvaluator(per_class=5, batch_size=50).evaluate(generator)
    assert DigitsEvaluator(per_class=5, batch_size=7).evaluate(generator) == one
    assert DigitsEvaluator(per_class=5).evaluate(generator, seed=1) != one


def test_non_finite_images_are_refused(evaluator):
    with pytest.raises(UserError, match="not finite among images 0 to 249"):
        evaluator.evaluate(Broken())


def test_images_of_another_shape_are_refused(evaluator):
    with pytest.raises(UserError, match=r"images of shape \(3, 32, 32\), expected \(1, 8, 8\)"):
        evaluator.evaluate(Noise((3, 32, 32)))


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9])
def test_fewer_classes_are_measured_on_their_digits(evaluator, classes):
    generator = Recorder(classes)
    evaluator.evaluate(generator)
    assert torch.cat([call[0] for call in generator.calls]).tolist() == [i % classes for i in range(1000)]
    figures, real = evaluator.evaluate(RealDigits(num_classes=classes)), evaluator.reference(classes)
    assert figures["accuracy"] > 0.97 and real["accuracy"] > 0.97
    assert figures["precision"] == 1 and figures["recall"] > 0.8
    # With all ten digits as real data the distance would be large.
    assert figures["fd"] < 1 and real["fd"] < 2.5
    assert evaluator.evaluate(RealDigits(shift=1, num_classes=classes))["accuracy"] < 0.1


def test_without_classes_there_is_no_accuracy(evaluator):
    generator = Recorder(0)
    figures = evaluator.evaluate(generator)
    assert list(figures) == ["fd", "precision", "recall"]
    assert torch.cat([call[0] for call in generator.calls]).tolist() == [0] * 1000
    assert evaluator.reference(0) == evaluator.reference(10) == evaluator.reference()


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        (11, (1, 8, 8), "found a generator of 11 classes, expected at most 10, class k being the digit k"),
        (10, (3, 32, 32), "found images of shape (3, 32, 32), expected (1, 8, 8), as digits have"),
        (0, (2, 1, 1), "found images of shape (2, 1, 1), expected (1, 8, 8), as digits have"),
    ],
)
def test_what_cannot_be_measured_is_told_before(evaluator, classes, shape, message):
    with pytest.raises(UserError) as caught:
        evaluator.check(classes, shape)
    assert str(caught.value) == f"DigitsEvaluator: {message}"
    with pytest.raises(UserError, match="DigitsEvaluator: found"):
        evaluator.evaluate(Noise(shape, classes))


def test_importing_and_constructing_leaves_sklearn_and_scipy_alone():
    code = (
        "import sys, genflow.evaluation as e, genflow.data; e.DigitsEvaluator(); "
        "sys.exit(any(name in sys.modules for name in ('sklearn', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
