"""Optimizers over a method's parameters, in groups of one rate and weight decay."""

import dataclasses
import logging
from typing import Any

import torch
from torch import nn

from genflow.config.building import Deferred
from genflow.config.sections import OptimSection, ParamwiseSection
from genflow.errors import UserError
from genflow.methods.base import Method

#: Optimizers whose update can be one kernel on a GPU.
_FUSED = (torch.optim.Adam, torch.optim.SGD)
#: Their arguments that choose how an update is computed.
_CHOICES = {"fused", "foreach", "capturable", "differentiable"}


def build_optimizer(section: OptimSection, method: Method) -> torch.optim.Optimizer:
    """Give the recipe's optimizer the method's trained parameters.

    They come in the groups that the optimizer's class makes if it makes any (``parameter_groups``), divided by what
    ``paramwise_cfg`` says of them. On a GPU an update is one kernel where the optimizer has such.

    Raises:
        UserError: the optimizer refuses its arguments, or a key of ``paramwise_cfg`` fits no parameter.
    """
    optimizer: Deferred = section.optimizer
    on_gpu = any(parameter.is_cuda for parameter in method.trained_parameters().values())
    if on_gpu and issubclass(optimizer.node.cls, _FUSED) and _CHOICES.isdisjoint(optimizer.arguments):
        optimizer.fill("fused", True)
    own_groups = getattr(optimizer.node.cls, "parameter_groups", None)
    groups = [{"params": list(method.trained_parameters().values())}] if own_groups is None else own_groups(method)
    if section.paramwise_cfg is not None:
        rules = _rules(section.paramwise_cfg, optimizer, method)
        groups = [part for group in groups for part in _divided(group, rules)]
    elif own_groups is None:
        return optimizer(groups[0]["params"])
    return optimizer(groups)


def _rules(paramwise: ParamwiseSection, optimizer: Deferred, method: Method) -> dict[nn.Parameter, dict[str, float]]:
    """The rate and weight decay of every parameter that has any of its own, as mmengine's constructor finds them."""
    from mmengine.optim import DefaultOptimWrapperConstructor

    names = list(method.trained_parameters())
    for key in paramwise.custom_keys:
        if not any(key in name for name in names):
            raise UserError(f"{optimizer.source}: optim_wrapper.paramwise_cfg.custom_keys.{key}: fits no parameter")
    # Factors that are not given must be missing, not null, and so must those of 1 in a rule without weight decay.
    given = {name: value for name, value in dataclasses.asdict(paramwise).items() if value is not None}
    base = {name: optimizer.arguments.get(name, optimizer.default(name)) for name in ("lr", "weight_decay")}
    if base["weight_decay"] is None:
        for rule in given["custom_keys"].values():
            if rule["decay_mult"] == 1:
                del rule["decay_mult"]
    entries: list[dict[str, Any]] = []
    disabled = logging.root.manager.disable
    try:
        constructor = DefaultOptimWrapperConstructor({"optimizer": base}, given)
        logging.disable(logging.WARNING)  # it logs a line or two for every parameter
        constructor.add_params(entries, method)
    except ValueError as error:
        where = f"{optimizer.source}: optim_wrapper.paramwise_cfg"
        raise UserError(f"{where}: a {optimizer.node.cls.__name__} has no weight decay to multiply") from error
    finally:
        logging.disable(disabled)
    return {
        entry["params"][0]: {name: entry[name] for name in ("lr", "weight_decay") if name in entry} for entry in entries
    }


def _divided(group: dict[str, Any], rules: dict[nn.Parameter, dict[str, float]]) -> list[dict[str, Any]]:
    """A group of parameters as groups of equal rules, in the order of their first parameters."""
    parts: dict[tuple, dict[str, Any]] = {}
    for parameter in group["params"]:
        rule = rules.get(parameter, {})
        part = parts.setdefault(tuple(sorted(rule.items())), {**group, **rule, "params": []})
        part["params"].append(parameter)
    return list(parts.values())
