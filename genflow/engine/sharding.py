"""Weights shared out over processes by FSDP2, applied from outside: ``train_cfg.sharding``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from genflow.config.sections import ShardingSection
from genflow.engine.layers import layered_networks
from genflow.errors import UserError
from genflow.methods.base import Method


def share_out(method: Method, section: ShardingSection, device: torch.device) -> None:
    """Share out a method's weights over the process group, in place; they keep their names and become DTensors.

    Every layer that a network lists is gathered for its own pass only, other trained weights for an update.

    Args:
        method: on ``device``; its layers compiled and checkpointed already.
        section: over how many processes, and what.
        device: of this process.

    Raises:
        UserError: the processes do not divide into groups of ``section.over``.
    """
    mesh = _mesh(section.over, device)
    for network in layered_networks(method):
        if section.frozen or _is_trained(network):
            for layer in network.repeated_layers():
                if not isinstance(layer, FSDPModule):
                    fully_shard(layer, mesh=mesh)
    whole = {value for value in method.parameters() if not value.requires_grad and not isinstance(value, DTensor)}
    fully_shard(method, mesh=mesh, ignored_params=whole)
    for name in ("observe", "prepare", "diagnose"):  # they run networks as ``forward`` does
        register_fsdp_forward_method(method, name)


def _is_trained(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters())


def _mesh(over: int | None, device: torch.device) -> DeviceMesh:
    processes = dist.get_world_size()
    if over is None or over == processes:
        return init_device_mesh(device.type, (processes,))
    if processes % over:
        raise UserError(f"train_cfg.sharding.over: found {over}, expected a divisor of the {processes} processes")
    return init_device_mesh(device.type, (processes // over, over), mesh_dim_names=("copies", "parts"))


@contextmanager
def gathered(method: Method) -> Iterator[None]:
    """All shared-out weights in every process for the duration, in which no call is collective; enter it in all."""
    shared = [module for module in method.modules() if isinstance(module, FSDPModule)]
    for module in shared:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shared:
            module.reshard()
            module.set_reshard_after_forward(module is not method, recurse=False)


def whole(value: Any) -> Any:
    """The whole of a tensor of which this process may hold a part (collective); anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def kept_by_main(values: Mapping[Any, Any], main: bool) -> dict[Any, Any]:
    """Whole tensors, nested in mappings, on the CPU of the main process alone; gathered one by one in all (collective).

    Args:
        values: by name.
        main: whether this is the main process; without it all tensors are None.
    """
    kept: dict[Any, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name] = kept_by_main(value, main)
        elif isinstance(value, DTensor):
            gathered_value = value.full_tensor()
            kept[name] = gathered_value.cpu() if main else None
        else:
            kept[name] = value
    return kept


def divided_like(value: Any, reference: Tensor) -> Any:
    """A whole tensor that all processes have, shared out as ``reference`` is; if its shape is another, as it is."""
    if not isinstance(reference, DTensor) or not isinstance(value, Tensor) or value.shape != reference.shape:
        return value
    value = value.to(reference.device)
    return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)
