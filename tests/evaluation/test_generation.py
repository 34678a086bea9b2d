"""Figures of any generator: closed forms, the same for any processes and batches, resumed, and every fault one line."""

import numpy as np
import pytest
import torch
from made_images import CLASSES, SIDE, Made, Pixels, Shades, evaluator

from genflow.errors import UserError
from genflow.evaluation.conventions import CONVENTIONS
from genflow.evaluation.extraction import extract
from genflow.evaluation.metrics import frechet_distance, kernel_distance
from genflow.evaluation.moments import Gaussian, Moments
from genflow.feature_encoders.conv_net import ConvNet


def test_moments_are_those_of_numpy_whatever_the_batches():
    features = torch.randn(50, 7, dtype=torch.float64) + 3
    for size in (1, 7, 64):
        moments = Moments.none(7)
        for part in features.split(size):
            moments.add(part)
        gaussian = moments.gaussian
        assert np.allclose(gaussian.mean, features.numpy().mean(axis=0), atol=1e-12)
        assert np.allclose(gaussian.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-12)


def test_distances_against_closed_forms():
    draws = np.random.default_rng(0)
    scales, shift = draws.uniform(0.5, 2, 6), draws.normal(size=6)
    rotation = np.linalg.qr(draws.normal(size=(6, 6)))[0]
    a = Gaussian(np.zeros(6), np.eye(6))
    b = Gaussian(shift, rotation @ np.diag(scales**2) @ rotation.T)
    assert a.distance(b) == pytest.approx(np.square(shift).sum() + np.square(scales - 1).sum(), abs=1e-10)
    points, others = draws.normal(size=(400, 6)) * scales, draws.normal(size=(300, 6))
    assert moments_of(points).distance(moments_of(others)) == pytest.approx(frechet_distance(points, others), abs=1e-9)


def moments_of(points):
    moments = Moments.none(points.shape[1])
    moments.add(torch.from_numpy(points))
    return moments.gaussian


@pytest.mark.parametrize("count", [200, 20])
def test_identical_sets_have_no_distance(count):
    """More features than images, too, whose covariance is singular."""
    points = np.random.default_rng(1).normal(size=(count, 64)) + 5
    assert moments_of(points).distance(moments_of(points)) < 1e-6


def test_kernel_distance_against_its_definition():
    draws = np.random.default_rng(2)
    a, b = draws.normal(size=(30, 5)), draws.normal(size=(30, 5)) + 0.5
    found, spread = kernel_distance(a, b, subsets=3, size=30)

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    same = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(30) for j in range(30) if i != j) / (30 * 29)
    cross = 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert found == pytest.approx(same - cross, rel=1e-10) and spread == pytest.approx(0, abs=1e-12)
    assert kernel_distance(a, b, subsets=5, size=10, seed=1) == kernel_distance(a, b, subsets=5, size=10, seed=1)


def test_figures_are_those_of_all_images_at_once():
    found = evaluator().evaluate(Shades(), seed=3)
    images = CONVENTIONS["torch_fidelity"].to_bytes(Shades().sample(torch.arange(90) % CLASSES, 3))
    real = CONVENTIONS["torch_fidelity"].to_bytes(Made().images)
    ours, theirs = (part.flatten(1).double().numpy() / 127.5 - 1 for part in (images, real))
    assert found["fd"] == pytest.approx(frechet_distance(ours, theirs), abs=1e-6)
    assert found["kernel_distance"] == pytest.approx(kernel_distance(theirs, ours)[0], abs=1e-6)
    assert 0.9 < found["accuracy"] <= 1 and 1 < found["inception_score"] < CLASSES
    assert set(found) == {"fd", "kernel_distance", "precision", "recall", "accuracy", "inception_score"}


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_change_nothing(size):
    expected = evaluator().evaluate(Shades())
    found = evaluator(batch_size=size).evaluate(Shades())
    assert found == pytest.approx(expected, abs=1e-9)


def test_real_data_stand_beside_with_their_own_distance():
    measured = evaluator(validation=Made(seed=1))
    found = measured.evaluate(Shades())
    real = measured.reference(CLASSES)
    assert real["fdr"] == 1 and found["fdr"] == pytest.approx(found["fd"] / real["fd"], rel=1e-9)
    itself = evaluator(validation=Made())
    itself.evaluate(Shades())
    assert itself.reference(CLASSES)["fd"] < 1e-6
    assert evaluator().reference(CLASSES) == {}


def test_several_extractors_have_figures_of_their_own():
    found = evaluator(extractors={"one": Pixels(), "two": Pixels(2.0)}, validation=Made(seed=1)).evaluate(Shades())
    assert found["fd two"] == pytest.approx(4 * found["fd one"], rel=1e-4) and "fdr" in found


def spread(convention, seeds=24):
    """How far distances of different seeds lie apart, and the mean of their error bars."""
    found, bars = [], []
    for seed in range(seeds):
        measured = evaluator(num_samples=160, convention=convention)
        found.append(measured.evaluate(Shades(), seed=seed)["fd"])
        bars.append(measured.bootstrap(20, seed=seed)["fd"])
    return np.std(found), np.mean(bars)


@pytest.mark.parametrize("convention", ["torch_fidelity", "adm"])
def test_error_bars_are_as_far_as_seeds_lie_apart(convention):
    """Labels that are balanced vary less than those that are drawn."""
    apart, bar = spread(convention)
    assert apart / 2 < bar < 2 * apart


def test_error_bars_are_those_of_their_seed():
    measured = evaluator(num_samples=400, kept_features=100)
    measured.evaluate(Shades())
    assert measured.bootstrap(5, seed=1) == measured.bootstrap(5, seed=1) != measured.bootstrap(5, seed=2)


