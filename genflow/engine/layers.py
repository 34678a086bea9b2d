"""How the layers of networks run in training, applied from outside: ``train_cfg.compile`` and ``checkpointing``."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from genflow.backbones.base import Backbone
from genflow.config.sections import TrainSection
from genflow.flow_teachers.base import FlowTeacher


def apply_layer_settings(method: nn.Module, section: TrainSection) -> None:
    """Compile and checkpoint the layers that backbones and flows list, in place; weights keep their names."""
    for network in method.modules():
        if isinstance(network, Backbone | FlowTeacher):
            for layer in network.repeated_layers():
                if section.compile:
                    layer.forward = torch.compile(layer.forward)
                if section.checkpointing:
                    _checkpoint(layer, section.compile)
        if isinstance(network, Backbone):
            network.compiled = section.compile


def _checkpoint(layer: nn.Module, compiled: bool) -> None:
    """Let a layer in training mode keep its inputs only; one with a rule of its own says ``checkpointed``."""
    forward = layer.forward
    rule = getattr(layer, "checkpointed", None)
    again = partial(checkpoint, forward, use_reentrant=False) if rule is None else rule(forward, compiled)

    def run(*inputs: Any, **options: Any) -> Any:
        run_with = again if layer.training and torch.is_grad_enabled() else forward
        return run_with(*inputs, **options)

    layer.forward = run
