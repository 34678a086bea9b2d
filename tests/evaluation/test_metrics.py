"""Fréchet distance against closed forms, precision and recall of sets whose answer is known."""

import numpy as np
import pytest
import scipy.linalg

from genflow.evaluation import metrics
from genflow.evaluation.metrics import frechet_distance, precision_recall


def with_moments(points: np.ndarray, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Points moved to have exactly this mean and covariance root @ root.T."""
    centred = points - points.mean(axis=0)
    factor = np.linalg.cholesky(np.cov(centred, rowvar=False))
    return np.linalg.solve(factor, centred.T).T @ root.T + mean


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 5))


def test_frechet_distance_of_gaussians_with_diagonal_covariances(points):
    means = np.zeros(5), np.arange(5.0)
    deviations = np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 1, 3, 0.1, 2])
    a, b = (with_moments(points, mean, np.diag(std)) for mean, std in zip(means, deviations, strict=True))
    # For commuting covariances: |mean difference|^2 + |difference of the standard deviations|^2.
    expected = 30 + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_gaussians_with_general_covariances(points):
    generator = np.random.default_rng(1)
    roots = generator.normal(size=(2, 5, 5))
    a, b = (with_moments(points, np.full(5, mean), root) for mean, root in zip((0, 2), roots, strict=True))
    covariances = [root @ root.T for root in roots]
    cross = np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    expected = 20 + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_one_dimension():
    a, b = np.array([[-1.0], [1.0]]), np.array([[2.0], [6.0]])
    # Means 0 and 4, unbiased variances 2 and 8.
    assert frechet_distance(a, b) == pytest.approx(16 + (np.sqrt(8) - np.sqrt(2)) ** 2)


def test_frechet_distance_of_equal_sets_is_zero(points):
    assert frechet_distance(points, points[::-1]) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_with_singular_covariances(points):
    flat = points * [1, 1, 0, 0, 0]
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    # Orthogonal supports: nothing overlaps, the traces add up.
    crossed = points[:, ::-1] * [0, 0, 0, 1, 1]
    traces = flat.var(axis=0, ddof=1).sum() + crossed.var(axis=0, ddof=1).sum()
    means = np.square(flat.mean(axis=0) - crossed.mean(axis=0)).sum()
    assert frechet_distance(flat, crossed) == pytest.approx(traces + means, rel=1e-12)


def test_frechet_distance_to_a_constant_set_and_with_fewer_points_than_dimensions(points):
    constant = np.full((3, 5), 2.0)
    expected = np.square(points.mean(axis=0) - 2).sum() + points.var(axis=0, ddof=1).sum()
    assert frechet_distance(points, constant) == pytest.approx(expected, rel=1e-12)
    few = points[:3]
    found = frechet_distance(few, few + 1)
    assert isinstance(found, float)
    assert found == pytest.approx(5, rel=1e-12)


def test_precision_and_recall_of_identical_sets(points):
    assert precision_recall(points, points) == (1, 1)


def test_precision_and_recall_of_disjoint_sets(points):
    assert precision_recall(points, points + 100) == (0, 0)


def test_precision_and_recall_of_a_collapsed_generator(points):
    collapsed = np.repeat(points[:1], 50, axis=0)
    assert precision_recall(points, collapsed) == (1, 1 / 200)


def test_half_of_the_generated_points_are_far_away(points):
    mixed = np.concatenate([points, points + 100])
    assert precision_recall(points, mixed) == (0.5, 1)


def test_radius_is_the_distance_to_the_kth_other_point():
    real = np.array([[0.0], [1.0], [3.0], [7.0], [20.0]])
    generated = np.array([[100.0], [101.0], [102.0], [103.0]])
    # With k = 2 the radii are 3, 2, 3, 6 and 17: the real manifold is [-3, 37].
    for value, expected in ((-3, 1), (-3.01, 0), (37, 1), (37.01, 0)):
        precision, _ = precision_recall(real, np.full((4, 1), float(value)), k=2)
        assert precision == expected
    assert precision_recall(real, generated, k=2) == (0, 0)


def test_duplicates_of_a_point_count_as_its_neighbours():
    real = np.array([[0.0], [0.0], [0.0], [0.0], [9.0]])
    # Each zero has three others at distance 0; only 9 has a ball of positive radius, 9.
    precision, _ = precision_recall(real, np.array([[0.0], [0.1], [-0.1], [18.0]]))
    assert precision == 0.75


def test_the_order_of_the_results():
    real = np.random.default_rng(2).normal(size=(300, 2))
    narrow = real[np.linalg.norm(real, axis=1) < 0.7]
    precision, recall = precision_recall(real, narrow)
    assert precision == 1
    assert 0.2 < recall < 0.6
    assert precision_recall(narrow, real) == (recall, 1)


def test_blocks_do_not_change_the_result(points, monkeypatch):
    other = points * 1.2 + 0.3
    whole = precision_recall(points, other)
    monkeypatch.setattr(metrics, "_ROWS", 7)
    assert precision_recall(points, other) == whole


@pytest.mark.parametrize("metric", [frechet_distance, precision_recall])
def test_bad_features_are_refused(metric, points):
    for bad in (np.nan, np.inf, -np.inf):
        broken = points.copy()
        broken[3, 2] = bad
        for pair in ((broken, points), (points, broken)):
            with pytest.raises(ValueError, match="not finite"):
                metric(*pair)
    for pair in ((points, points[:, :3]), (points, points[:1]), (points[0], points[0])):
        with pytest.raises(ValueError, match="expected \\(N, D\\) sets"):
            metric(*pair)