def test_conventions_round_and_draw_as_published():
    images = torch.tensor([-1.5, -1, -0.001, 0, 0.5, 0.9999, 1]).view(1, 1, 1, -1)
    assert CONVENTIONS["adm"].to_bytes(images).flatten().tolist() == [0, 0, 127, 128, 191, 255, 255]
    assert CONVENTIONS["torch_fidelity"].to_bytes(images).flatten().tolist() == [0, 0, 127, 128, 191, 255, 255]
    grey = torch.tensor([[[[-0.9965]]]])
    assert [CONVENTIONS[name].to_bytes(grey).item() for name in ("jax", "torch_fidelity")] == [0, 0]
    assert CONVENTIONS["jax"].to_bytes(torch.tensor([[[[-0.99]]]])).item() == 1
    assert CONVENTIONS["torch_fidelity"].choose_labels(5, 3, 0).tolist() == [0, 1, 2, 0, 1]
    drawn = CONVENTIONS["adm"].choose_labels(3000, 3, 0)
    assert drawn.bincount().min() > 900 and not torch.equal(drawn, torch.arange(3000) % 3)
    assert CONVENTIONS["adm"].choose_labels(4, 0, 0).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"reference": Made(shape=(1, 5, 5))}, "reference has images of shape (1, 5, 5), the generator (1, 3, 3)"),
        ({"validation": Made(classes=3)}, "validation has 3 classes, the generator 4"),
        ({"statistics": {"pixels": "nowhere.npz"}}, "nowhere.npz: no such file of statistics"),
    ],
)
def test_what_does_not_fit_is_known_before_training(options, problem):
    with pytest.raises(UserError) as caught:
        evaluator(**options).check(CLASSES, (1, SIDE, SIDE))
    assert problem in str(caught.value)
    evaluator(reference=Made(classes=0)).check(CLASSES, (1, SIDE, SIDE))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"reference": None}, "has nothing to compare with"),
        ({"statistics": {"x": "a.npz"}}, "no such extractor"),
    ],
)
def test_what_means_nothing_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        evaluator(**options)


def test_the_page_says_beside_which_figures_one_may_stand():
    assert evaluator().facts()["beside"].startswith("none: no extractor is the Inception network")


def test_features_are_kept_as_far_as_is_asked():
    def images(first, count):
        return torch.full((count, 1, SIDE, SIDE), first, dtype=torch.uint8), torch.zeros(count)

    found = extract({"pixels": Pixels()}, images, 20, 6, kept=8)["pixels"]
    assert found.kept.shape == (8, SIDE**2) and found.logits.shape == (20, CLASSES)


def test_kept_features_are_of_all_classes():
    """Data sets lie class by class, and generated labels follow each other."""

    def images(first, count):
        labels = (torch.arange(first, first + count) * CLASSES) // 200
        return torch.zeros(count, 1, SIDE, SIDE, dtype=torch.uint8), labels

    found = extract({"pixels": Pixels()}, images, 200, 6, kept=40)["pixels"]
    assert len(found.kept) == len(found.kept_labels) == 40 and found.kept_labels.bincount().min() > 3


def test_labels_of_the_validation_pictures():
    drifting, real = CONVENTIONS["drifting"], torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    assert torch.equal(drifting.choose_labels(8, 4, 0, real), real)
    assert drifting.choose_labels(4, 4, 0, real).tolist() == [0, 1, 1, 3]
    assert drifting.choose_labels(16, 4, 0, real).tolist() == real.repeat_interleave(2).tolist()
    measured = evaluator(convention="drifting", validation=Made(30), num_samples=60)
    measured.evaluate(Shades())
    assert measured._generated["pixels"].labels.tolist() == Made(30).labels.repeat_interleave(2).tolist()
    with pytest.raises(ValueError, match="takes its labels from validation pictures: give validation"):
        evaluator(convention="drifting")
    with pytest.raises(UserError, match="validation has 0 classes, the generator 4"):
        evaluator(convention="drifting", validation=Made(classes=0)).check(CLASSES, (1, SIDE, SIDE))


@pytest.mark.parametrize("call", ["check", "evaluate"])
def test_features_of_an_encoder_at_random_are_refused(call):
    encoder = ConvNet(1, [4], CLASSES)
    measured = evaluator(extractors={"own": encoder})
    calls = {"check": lambda: measured.check(CLASSES, (1, SIDE, SIDE)), "evaluate": lambda: measured.evaluate(Shades())}
    with pytest.raises(UserError, match="extractor 'own', a ConvNet: its weights are at random; name the artifact"):
        calls[call]()
    encoder.load_state_dict(encoder.state_dict())
    calls[call]()
    with torch.device("meta"):  # of a prerequisite that is yet to be trained
        measured = evaluator(extractors={"own": ConvNet(1, [4], CLASSES)})
    measured.check(CLASSES, (1, SIDE, SIDE))


def test_an_encoder_is_run_once_for_features_and_classes():
    encoder = ConvNet(1, [4], CLASSES)
    calls = []
    encoder.stages.register_forward_pre_hook(lambda *_: calls.append(1))
    encoder.stages[0].register_forward_pre_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 1, SIDE, SIDE)
    features, logits = encoder.encode_and_classify(images)
    assert len(calls) == 1 and torch.equal(logits, encoder.classify(images))
    assert torch.equal(features["pooled"], encoder(images)["pooled"])


def test_progress_counts_real_pictures_once():
    told = []
    measured = evaluator(validation=Made(30))
    for _ in range(2):
        measured.evaluate(Shades(), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (90, 90) and (180, 180) in told and told[0] == (16, 180)
