"""Naive distillation: only the end of the trajectory is supervised (docs/biflow.md, B13)."""

import torch
from torch import Tensor

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.flow_teachers.base import Trajectory
from genflow.guidance.base import ReverseGuidance
from genflow.inverse_heads.base import InverseHead, InverseOutput
from genflow.registry import INVERSE_HEADS


@INVERSE_HEADS.register_module()
class NaiveDistillation(InverseHead):
    """The reverse model learns from the reconstruction alone; any backbone will do.

    Guidance, learned in training or by two passes, acts on the sample, since nothing else has a meaning.

    Args:
        backbone: the reverse model.
    """

    supervises_groups = False

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, z: Tensor, condition: Condition, guidance: ReverseGuidance | None = None) -> InverseOutput:
        classes = self.backbone.num_classes
        sample = self.backbone(z, condition)["main"]
        if guidance is not None and guidance.in_training:
            with torch.no_grad():
                null = self.backbone(z, condition.unlabelled(classes))["main"]
            sample = guidance.recover(sample, null, condition.guidance, condition.dropped(classes))
        return InverseOutput(sample, [])

    def supervise(self, hidden: list[Tensor], trajectory: Trajectory) -> dict[str, Tensor]:
        """No terms."""
        return {}
