"""Pieces of the ImageNet evaluation against those of Drifting's published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.evaluation.inception import inception_input, inception_score, truncate_to_uint8
from genflow.evaluation.metrics import frechet_distance, precision_recall

ARCHIVE = np.load(Path(__file__).parents[1] / "golden" / "drifting" / "eval_metrics.npz", allow_pickle=False)
CONFIG = json.loads(str(ARCHIVE["config"]))


def test_frechet_distance():
    assert frechet_distance(ARCHIVE["feats_a"], ARCHIVE["feats_b"]) == pytest.approx(float(ARCHIVE["fid"]), rel=1e-5)


def test_precision_and_recall():
    found = precision_recall(ARCHIVE["feats_a"], ARCHIVE["feats_b"], CONFIG["k"])
    expected = [float(ARCHIVE[f"{name}_real_a_fake_b"]) for name in ("precision", "recall")]
    assert found == pytest.approx(expected, abs=1e-7)


def test_inception_score():
    found = inception_score(ARCHIVE["logits"], CONFIG["splits"], CONFIG["is_permutation_seed"])
    assert found == inception_score(ARCHIVE["logits"])
    assert found == pytest.approx([float(ARCHIVE["is_mean"]), float(ARCHIVE["is_std"])], rel=1e-5)


def test_conversion_to_8_bit():
    assert truncate_to_uint8(torch.from_numpy(ARCHIVE["float_image_values"])).numpy().tolist() == (
        ARCHIVE["uint8_values"].tolist()
    )


def test_resize():
    found = inception_input(torch.from_numpy(ARCHIVE["resize_in"]))
    assert found.shape == (1, 3, 299, 299)
    assert np.abs(found[..., ::13, ::13].numpy() - ARCHIVE["resize_out_every13th"]).max() < 1e-5


def test_inception_score_of_one_image_per_class_and_of_one_class():
    certain = np.tile(50 * np.eye(4), (20, 1))
    mean, deviation = inception_score(certain, splits=1)
    assert (mean, deviation) == (pytest.approx(4, rel=1e-6), 0)
    assert inception_score(np.repeat(certain[:1], 80, axis=0)) == pytest.approx((1, 0), abs=1e-6)


def test_logits_without_a_score():
    for logits, message in (
        (np.zeros((9, 3)), r"10 rows or more, found \(9, 3\)"),
        (np.zeros(20), r"found \(20,\)"),
        (np.full((20, 3), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            inception_score(logits)
