"""The digits: ranges, halves and what a classifier makes of them."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from genflow.data import Digits
from genflow.draws import Draws
from genflow.registry import DATASETS


@pytest.fixture(scope="module")
def halves() -> tuple[Digits, Digits]:
    return Digits("train"), Digits("test")


def test_registered_under_its_name():
    assert DATASETS.get("Digits") is Digits
    assert len(DATASETS.build({"type": "Digits", "split": "test"})) == 899


def test_shapes_and_range(halves):
    assert [len(half) for half in halves] == [898, 899]
    for half in halves:
        batch = half.batch(torch.arange(len(half)), None)
        assert batch["images"].shape == (len(half), 1, 8, 8) == (len(half), *half.image_shape)
        assert batch["images"].dtype == torch.float32
        assert (batch["images"].min(), batch["images"].max()) == (-1, 1)
        assert batch["labels"].dtype == torch.int64


def test_halves_are_stratified_and_together_the_whole_set(halves):
    train, test = (half.labels.bincount(minlength=10) for half in halves)
    assert (train - test).abs().max() <= 1
    pixels, labels = load_digits(return_X_y=True)
    both = torch.cat([half.images.flatten(1) for half in halves])
    found = torch.cat([both * 8 + 8, torch.cat([half.labels for half in halves]).unsqueeze(1)], dim=1)
    expected = torch.cat([torch.tensor(pixels).float(), torch.tensor(labels).unsqueeze(1)], dim=1)
    assert sorted(found.tolist()) == sorted(expected.tolist())


def test_batch_takes_the_rows_asked_for_and_ignores_draws(halves):
    train = halves[0]
    indices = torch.tensor([7, 0, 7])
    batch = train.batch(indices, Draws(0, torch.arange(3)))
    assert torch.equal(batch["images"], train.images[indices])
    assert torch.equal(batch["labels"], train.labels[indices])
    assert torch.equal(train.images, Digits().images)


def test_support_vector_classifier_reaches_the_known_accuracy(halves):
    train, test = halves
    classifier = SVC(gamma=0.02, C=10).fit(train.images.flatten(1), train.labels)
    assert classifier.score(test.images.flatten(1), test.labels) == pytest.approx(0.9911, abs=2e-3)
