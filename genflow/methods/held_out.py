"""A look at figures that training does not see, lest it deceive those that it sees."""

from collections.abc import Sequence
from logging import WARNING

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

#: Updates between two looks, which wait for the device.
_LOOK = 100
#: By which factor a distance has to change to count.
_NOTABLE = 1.1


class HeldOutWatch(nn.Module):
    """Warns when held-out distances become worse while trained ones become better.

    Encoders can be deceived: a generator that is trained on the features of some then has samples that others find
    further away than before (Yang et al., arXiv 2604.28190, section 4).

    Args:
        names: of all distances, trained ones first; several may have one name.
        trained: how many of them are trained on.
    """

    def __init__(self, names: Sequence[str], trained: int):
        super().__init__()
        self.names = list(names)
        self.trained = trained
        self.latest: Tensor | None = None
        self._updates = 0
        self._warned = False
        self.register_buffer("first", torch.full((len(names),), torch.nan))

    def after_update(self) -> None:
        """Remember the distances of the first update, and compare with them now and then."""
        if self.latest is None or len(self.names) == self.trained:
            return
        if self._updates % _LOOK == 0:
            if not self.first.isfinite().all():
                self.first.copy_(self.latest)
            self._compare()
        self._updates += 1

    def _compare(self) -> None:
        ratios = (self.latest / self.first).tolist()
        better = all(ratio < 1 / _NOTABLE for ratio in ratios[: self.trained])
        worse = [index for index in range(self.trained, len(ratios)) if ratios[index] > _NOTABLE]
        if better and worse and not self._warned:
            self._warned = True
            told = ", ".join(f"{self.names[index]} is {ratios[index]:.2f} times what it was" for index in worse)
            message = f"held-out distances became worse while those that are trained on became better: {told}"
            print_log(message, "current", WARNING)
