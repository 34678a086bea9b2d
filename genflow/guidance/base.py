"""The contract of guidance modules."""

import torch
from torch import Tensor, nn

from genflow.draws import Draws


class Guidance(nn.Module):
    """What training does for guidance."""

    kind = "guidance"
    #: Whether the model learns to output guided quantities, so that one pass samples at any scale and losses
    #: see what :meth:`recover` returns; otherwise sampling takes two passes.
    in_training: bool = True
    #: Share of samples that lose their label.
    label_drop: float

    def draw(self, draws: Draws) -> Tensor:
        """(B,) guidance scales for a batch."""
        raise NotImplementedError

    def drop_labels(self, labels: Tensor, num_classes: int, draws: Draws) -> Tensor:
        """(B,) labels, a share of ``label_drop`` replaced by ``num_classes``, "no class"."""
        return torch.where(draws.uniform("label drop") < self.label_drop, num_classes, labels)

    def recover(self, guided: Tensor, null: Tensor, scale: Tensor, dropped: Tensor) -> Tensor:
        """The unguided quantity that a guided one and its null branch imply.

        Args:
            guided: (B, ...) the model's guided output.
            null: (B, ...) its output without class on the same input; carries no gradient.
            scale: (B,) guidance scales.
            dropped: (B,) bool, samples without class; theirs is ``guided`` itself.
        """
        raise NotImplementedError
