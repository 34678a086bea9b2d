"""Rotary positions, sinusoidal features of scalars and the class table with its null class."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.layers.embeddings import (
    ClassEmbedding,
    axial_rotation,
    rotate,
    rotate_halves,
    sequence_rotation,
    sequence_turns,
    sinusoidal,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "drifting" / "rope.npz"
SIDE, WIDTH = 4, 16  # T = 16 patches, 8 channel pairs


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotate_by_hand(x, angles):
    """Every adjacent pair of channels, one after the other, times its 2 x 2 rotation matrix."""
    out = torch.empty_like(x)
    for position in range(x.shape[-2]):
        for pair in range(x.shape[-1] // 2):
            angle = angles[position, pair].item()
            matrix = x.new_tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            channels = slice(2 * pair, 2 * pair + 2)
            out[..., position, channels] = x[..., position, channels] @ matrix.T
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_rotation_is_that_of_channel_pairs(dtype, tolerance):
    """Float32 and float64 go through complex numbers, bfloat16 through real ones; both are the formula."""
    x = random(2, 3, SIDE**2, WIDTH, dtype=dtype)
    angles = axial_rotation(SIDE, WIDTH)
    rotated = rotate(x, angles)
    assert rotated.dtype == dtype and rotated.shape == x.shape
    assert (rotated.double() - rotate_by_hand(x.double(), angles.double())).abs().max() < tolerance


def test_rotation_in_float64_is_exact_for_angles_in_float64():
    x, angles = random(2, 3, SIDE**2, WIDTH), axial_rotation(SIDE, WIDTH).double()
    assert (rotate(x, angles) - rotate_by_hand(x, angles)).abs().max() < 1e-14


def test_rotation_of_a_strided_view():
    """Queries and keys arrive as slices of one joint map."""
    joint = random(2, SIDE**2, 3 * 2 * WIDTH).unflatten(-1, (3, 2, WIDTH)).permute(2, 0, 3, 1, 4)
    angles = axial_rotation(SIDE, WIDTH)
    for part in joint:
        assert torch.equal(rotate(part, angles), rotate(part.contiguous(), angles))


def test_gradient_of_the_rotation_is_the_rotation_back():
    x, upstream = random(SIDE**2, WIDTH).requires_grad_(), random(SIDE**2, WIDTH, seed=1)
    angles = axial_rotation(SIDE, WIDTH).double()
    (gradient,) = torch.autograd.grad(rotate(x, angles), x, upstream)
    assert (gradient - rotate(upstream, -angles)).abs().max() < 1e-14


def test_dot_products_depend_on_differences_of_positions_only():
    query, key = random(1, WIDTH), random(1, WIDTH, seed=1)
    angles = axial_rotation(SIDE, WIDTH).double()
    product = rotate(query.expand(SIDE**2, -1), angles) @ rotate(key.expand(SIDE**2, -1), angles).T
    by_offset = {}
    for i in range(SIDE**2):
        for j in range(SIDE**2):
            offset = (i // SIDE - j // SIDE, i % SIDE - j % SIDE)
            by_offset.setdefault(offset, []).append(product[i, j].item())
    assert all(max(values) - min(values) < 1e-6 for values in by_offset.values())  # angles are float32
    assert len({round(values[0], 5) for values in by_offset.values()}) == (2 * SIDE - 1) ** 2


def test_rows_take_the_first_half_of_the_head_and_columns_the_second():
    angles = axial_rotation(SIDE, WIDTH).unflatten(0, (SIDE, SIDE))
    rows, columns = angles.chunk(2, dim=-1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows)) and torch.equal(columns, columns[:1].expand_as(columns))
    assert torch.equal(rows[:, 0], columns[0])
    frequencies = [1e4 ** (-2 * k / (WIDTH // 2)) for k in range(WIDTH // 4)]
    assert torch.allclose(rows[3, 0], 3 * torch.tensor(frequencies))
    with pytest.raises(ValueError, match="divisible by 4"):
        axial_rotation(SIDE, 6)


@pytest.mark.parametrize("name", ["q", "k"])
def test_golden_rotation_of_halves(name):
    """272 positions, with angles in float32, and in bfloat16 bit for bit."""
    with np.load(GOLDEN, allow_pickle=False) as golden:
        x, exact, given, rounded = (
            torch.from_numpy(golden[name + variant]).transpose(1, 2)
            for variant in ("", "_fp32", "_bf16in_fp32rope", "_bf16rope")
        )
    turns = sequence_turns(*x.shape[-2:])
    assert torch.equal(x.bfloat16().float(), x)
    for expected in (exact, given):
        assert (rotate_halves(x, turns) - expected).abs().max() < 1e-5 * expected.abs().max()
    found = rotate_halves(x.bfloat16(), sequence_turns(*x.shape[-2:], torch.bfloat16))
    assert found.dtype == torch.bfloat16 and torch.equal(found.float(), rounded)


def test_rotation_of_halves_is_that_of_pairs_in_another_order():
    x, angles = random(2, 3, 9, WIDTH), sequence_rotation(9, WIDTH).double()
    halves = rotate_halves(x, torch.stack([angles.cos(), angles.sin()]))
    pairs = rotate(x.unflatten(-1, (2, -1)).mT.flatten(-2), angles)
    assert torch.allclose(halves, pairs.unflatten(-1, (-1, 2)).mT.flatten(-2), atol=1e-14)


def test_bfloat16_angles_are_far_from_exact_ones():
    """As far as docs/drifting.md, D3 says, for the published head width and length."""
    exact, rounded = (torch.complex(*sequence_turns(272, 64, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert torch.view_as_real(rounded).bfloat16().float().equal(torch.view_as_real(rounded))
    error = (rounded / exact).angle().abs()
    assert error.max().item() == pytest.approx(1.02, abs=0.005)
    assert (error > 0.1).float().mean().item() == pytest.approx(0.06, abs=0.005)
    with pytest.raises(ValueError, match="even head width, found 5"):
        sequence_turns(4, 5)


def test_sinusoidal_features():
    values = torch.tensor([0.0, 0.3, 2.0])
    features = sinusoidal(values, 8)
    frequencies = torch.tensor([1e4 ** (-k / 4) for k in range(4)])
    phases = values[:, None] * frequencies
    assert torch.allclose(features, torch.cat([phases.cos(), phases.sin()], dim=1))
    assert features[0].tolist() == [1.0] * 4 + [0.0] * 4


def test_null_class_is_the_mean_of_the_table():
    classes = ClassEmbedding(3, 5, std=1.0).double()
    rows = classes(torch.tensor([0, 1, 2, 3, -1]))
    assert torch.equal(rows[:3], classes.table)
    assert torch.allclose(rows[3], classes.table.mean(dim=0)) and torch.equal(rows[3], rows[4])
    with pytest.raises(IndexError):
        classes(torch.tensor([4]))


def test_null_class_trains_every_row_alike():
    classes = ClassEmbedding(3, 5)
    classes(torch.tensor([-1])).sum().backward()
    assert torch.allclose(classes.table.grad, torch.full((3, 5), 1 / 3))
    classes.table.grad = None
    classes(torch.tensor([1])).sum().backward()
    assert classes.table.grad[1].eq(1).all() and not classes.table.grad[[0, 2]].any()
