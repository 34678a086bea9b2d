"""What the page takes for an answer: numbers within bounds, scales of training, requests of a size."""

import asyncio
import math

import pytest
import torch

from genflow.backbones import LightningDiT, PixelTransformer
from genflow.codecs import Identity
from genflow.demo.limits import MOST_BYTES, BodyLimit, GuidanceRange, Recent, guidance_range, whole_number
from genflow.errors import UserError
from genflow.field_estimators import AverageVelocity, DriftingField, InstantaneousVelocity
from genflow.guidance import FixedMixture, IntervalGuidance, NegativeMixing
from genflow.losses import SquaredError
from genflow.methods import Drifting, FlowMatching, MeanFlow
from genflow.time_samplers import LogitNormalTimes


@pytest.mark.parametrize("value", [3, 3.0])
def test_a_whole_number_may_come_as_a_float(value):
    found = whole_number("seed", value, 0, 5)
    assert found == 3 and isinstance(found, int)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "nothing"),
        (2.5, "2.5"),
        (-1, "-1"),
        (6, "6"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        ("3", "'3'"),
        (True, "True"),
    ],
)
def test_another_number_is_named(value, found):
    with pytest.raises(UserError, match=f"^seed: found {found}, expected a whole number from 0 to 5$"):
        whole_number("seed", value, 0, 5)


@pytest.mark.parametrize("scale", [0.9, 2.1, math.nan, None, "1", True])
def test_scales_outside_are_refused(scale):
    with pytest.raises(UserError, match=r"guidance: found .*, expected 1 to 2"):
        GuidanceRange(1.0, 2.0, 1.0, 1.0).check(scale)
    assert GuidanceRange(1.0, 2.0, 1.0, 1.0).check(2) == 2.0


def drifting(guidance, **options):
    backbone = LightningDiT(8, 4, 16, 1, 2, channels=1, num_classes=3)
    parts = {"codec": Identity(8, 1), "labels_per_update": 2, "samples_per_label": 4}
    return Drifting(backbone, DriftingField(), **parts, guidance=guidance, **options)


def backbone(scale_tokens):
    return PixelTransformer(8, 4, 16, 1, 2, 1, 3, 1, guidance_tokens=scale_tokens, interval_tokens=scale_tokens)


def mean_flow(guidance, scale_tokens=0):
    return MeanFlow(
        backbone(scale_tokens),
        AverageVelocity(),
        LogitNormalTimes(0.0, 1.0),
        Identity(8, 1),
        SquaredError(),
        guidance=guidance,
    )


def test_scales_are_those_of_training():
    interval = mean_flow(IntervalGuidance(max_scale=1.5), scale_tokens=1)
    assert guidance_range(interval.generator) == GuidanceRange(1.0, 2.5, 1.0, 1.0)
    below = drifting(NegativeMixing(negatives=2, max_scale=3.0, min_scale=0.5), default_guidance=1.5)
    assert guidance_range(below.generator) == GuidanceRange(0.5, 3.0, 1.5, 1.0)
    assert guidance_range(mean_flow(FixedMixture(2.0, 0.5)).generator) is None
    assert guidance_range(mean_flow(None).generator) is None


def test_scales_of_two_passes_end_somewhere_above_none():
    method = FlowMatching(
        backbone(0), InstantaneousVelocity(), LogitNormalTimes(0.0, 1.0), Identity(8, 1), SquaredError()
    )
    assert guidance_range(method.generator) == GuidanceRange(1.0, 5.0, 1.0, 1.0)
    method.generator.default_guidance = 9.0
    assert guidance_range(method.generator).high == 9.0


def test_recent_forgets_the_oldest():
    kept = Recent(2)
    for number in range(4):
        kept[str(number)] = torch.tensor(number)
    kept["2"] = "again"
    assert list(kept) == ["2", "3"] and kept.pop("2") == "again"


def answer(headers):
    """The status of a request: 200 where the limit lets it through."""
    statuses = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        statuses.append(message.get("status"))

    asyncio.run(BodyLimit(app)({"type": "http", "headers": headers}, None, send))
    return statuses[0]


def test_large_bodies_are_refused_unread():
    assert answer([]) == 200 and answer([(b"content-length", str(MOST_BYTES).encode())]) == 200
    assert answer([(b"content-length", str(2 * MOST_BYTES).encode())]) == 413
    assert answer([(b"transfer-encoding", b"chunked")]) == 411
