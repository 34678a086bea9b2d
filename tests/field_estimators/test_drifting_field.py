"""The drifting field against a direct transcription of its definition, and what holds of it whatever the numbers."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from genflow.field_estimators import DriftingField, SinkhornField
from genflow.field_estimators.annealing import AnnealingSection
from genflow.field_estimators.base import DriftStatistics, FeatureSets
from genflow.field_estimators.pairwise_drift import Counts

TEMPERATURES = (0.2, 0.05, 0.02)
LABELS, GENERATED, POSITIVES, NEGATIVES, POSITIONS, CHANNELS = 3, 6, 5, 4, 2, 7


def random_sets(seed=0, positions=POSITIONS, channels=CHANNELS, dtype=torch.float32):
    """Overlapping point clouds; the generated ones ask for a gradient."""
    random = torch.Generator().manual_seed(seed)

    def points(count, shift):
        cloud = torch.randn(LABELS, count, positions, channels, generator=random) + shift
        return (2 * cloud).to(dtype)

    return FeatureSets(points(GENERATED, 0.0).requires_grad_(), points(POSITIVES, 0.3), points(NEGATIVES, -0.2))


def random_weights(seed=1):
    total = GENERATED + NEGATIVES + POSITIVES
    return torch.rand(LABELS, total, generator=torch.Generator().manual_seed(seed)) * 2


def gradients(drift, features):
    total = sum(values.sum() for values in drift.losses.values())
    found = torch.autograd.grad(total, [sets.generated for sets in features.values()], retain_graph=True)
    return dict(zip(features, found, strict=True))


def close(found, expected, tolerance=1e-4):
    """Within a share of the largest entry."""
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"{error:.2e}"


def same(drift, features, other, other_features, tolerance=1e-5):
    """Two drifts of features with equal names."""
    assert [*drift.losses] == [*other.losses] and [*drift.statistics] == [*other.statistics]
    ours, theirs = gradients(drift, features), gradients(other, other_features)
    for name in features:
        close(drift.losses[name], other.losses[name], tolerance)
        close(drift.statistics[name].scale, other.statistics[name].scale, tolerance)
        close(drift.statistics[name].force, other.statistics[name].force, tolerance)
        close(ours[name], theirs[name], tolerance)


def plain_drift(
    sets,
    weights,
    attraction=1.0,
    repulsion=1.0,
    normalization="both",
    floor=1e-3,
    kernel="laplace",
    self_term="published",
    bias_correction=False,
    normalize=(True, True),
):
    """D6 to D9 in float64, with differences of points: losses, scale, mean square forces, gradient."""
    generated, positive, negative = (
        part.detach().double().transpose(1, 2).flatten(0, 1) for part in (sets.generated, sets.positive, sets.negative)
    )
    generated.requires_grad_()
    fixed = generated.detach()
    targets = torch.cat([fixed, negative, positive], dim=1)
    count, repelling = fixed.shape[1], fixed.shape[1] + negative.shape[1]
    if weights is None:
        weights = torch.ones(LABELS, targets.shape[1])
    weights = weights.double().repeat_interleave(sets.generated.shape[2], dim=0).unsqueeze(1)
    way = targets.unsqueeze(1) - fixed.unsqueeze(2)
    distances = way.square().sum(dim=-1).clamp(min=1e-8).sqrt()
    scale = (distances * weights).mean() / weights.mean()
    unit, divisor = scale.item() / math.sqrt(fixed.shape[2]), scale
    if not normalize[0]:
        unit, divisor = 1.0, 1.0
    self_distance, seen = 100 * torch.eye(count, targets.shape[1]), torch.ones(count, targets.shape[1])
    if self_term == "independent":
        self_distance = torch.zeros_like(self_distance)
        for i, k in itertools.product(range(count), range(repelling)):
            seen[i, k] = i % 2 != (k if k < count else k - count) % 2
    drift, squares = torch.zeros_like(fixed), []
    for temperature in TEMPERATURES:
        unit_distances = distances / divisor
        exponent = unit_distances**2 / 2 if kernel == "gaussian" else unit_distances
        bare = torch.exp(-(exponent + self_distance) / temperature) * seen
        rows, columns = bare / bare.sum(dim=2, keepdim=True), bare / bare.sum(dim=1, keepdim=True)
        affinity = {"both": (rows * columns).sqrt(), "targets": rows, "none": bare}[normalization]
        affinity = affinity.clamp(min=floor) * seen * weights
        mass = affinity * (1 + unit_distances / temperature) if kernel == "sharp" else affinity
        sums, masses = [], []
        for part in (slice(repelling, None), slice(0, repelling)):
            near, total = affinity[:, :, part], mass[:, :, part].sum(dim=2, keepdim=True)
            if bias_correction:
                shares = mass[:, :, part] / total
                near = near * (1 + shares - shares.square().sum(dim=2, keepdim=True))
            sums.append(torch.einsum("mik,mikc->mic", near, way[:, :, part]))
            masses.append(total)
        pull, push = sums[0] * masses[1], sums[1] * masses[0]
        force = (attraction * pull - repulsion * push) / unit
        squares.append(force.square().mean())
        drift += force / squares[-1].clamp(min=1e-8).sqrt() if normalize[1] else force
    losses = (generated / unit - (fixed / unit + drift)).square().flatten(1).mean(dim=1)
    losses = losses.view(LABELS, -1).mean(dim=1)
    (slope,) = torch.autograd.grad(losses.sum(), generated)
    return losses.detach(), scale, torch.stack(squares), slope.view(LABELS, -1, *slope.shape[1:]).transpose(1, 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attraction": 1.5},
        {"repulsion": 2.0},
        {"repulsion": 0.0},
        {"normalization": "targets"},
        {"normalization": "none"},
        {"normalization": "none", "floor": 0.0, "attraction": 2.0},
        {"floor": 0.1},
        {"normalize_distances": False},
        {"normalize_forces": False},
        {"kernel": "gaussian"},
        {"kernel": "sharp"},
        {"kernel": "sharp", "normalization": "none", "floor": 0.0, "repulsion": 2.0},
        {"self_term": "independent"},
        {"self_term": "independent", "kernel": "gaussian", "normalization": "targets"},
        {"bias_correction": True},
        {"bias_correction": True, "kernel": "sharp", "self_term": "independent"},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()) or "as_published",
)
def test_equals_the_plain_regression(options, weighted):
    sets, weights = random_sets(), random_weights() if weighted else None
    drift = DriftingField(temperatures=TEMPERATURES, **options)({"it": sets}, weights)
    normalize = (options.pop("normalize_distances", True), options.pop("normalize_forces", True))
    losses, scale, forces, slope = plain_drift(sets, weights, normalize=normalize, **options)
    close(drift.losses["it"].detach(), losses)
    close(drift.statistics["it"].scale, scale)
    close(drift.statistics["it"].force, forces)
    close(gradients(drift, {"it": sets})["it"], slope)


def test_equal_factors_scale_the_drift():
    sets = random_sets()
    one, three = (
        DriftingField(temperatures=TEMPERATURES, attraction=factor, repulsion=factor, normalize_forces=False)
        for factor in (1.0, 3.0)
    )
    ours, theirs = (gradients(field({"it": sets}), {"it": sets})["it"] for field in (one, three))
    close(theirs, 3 * ours)


def without_own(sets):
    """Weights by which generated samples are moved, but move none."""
    return torch.ones(LABELS, GENERATED + sets.negative.shape[1] + sets.positive.shape[1]).index_fill(
        1, torch.arange(GENERATED), 0.0
    )


@pytest.mark.parametrize(("attraction", "symmetric"), [(1.0, True), (1.5, False)])
def test_exchange_of_what_attracts_and_what_repels_turns_the_drift(attraction, symmetric):
    sets = random_sets()
    sets = replace(sets, negative=random_sets(seed=5).positive - 1)
    exchanged = replace(sets, positive=sets.negative, negative=sets.positive)
    field = DriftingField(temperatures=TEMPERATURES, attraction=attraction)
    there, back = (gradients(field({"it": it}, without_own(it)), {"it": it})["it"] for it in (sets, exchanged))
    assert there.abs().max() > 0.01
    turned = (there + back).abs().max() / there.abs().max()
    assert (turned < 1e-4) == symmetric


def test_no_force_where_what_attracts_is_what_repels():
    sets = random_sets()
    sets = replace(sets, negative=sets.positive)
    force = DriftingField(temperatures=TEMPERATURES)({"it": sets}, without_own(sets)).statistics["it"].force
    assert (force < 1e-10).all()


def test_force_vanishes_for_many_samples_of_one_distribution():
    def mean_square(count, shift):
        random = torch.Generator().manual_seed(count)
        clouds = torch.randn(2, 1, count, 1, 2, generator=random)
        sets = FeatureSets(clouds[0], clouds[1] + shift, clouds[0][:, :0])
        # Affinities of so many points are about as large as the floor.
        return DriftingField(temperatures=(0.2,), floor=0.0)({"it": sets}).statistics["it"].force.item()

    few, many, apart = mean_square(32, 0.0), mean_square(512, 0.0), mean_square(512, 0.5)
    assert many < few / 8 and many < apart / 5


def test_bfloat16_features_are_summed_in_float32():
    sets = random_sets(dtype=torch.bfloat16)
    wide = FeatureSets(*(part.detach().float() for part in (sets.generated, sets.positive, sets.negative)))
    wide.generated.requires_grad_()
    field, weights = DriftingField(temperatures=TEMPERATURES), random_weights()
    expected = field({"it": wide}, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = field({"it": sets}, weights)
    assert torch.equal(found.losses["it"], expected.losses["it"])
    assert torch.equal(found.statistics["it"].force, expected.statistics["it"].force)
    slope = gradients(found, {"it": sets})["it"]
    assert slope.dtype == torch.bfloat16
    close(slope, gradients(expected, {"it": wide})["it"], 2**-8)
    close(found.losses["it"].detach(), field({"it": random_sets()}, weights).losses["it"].detach(), 0.02)


def features_of_three_shapes():
    return {
        "one": random_sets(0),
        "wide": random_sets(1, channels=11),
        "two": random_sets(2),
        "pooled": random_sets(3, positions=1),
        "three": random_sets(4),
    }


def test_features_together_equal_features_one_by_one():
    features, field, weights = features_of_three_shapes(), DriftingField(temperatures=TEMPERATURES), random_weights()
    together = field(features, weights)
    for name, sets in features.items():
        alone = field({name: sets}, weights)
        part = replace(together, losses={name: together.losses[name]}, statistics={name: together.statistics[name]})
        same(part, {name: sets}, alone, {name: sets})
    assert [*together.losses] == [*features]


def test_any_division_into_blocks_gives_the_same(monkeypatch):
    features, field, weights = features_of_three_shapes(), DriftingField(temperatures=TEMPERATURES), random_weights()
    whole = field(features, weights)
    sizes = []
    coefficients = DriftingField.coefficients

    def counted(self, distances, *arguments):
        sizes[-1].add(len(distances))
        return coefficients(self, distances, *arguments)

    monkeypatch.setattr(DriftingField, "coefficients", counted)
    for memory in (0, 2**16, 2**17, 2**18, 2**19, 2**20, 2**21):
        sizes.append(set())
        field.memory = memory
        same(field(features, weights), features, whole, features)
    assert len({frozenset(found) for found in sizes}) >= 4


def test_given_statistics_stand_for_those_of_the_features():
    features, field = features_of_three_shapes(), DriftingField(temperatures=TEMPERATURES)
    found = field(features)
    same(field(features, None, found.statistics), features, found, features)
    # Twice the force in the means is half of the drift in every temperature, a quarter of the loss.
    larger = {name: DriftStatistics(it.scale, 4 * it.force) for name, it in found.statistics.items()}
    for name, losses in field(features, None, larger).losses.items():
        close(losses.detach(), found.losses[name].detach() / 4)


def part_of(features, rows):
    return {
        name: FeatureSets(sets.generated.detach()[rows].requires_grad_(), sets.positive[rows], sets.negative[rows])
        for name, sets in features.items()
    }


def test_statistics_of_parts_then_part_by_part_equals_all_at_once():
    features, field, weights = features_of_three_shapes(), DriftingField(temperatures=TEMPERATURES), random_weights()
    whole = field(features, weights)
    rows = [slice(0, 1), slice(1, 3)]
    parts = [(part_of(features, part), weights[part]) for part in rows]
    calls = itertools.count()

    def computed(part):
        next(calls)
        return part

    statistics = field.batch_statistics([lambda part=part: computed(part) for part in parts])
    assert next(calls) == 2 * len(parts)
    drifts = [field(part, part_weights, statistics) for part, part_weights in parts]
    slopes = [gradients(drift, part) for drift, (part, _) in zip(drifts, parts, strict=True)]
    for name, expected in gradients(whole, features).items():
        close(statistics[name].scale, whole.statistics[name].scale, 1e-6)
        close(statistics[name].force, whole.statistics[name].force, 1e-6)
        losses = torch.cat([drift.losses[name].detach() for drift in drifts])
        close(losses, whole.losses[name].detach(), 1e-5)
        close(torch.cat([slope[name] for slope in slopes]), expected, 1e-5)
    alone = field(*parts[1])
    assert (alone.losses["one"] - whole.losses["one"][1:]).abs().max() > 1e-3  # its own means are others


def test_a_feature_that_is_not_a_number_spoils_its_own_loss_only():
    features, field = features_of_three_shapes(), DriftingField(temperatures=TEMPERATURES)
    sound = field(features)
    features["two"].positive[1, 0, 0, 0] = math.nan
    spoilt = field(features)
    assert spoilt.losses["two"].isnan().any()
    for name in features.keys() - {"two"}:
        close(spoilt.losses[name].detach(), sound.losses[name].detach(), 1e-6)


def test_chosen_losses_carry_the_gradient():
    """A factor of one label's loss is that of its gradient; the others have none."""
    sets, field = random_sets(), DriftingField(temperatures=TEMPERATURES)
    losses = field({"it": sets}).losses["it"]
    (every,) = torch.autograd.grad(losses.sum(), sets.generated, retain_graph=True)
    (one,) = torch.autograd.grad(3 * losses[1], sets.generated)
    close(one[1], 3 * every[1], 1e-6)
    assert not one[0].any() and not one[2].any()


