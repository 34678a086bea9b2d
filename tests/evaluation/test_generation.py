"""Figures of any generator: closed forms, the same for any processes and batches, resumed, and every fault one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genflow.codecs.identity import Identity
from genflow.data.base import Dataset
from genflow.errors import UserError
from genflow.evaluation.base import Share
from genflow.evaluation.conventions import CONVENTIONS
from genflow.evaluation.extraction import extract
from genflow.evaluation.generation import GenerationEvaluator
from genflow.evaluation.metrics import frechet_distance, kernel_distance
from genflow.evaluation.moments import Gaussian, Moments
from genflow.evaluation.statistics import make_statistics, read_statistics
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator

SIDE, CLASSES = 3, 4


class Pixels(FeatureEncoder):
    """The pixels themselves, and logits that know the class of a shade."""

    feature_names = ("pooled",)
    num_classes = CLASSES

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return {"pooled": self.scale * images.flatten(1).unsqueeze(1)}

    def classify(self, images):
        shade = (images.mean(dim=(1, 2, 3)).unsqueeze(1) * 10 - torch.arange(CLASSES)) ** 2
        return -shade


class Network(nn.Module):
    image_shape = (1, SIDE, SIDE)
    num_classes = CLASSES


class Shades(Generator):
    """Noise around the shade of a class."""

    def __init__(self):
        super().__init__(Network(), Identity(SIDE, 1))

    def forward(self, noise, condition):
        return 0.1 * condition.labels.view(-1, 1, 1, 1) + 0.05 * noise


class Made(Dataset):
    """Noise around shades, a little off."""

    num_classes = CLASSES
    image_shape = (1, SIDE, SIDE)

    def __init__(self, count=60, seed=0, shape=(1, SIDE, SIDE), classes=CLASSES):
        self.image_shape, self.num_classes = shape, classes
        self.labels = torch.arange(count) % max(classes, 1)
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
        self.images = 0.1 * self.labels.view(-1, 1, 1, 1) + 0.06 * noise

    def __len__(self):
        return len(self.images)

    def batch(self, indices, draws):
        return {"images": self.images[indices], "labels": self.labels[indices]}


def evaluator(**options):
    settings = {"extractors": {"pixels": Pixels()}, "reference": Made(), "num_samples": 90, "batch_size": 16}
    return GenerationEvaluator(**{**settings, **options})


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


SHARED = """
import json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch.distributed as dist
from test_generation import Shades, evaluator
from genflow.evaluation.base import Share

dist.init_process_group("gloo")
found = evaluator(batch_size=7).evaluate(Shades(), share=Share(dist.get_rank(), dist.get_world_size()))
Path(__file__).with_name(f"{{dist.get_rank()}}.json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_work_and_get_the_same(processes, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED.format(folder=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run([*launch, tmp_path / "shared.py"], check=True, capture_output=True)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    expected = evaluator().evaluate(Shades())
    for figures in found:
        assert figures == pytest.approx(expected, abs=1e-9)


def test_a_killed_evaluation_goes_on(tmp_path):
    share = Share(partial=tmp_path / "partial.pt")
    expected = evaluator(batch_size=1).evaluate(Shades())
    made = []

    def stop(done, total):
        made.append(done)
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(batch_size=1).evaluate(Shades(), progress=stop, share=share)
    found = evaluator(batch_size=1).evaluate(Shades(), progress=lambda done, total: made.append(done), share=share)
    assert made[50:] == list(range(41, 91)) and found == expected
    (tmp_path / "partial.pt").write_bytes(b"damaged")
    assert evaluator(batch_size=1).evaluate(Shades(), share=share) == expected


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


def test_error_bars_are_those_of_resampling():
    measured = evaluator(num_samples=400)
    measured.evaluate(Shades())
    error = measured.bootstrap(50, seed=1)
    assert error == measured.bootstrap(50, seed=1) and 0 < error["fd"] < 0.1


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


def test_statistics_of_a_file_are_those_of_the_pictures(tmp_path):
    path = tmp_path / "statistics.npz"
    made = make_statistics(Made(), Pixels(), CONVENTIONS["torch_fidelity"], path, batch_size=7)
    assert made.facts["count"] == 60 and len(made.sha256) == 64
    measured = evaluator(reference=None, statistics={"pixels": str(path)})
    found = measured.evaluate(Shades())
    assert found["fd"] == pytest.approx(evaluator().evaluate(Shades())["fd"], abs=1e-9) and "precision" not in found
    assert measured.facts()["statistics"] == {"pixels": made.sha256[:16]}
    with pytest.raises(UserError, match="is there already"):
        make_statistics(Made(), Pixels(), CONVENTIONS["torch_fidelity"], path)
    for options, problem in (
        ({"extractors": {"pixels": Pixels(2.0)}}, "its weights is"),
        ({"convention": "jax"}, "its rounding is 'rounded', that of this evaluation 'truncated'"),
    ):
        with pytest.raises(UserError, match=problem):
            evaluator(reference=None, statistics={"pixels": str(path)}, **options).evaluate(Shades())


def test_published_layouts_are_read(tmp_path):
    mean, covariance = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
    for names in (("mu", "sigma"), ("mean", "cov"), ("ref_mu", "ref_sigma")):
        np.savez(tmp_path / "x.npz", **dict(zip(names, (mean, covariance), strict=True)), arr_0=np.zeros(2))
        assert read_statistics(tmp_path / "x.npz", 3).gaussian.mean.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "it has nothing, expected mu and sigma"),
        ({"mu": np.zeros(3)}, "it has mu, expected mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "found shapes (3,) and (4, 4), expected (D,) and (D, D)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "is not finite"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "its covariance is not symmetric"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "has 4 features, the extractor 3"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "not a file of statistics"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "not a file of statistics"),
    ],
)
def test_hostile_statistics_are_one_line(tmp_path, arrays, problem):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError) as caught:
        read_statistics(tmp_path / "x.npz", 3)
    assert problem in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/x.npz: ")


def test_text_and_missing_files_as_statistics(tmp_path):
    (tmp_path / "x.npz").write_text("text")
    for name, problem in (("x.npz", "not a file of statistics"), ("y.npz", "no such file of statistics")):
        with pytest.raises(UserError, match=problem):
            read_statistics(tmp_path / name)


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
