"""What becomes of a map: positions, means and deviations, by hand."""

import pytest
import torch

from genflow.feature_encoders.pooling import pooled_features, pooled_names


def maps(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_values_by_hand():
    x = maps(2, 3, 4, 8)
    found = pooled_features("m", x)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "m": (2, 32, 3),
        "m_mean": (2, 1, 3),
        "m_std": (2, 1, 3),
        "m_mean_2": (2, 8, 3),
        "m_std_2": (2, 8, 3),
        "m_mean_4": (2, 2, 3),
        "m_std_4": (2, 2, 3),
    }
    assert found["m"][1, 13, 2] == x[1, 2, 1, 5]
    windows = {"": [x[0, 2]], "_2": x[0, 2, 2:4].split(2, dim=1), "_4": x[0, 2].split(4, dim=1)}
    first = {"": 0, "_2": 4, "_4": 0}  # of the row of windows that is looked at
    for suffix, row in windows.items():
        for index, window in enumerate(row):
            mean = window.sum() / window.numel()
            variance = (window - mean).square().sum() / window.numel()
            token = first[suffix] + index
            assert found[f"m_mean{suffix}"][0, token, 2].item() == pytest.approx(mean.item(), abs=1e-12)
            assert found[f"m_std{suffix}"][0, token, 2].item() == pytest.approx((variance + 1e-6).sqrt().item())


@pytest.mark.parametrize(
    ("height", "width", "kept"), [(4, 6, [2]), (7, 7, []), (1, 1, []), (12, 4, [2, 4]), (4, 3, [])]
)
def test_windows_that_do_not_divide_the_map_are_left_out(height, width, kept):
    found = pooled_features("m", maps(1, 2, height, width))
    expected = ["m", "m_mean", "m_std", *(f"m_{part}_{side}" for side in kept for part in ("mean", "std"))]
    assert list(found) == expected
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"windows": ()}, ["m", "m_mean", "m_std"]),
        ({"windows": (), "positions": False}, ["m_mean", "m_std"]),
        ({"windows": (3,), "pooled": False}, ["m", "m_mean_3", "m_std_3"]),
        ({"windows": (), "pooled": False}, ["m"]),
        ({"windows": (), "pooled_deviation": False}, ["m", "m_mean"]),
        ({"windows": (), "pooled": False, "pooled_deviation": True}, ["m", "m_std"]),
        ({"windows": (3,), "pooled": False, "deviation_windows": ()}, ["m", "m_mean_3"]),
        ({"windows": (), "pooled": False, "deviation_windows": (3,)}, ["m", "m_std_3"]),
        (
            {"windows": (3, 1), "deviation_windows": (1,), "pooled_deviation": False},
            ["m", "m_mean", "m_mean_3", "m_mean_1", "m_std_1"],
        ),
    ],
)
def test_parts(wanted, names):
    found = pooled_features("m", maps(1, 2, 6, 3), **wanted)
    everything = pooled_features("m", maps(1, 2, 6, 3), windows=(1, 3))
    assert list(found) == names and all(value.equal(everything[name]) for name, value in found.items())
    assert pooled_names("m", 6, 3, **wanted) == tuple(names)


def test_deviations_of_narrow_types_are_wide():
    """In bfloat16 the variance of values around 100 were lost."""
    narrow = (100 + maps(1, 2, 4, 4, dtype=torch.float32)).bfloat16()
    found = pooled_features("m", narrow)
    assert {name for name, value in found.items() if value.dtype == torch.float32} == {"m_std", "m_std_2", "m_std_4"}
    assert found["m_mean"].dtype == found["m"].dtype == torch.bfloat16
    exact = pooled_features("m", narrow.double())
    assert torch.allclose(found["m_std_2"].double(), exact["m_std_2"], rtol=1e-5)


def test_gradient_is_finite_on_a_constant_map_and_nan_stays_where_it_is():
    constant = torch.ones(2, 3, 4, 4, requires_grad=True)
    found = pooled_features("m", constant)
    assert torch.allclose(found["m_std"], torch.tensor(1e-3))
    sum(value.sum() for value in found.values()).backward()
    assert constant.grad.isfinite().all()
    broken = torch.ones(2, 3, 4, 4)
    broken[1, 2, 3, 3] = torch.nan
    for name, value in pooled_features("m", broken).items():
        wrong = value.isnan()
        assert wrong[1, -1, 2] and wrong.sum() == 1, name