def plane_points(count, shift=0.0, seed=0):
    """(1, count, 2), Gaussian."""
    return torch.randn(1, count, 2, generator=torch.Generator().manual_seed(seed)) + shift


def rows_of(field, generated, positive, temperature):
    """(1, G, G + P) coefficients without negatives, distances in the unit of the points."""
    counts = Counts(generated.shape[1], 0, positive.shape[1])
    return field.coefficients(torch.cdist(generated, torch.cat([generated, positive], 1)), None, counts, temperature)


@pytest.mark.parametrize(("kernel", "temperature"), [("sharp", 0.7), ("gaussian", 0.7)])
@pytest.mark.parametrize("normalization", ["targets", "none"])
def test_forces_follow_a_scalar_potential(kernel, temperature, normalization):
    """Divided by the masses, they are the gradient of log M+ - log M- of the smoothed distributions."""
    generated, positive = plane_points(12), plane_points(9, 0.5, seed=1)
    cloud = torch.cat([generated, positive], dim=1)
    field = DriftingField(normalization=normalization, floor=0.0, kernel=kernel, temperatures=(temperature,))
    force = rows_of(field, generated, positive, temperature) @ cloud
    x = generated[0].double().requires_grad_()
    distances = (x.unsqueeze(1) - cloud[0].double()).square().sum(dim=2).clamp(min=1e-12).sqrt()
    if kernel == "sharp":
        smoothed, unit = (1 + distances / temperature) * torch.exp(-distances / temperature), temperature**2
    else:
        smoothed, unit = torch.exp(-distances.square() / 2 / temperature), temperature
    smoothed = smoothed * (1 - torch.eye(12, 21))
    plus, minus = smoothed[:, 12:].sum(dim=1), smoothed[:, :12].sum(dim=1)
    (slope,) = torch.autograd.grad((plus.log() - minus.log()).sum(), x)
    softmax = torch.exp(-distances / temperature) if kernel == "sharp" else smoothed
    whole = (softmax * (1 - torch.eye(12, 21))).sum(dim=1) if normalization == "targets" else torch.ones(12)
    close(force[0] / (plus * minus / whole.square()).unsqueeze(1).detach(), unit * slope, 1e-3)


