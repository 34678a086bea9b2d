"""Files of statistics: ours and published ones, and every fault one line."""

import numpy as np
import pytest
from made_images import Made, Pixels, Shades, evaluator

from genflow.errors import UserError
from genflow.evaluation.conventions import CONVENTIONS
from genflow.evaluation.statistics import make_statistics, read_statistics


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


def test_statistics_of_another_resize_are_refused(tmp_path):
    class Resized(Pixels):
        resize = "tensorflow1"

        @property
        def description(self):
            return {"resize": self.resize}

    path, other = tmp_path / "statistics.npz", Resized()
    make_statistics(Made(), Resized(), CONVENTIONS["torch_fidelity"], path)
    other.resize = "half_pixel"
    with pytest.raises(UserError, match=r"its settings is .*tensorflow1.*, that of this evaluation .*half_pixel"):
        evaluator(extractors={"x": other}, statistics={"x": str(path)}).evaluate(Shades())
