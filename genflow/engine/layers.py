"""How the layers of networks run in training, applied from outside: ``train_cfg.compile`` and ``checkpointing``."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from genflow.backbones.base import Backbone
from genflow.config.sections import TrainSection
from genflow.errors import UserError, reason
from genflow.feature_encoders.base import FeatureEncoder
from genflow.flow_teachers.base import FlowTeacher

#: Forms and input shapes of layers that share a class, each of which is compiled; beyond, torch would run them eagerly.
_COMPILED_FORMS = 64


def layered_networks(method: nn.Module) -> Iterator[Backbone | FlowTeacher | FeatureEncoder]:
    """The networks of a method that list their layers (``repeated_layers``)."""
    return (module for module in method.modules() if isinstance(module, Backbone | FlowTeacher | FeatureEncoder))


def apply_layer_settings(method: nn.Module, section: TrainSection) -> None:
    """Compile and checkpoint the layers that networks list, in place; weights keep their names."""
    if section.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_FORMS)
    for network in layered_networks(method):
        for layer in network.repeated_layers():
            if section.compile:
                layer.forward = torch.compile(layer.forward)
            if section.checkpointing:
                _checkpoint(layer, section.compile)
        if isinstance(network, Backbone):
            network.compiled = section.compile


@contextmanager
def telling_of_compilation() -> Iterator[None]:
    """Turn a failure of torch.compile into one line.

    Raises:
        UserError: in its place.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        cause = getattr(error, "inner_exception", error)
        message = f"train_cfg.compile: torch.compile failed: {reason(cause)}; train_cfg.compile=false trains without"
        raise UserError(message) from error


def _checkpoint(layer: nn.Module, compiled: bool) -> None:
    """Let a layer in training mode keep its inputs only; one with a rule of its own says ``checkpointed``."""
    forward = layer.forward
    rule = getattr(layer, "checkpointed", None)
    again = partial(checkpoint, forward, use_reentrant=False) if rule is None else rule(forward, compiled)

    def run(*inputs: Any, **options: Any) -> Any:
        run_with = again if layer.training and torch.is_grad_enabled() else forward
        return run_with(*inputs, **options)

    layer.forward = run
