"""What a generator is conditioned on."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """The conditioning of one batch; every backbone takes it and says which fields it uses.

    Args:
        labels: (B,) int64 class labels; ``num_classes`` (or -1) stands for "no class".
        guidance: (B,) float guidance scale, in the convention of the generator's method; or (B, groups), one
            scale for each group of a backbone that is made of groups.
        interval: (B, 2) float guidance interval in time.
        duration: (B,) float time span ``t - r`` of an average velocity, 0 for an instantaneous one.
        time: (B,) float time ``t`` of the input; 0 is data, 1 noise.
        style: (B, K) int64 style codes.
    """

    labels: Tensor | None = None
    guidance: Tensor | None = None
    interval: Tensor | None = None
    duration: Tensor | None = None
    time: Tensor | None = None
    style: Tensor | None = None

    @classmethod
    def unguided(cls, labels: Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> "Condition":
        """(B,) labels at scale 1, no guidance of a velocity model, with an interval for networks that take one."""
        ones = torch.ones(len(labels), device=labels.device)
        return cls(labels=labels, guidance=ones, interval=torch.stack([ones * end for end in interval], dim=1))

    def require(self, *names: str, user: str) -> None:
        """Raise ``ValueError`` if a field that ``user`` needs is missing."""
        for name in names:
            if getattr(self, name) is None:
                given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
                raise ValueError(f"{user} needs Condition.{name}; given: {', '.join(given) or 'nothing'}")

    def needed(self, name: str) -> Tensor:
        """The field ``name``; raises ``ValueError`` if it is missing."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"Condition.{name} is needed here, and missing")
        return value

    def dropped(self, num_classes: int) -> Tensor:
        """(B,) bool, the samples without class."""
        labels = self.needed("labels")
        return (labels < 0) | (labels == num_classes)

    def rows(self, part: slice | Tensor) -> "Condition":
        """The condition of some samples of the batch, by a slice or their (N,) indices."""
        return self._each(lambda value: value[part])

    def to(self, device: torch.device) -> "Condition":
        """The condition on a device, without waiting for it."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Condition(**{name: change(value) for name, value in given if value is not None})

    def joined(self, other: "Condition") -> "Condition":
        """The rows of this condition and then those of ``other``, which gives the same fields."""
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return Condition(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in given})

    def unlabelled(self, num_classes: int) -> "Condition":
        """The same condition with every label replaced by "no class"."""
        return self.labelled(torch.full_like(self.needed("labels"), num_classes))

    def labelled(self, labels: Tensor) -> "Condition":
        """The same condition with these (B,) labels."""
        return replace(self, labels=labels)

    def of_group(self, index: int) -> "Condition":
        """The condition that group ``index`` sees: its own guidance scale where each group has one."""
        if self.guidance is None or self.guidance.dim() == 1:
            return self
        return replace(self, guidance=self.guidance[:, index])
