"""A run as the page samples it: pictures of a seed, or between two seeds, and the time that they take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genflow.demo.limits import LARGEST_SEED, MOST_PICTURES, GuidanceRange, guidance_range, whole_number
from genflow.draws import Draws
from genflow.errors import UserError, shown
from genflow.generators.base import Generator
from genflow.inference.sampling import choose_labels
from genflow.inference.write_images import are_vectors
from genflow.runs.folder import Run

#: Pictures that are generated at once.
_BATCH = 16


@dataclass(frozen=True)
class Request:
    """What is to be sampled.

    Args:
        label: a class; None for all classes in turn.
        count: pictures.
        seed: of the noise.
        other_seed: that a walk leads to.
        position: on the way from ``seed`` to ``other_seed``, 0 to 1.
    """

    label: int | None = None
    count: int = 1
    seed: int = 0
    other_seed: int = 1
    position: float = 0.0


def read_request(label: int | None, count: object, seed: object, other_seed: object, position: object) -> Request:
    """A request of what a page holds.

    Raises:
        UserError: a number that is missing or out of range, by its name in the page.
    """
    if not isinstance(position, (int, float)) or not 0 <= position <= 1:
        raise UserError(f"walk: found {shown(position)}, expected 0 to 1")
    return Request(
        label,
        whole_number("pictures", count, 1, MOST_PICTURES),
        whole_number("seed", seed, 0, LARGEST_SEED),
        whole_number("walk to seed", other_seed, 0, LARGEST_SEED),
        float(position),
    )


class SampledRun:
    """A run with its generator on a device.

    Args:
        run: the run.
        device: where it shall work.
        average: of the weights, as in :meth:`genflow.runs.folder.Run.weights`.

    Raises:
        UserError: as :meth:`genflow.runs.folder.Run.generator`; or its samples cannot be decoded, or are no pictures.
    """

    def __init__(self, run: Run, device: torch.device | str = "cpu", average: str | None = None):
        self.run = run
        self.name = run.path.resolve().name
        self.method = run.method(average).to(device)
        self.generator: Generator = run.generator_of(self.method)
        self.guidance: GuidanceRange | None = guidance_range(self.generator)
        self._warm: set[int] = set()
        first, _ = self.sample(Request())
        if are_vectors(first):
            raise UserError(f"{run}: its samples are vectors of {first.shape[1]} numbers, expected pictures")
        self.image_shape: tuple[int, int, int] = tuple(first.shape[1:])

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, their numbers where they have none; empty without classes."""
        names, classes = self.run.class_names, self.generator.num_classes
        return names if len(names) == classes else [str(number) for number in range(classes)]

    @property
    def description(self) -> str:
        """Its method, steps and evaluations in words."""
        steps, nfe = getattr(self.generator, "steps", 1), self.generator.nfe
        words = [type(self.method).__name__, f"{steps} steps"] if steps > 1 else [type(self.method).__name__]
        return ", ".join([*words, f"{nfe} network evaluation{'s' if nfe > 1 else ''} per picture"])

    def sample(self, request: Request, guidance: float | None = None) -> tuple[Tensor, float]:
        """Generate pictures.

        The first ones of a number are generated twice, for a device chooses its ways when it first meets a size.

        Args:
            request: what.
            guidance: scale; None for the recipe's.

        Returns:
            (count, C, H, W) in [-1, 1] on the CPU, and the seconds that it took from the seeds to there.

        Raises:
            UserError: the run has no such class or scale, or a sample is not finite.
        """
        if guidance is not None and self.guidance is not None:
            guidance = self.guidance.check(guidance)
        chosen = [] if request.label is None else [request.label]
        labels = choose_labels(self.generator.num_classes, chosen, request.count, None)
        if request.count not in self._warm:
            self._generate(labels, request, guidance)
            self._warm.add(request.count)
        start = time.perf_counter()
        images = self._generate(labels, request, guidance)  # on the CPU, so that nothing is left to wait for
        return images, time.perf_counter() - start

    def _generate(self, labels: Tensor, request: Request, guidance: float | None) -> Tensor:
        parts = []
        for first in range(0, len(labels), _BATCH):
            part = labels[first : first + _BATCH]
            if request.position == 0:
                images = self.generator.sample(part, request.seed, guidance, first)
            else:
                seeds = (request.seed, request.other_seed)
                images = walk(self.generator, part, seeds, request.position, guidance, first)
            parts.append(images.cpu())
        return torch.cat(parts)


@torch.no_grad()
def walk(
    generator: Generator,
    labels: Tensor,
    seeds: Sequence[int],
    position: float,
    guidance: float | None = None,
    first_index: int = 0,
) -> Tensor:
    """Images between those of two seeds.

    Noise turns from that of one seed to that of the other, see :func:`turn`. Style codes cannot lie between two codes:
    they become those of the other seed one after the other.

    Args:
        generator: anything.
        labels: (B,) classes.
        seeds: where the way begins and where it ends.
        position: on it, 0 to 1.
        guidance, first_index: as in :meth:`genflow.generators.base.Generator.sample`.

    Returns:
        (B, C, H, W) images in [-1, 1]; at 0 and 1 those that ``sample`` gives for either seed.

    Raises:
        UserError: as ``sample``.
    """
    labels = labels.to(generator.device)
    positions = torch.arange(first_index, first_index + len(labels), device=labels.device)
    (start, condition), (end, last) = (generator.draw(Draws(seed, positions), labels, guidance) for seed in seeds)
    if condition.style is not None:
        codes = condition.style.shape[1]
        later = torch.arange(codes, device=labels.device) < round(position * codes)
        condition = replace(condition, style=torch.where(later, last.style, condition.style))
    samples = generator(turn(start, end, position), condition)
    if not samples.isfinite().all():
        raise UserError("the generator returned samples that are not finite")
    return generator.codec.decode(samples).clamp(-1, 1)


def turn(start: Tensor, end: Tensor, position: float) -> Tensor:
    """Interpolate noise spherically: each row's direction on the great circle, its norm between the norms of the ends.

    A straight line would pass nearer to the origin, where no Gaussian noise of many dimensions lies.

    Args:
        start, end: (B, ...).
        position: 0 gives ``start``, 1 gives ``end``.
    """
    if position in (0, 1):
        return end if position else start
    shape = (-1, *[1] * (start.dim() - 1))
    norms = [noise.flatten(1).norm(dim=1).view(shape) for noise in (start, end)]
    first, second = (noise / norm for noise, norm in zip((start, end), norms, strict=True))
    angle = (first * second).flatten(1).sum(dim=1).clamp(-1, 1).acos().view(shape)
    weights = [torch.sin(share * angle) / torch.sin(angle) for share in (1 - position, position)]
    direction = weights[0] * first + weights[1] * second
    parallel = torch.sin(angle) < 1e-4  # equal seeds: there is no way to go
    direction = torch.where(parallel, first, direction)
    return direction * ((1 - position) * norms[0] + position * norms[1])