def test_a_sample_feels_no_generated_ones_of_its_own_half():
    field = DriftingField(self_term="independent", temperatures=(0.5,))
    found = rows_of(field, plane_points(6), plane_points(5, 0.5, seed=1), 0.5)[0]
    own = torch.arange(6).unsqueeze(1) % 2 == torch.arange(6) % 2
    assert not found[:, :6][own].any() and (found[:, :6][~own] < 0).all() and (found[:, 6:] > 0).all()
    assert found.sum(dim=1).abs().max() < 1e-6
    assert field.least_generated == 2 and DriftingField().least_generated == 1


def test_corrected_centroids_have_less_bias():
    """Of few positives; the centroid of 2^15 stands for that of their distribution."""
    generated, temperature, few = torch.tensor([[[0.0, 0.0], [0.3, 0.0]]]), 0.5, 6

    def centroids(positive, bias_correction):
        """(n, 2), of (n, P, 2) positives, around the first sample."""
        field = DriftingField(normalization="none", floor=0.0, bias_correction=bias_correction)
        coefficients = rows_of(field, generated.expand(len(positive), 2, 2), positive, temperature)[:, :1, 2:]
        return ((coefficients @ positive) / coefficients.sum(dim=2, keepdim=True)).squeeze(1)

    positive = 0.5 * plane_points(2**15)[0] + torch.tensor([0.6, 0.0])
    exact = centroids(positive.unsqueeze(0), False)[0]
    groups = positive[: 2**15 // few * few].view(-1, few, 2)
    plain, corrected = (centroids(groups, it).mean(dim=0)[0] - exact[0] for it in (False, True))
    assert plain.abs() > 0.02
    assert corrected.abs() < plain.abs() / 2


@pytest.mark.parametrize("field_type", [DriftingField, SinkhornField])
def test_annealed_temperatures_reach_those_of_the_recipe(field_type):
    sets, plain = {"it": random_sets()}, field_type(temperatures=TEMPERATURES)
    field = field_type(temperatures=TEMPERATURES, annealing=AnnealingSection(factor=4.0, updates=2))
    for factor in (4.0, 2.0, 1.0, 1.0):
        wide = field_type(temperatures=[factor * value for value in TEMPERATURES])
        close(field(sets).losses["it"].detach(), wide(sets).losses["it"].detach(), 1e-4)
        field.annealing.after_update()
    assert torch.equal(torch.stack(field.current_temperatures()), torch.tensor(plain.temperatures))
    resumed = field_type(annealing=AnnealingSection(factor=4.0, updates=8))
    resumed.load_state_dict(field.state_dict())
    assert resumed.annealing().item() == 2.0 and not plain.state_dict()


def test_neighbours_of_places_that_are_known():
    """Two positives far apart: both samples at one see one, between them both see two."""
    positive = torch.tensor([[-1.0], [1.0]]).view(1, 2, 1, 1)

    def found(*places):
        sets = {"it": FeatureSets(torch.tensor(places).view(1, -1, 1, 1), positive, positive[:, :0])}
        field = DriftingField(temperatures=(0.05, 50.0))
        return field.neighbours(sets, field(sets).statistics)

    at_one, at_both, between = found(-1.0, -0.9), found(-1.0, 0.9), found(0.0, 0.0)
    assert (at_one.coverage, at_both.coverage) == (0.5, 1.0)
    assert at_one.effective[0] < 1.01 and at_one.effective[1] > 1.99
    close(between.effective, torch.tensor([2.0, 2.0]), 1e-6)
