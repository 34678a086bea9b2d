"""What an update of a recipe costs a process, counted on the meta device (docs/scaling.md).

The method's own passes, forward and backward, and the optimizer's own step run without numbers: micro-batches,
checkpointing, frozen networks and passes without gradient are counted as they are written. Matrix products,
convolutions and attention count; norms, activations, losses, averages and clipping do not. Random choices are those of
update 0.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from genflow.analysis.description import build_on_meta
from genflow.analysis.operator_counter import OperatorCounter
from genflow.analysis.operators import NotCountedError
from genflow.analysis.scaling import FLOAT32, Macs, UpdateCost
from genflow.config.graph import ComponentGraph
from genflow.draws import Draws
from genflow.engine.layers import apply_layer_settings
from genflow.engine.optimizer import build_optimizer
from genflow.errors import UserError, reason
from genflow.methods.base import Method


def count_updates(graph: ComponentGraph, gpus: Sequence[int], recipe_gpus: int = 8) -> dict[int, UpdateCost | str]:
    """The cost of an update for every process, by the number of processes, one for each GPU.

    Args:
        graph: the recipe.
        gpus: numbers of processes.
        recipe_gpus: the number that the recipe's ``train_cfg.micro_batches`` is meant for; with others micro-batches
            keep their size, or are smaller.

    Returns:
        the costs; where the batch cannot be divided among so many processes, why.

    Raises:
        UserError: the recipe does not train.
        NotCountedError: the method, or its optimizer, cannot run without numbers.
    """
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if graph.recipe.arguments[name] is None:
            raise UserError(f"{graph.source}: {name}: missing, training needs it")
    method: Method = build_on_meta(graph)
    if not all(parameter.is_meta for parameter in method.parameters()):
        raise NotCountedError(f"{graph.source}: model: cannot be built on the meta device")
    section = graph.section("train_cfg")
    apply_layer_settings(method, dataclasses.replace(section, compile=False))
    batch_size = graph.plain["train_dataloader"]["batch_size"]
    costs: dict[int, UpdateCost | str] = {}
    passes = _Passes(graph, method, batch_size)
    for count in gpus:
        try:
            _check_divides(method, batch_size, count)
        except UserError as error:
            costs[count] = str(error)
            continue
        parts = math.ceil(section.micro_batches * recipe_gpus / count)
        costs[count] = passes.count(count, parts)
    return costs


def _check_divides(method: Method, batch_size: int, processes: int) -> None:
    if batch_size % processes:
        found = f"train_dataloader.batch_size: found {batch_size}"
        raise UserError(f"{found}, expected a multiple of the {processes} processes")
    if method.feed is not None:
        method.feed.check(batch_size, processes)


class _Passes:
    """Runs a method's passes, and its optimizer once.

    Without a feed, the rows of all processes run as one batch, whose random choices average over them; what a feed
    makes are rows of one kind, and those of one process run.
    """

    def __init__(self, graph: ComponentGraph, method: Method, batch_size: int):
        self.graph = graph
        self.method = method
        self.batch_size = batch_size
        self.optim = graph.section("optim_wrapper")
        self.counted: dict[tuple[int, int], tuple[Macs, Macs, int]] = {}
        self.optimizer: tuple[torch.optim.Optimizer, Macs] | None = None

    def count(self, processes: int, parts: int) -> UpdateCost:
        """The cost for a process of so many, in so many micro-batches, as far as there are rows for them."""
        if self.method.feed is None:
            own = self.batch_size // processes
            parts = min(parts, own)
            whole = {
                "images": torch.empty(self.batch_size, *self.method.image_shape, device="meta"),
                "labels": torch.empty(self.batch_size, dtype=torch.int64, device="meta"),
            }
            # Micro-batches run the same operators on fewer rows.
            forward, backward, operators = self._run(whole, self.batch_size, 1, key=(0, 0))
            share, repeated = 1 / processes, parts
        else:
            rows = self.method.feed.rows_on_meta(self.method.image_shape, processes)
            own = len(rows["labels"])
            parts = min(parts, own)
            # Two micro-batches tell what each of several costs, passes over the whole batch included.
            run, size = min(parts, 2), math.ceil(own / parts)
            rows = {name: value[: run * size] for name, value in rows.items()}
            forward, backward, operators = self._run(rows, own * processes, run, key=(len(rows["labels"]), run))
            share, repeated = own / len(rows["labels"]), parts / run
        optimizer, products = self._step()
        part, gathered, sharers = optimizer.shared(processes) if hasattr(optimizer, "shared") else (1.0, 0, 1)
        states = [value for state in optimizer.state.values() for value in state.values()]
        state = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.is_meta)
        return UpdateCost(
            gpus=processes,
            rows=own,
            parts=parts,
            forward=forward.times(share),
            backward=backward.times(share),
            optimizer=products.times(part),
            gathered=gathered,
            sharers=sharers,
            operators=operators * repeated,
            parameters=sum(parameter.numel() for parameter in self.method.trained_parameters().values()),
            resident=self._resident(state),
        )

    def _run(
        self, rows: Mapping[str, Any], global_rows: int, parts: int, key: tuple[int, int]
    ) -> tuple[Macs, Macs, int]:
        """Multiply-adds of the forward and the backward pass, and operators."""
        if key not in self.counted:
            self.counted[key] = self._without_numbers(lambda: self._passes(rows, global_rows, parts))
        return self.counted[key]

    def _passes(self, rows: Mapping[str, Any], global_rows: int, parts: int) -> tuple[Macs, Macs, int]:
        count = len(rows["labels"])
        host = torch.arange(count)
        draws = Draws(self.graph.section("seed"), host.to("meta"), global_rows, host=host)
        edges = [count * part // parts for part in range(parts + 1)]
        batches = [
            {name: value[start:end] for name, value in {**rows, "draws": draws}.items()}
            for start, end in itertools.pairwise(edges)
        ]
        self.method.zero_grad()
        backward = Macs()
        with OperatorCounter(autocast=self.optim.precision == "bfloat16") as counter:
            for batch in self.method.prepare(batches):
                loss = self.method(**batch)["loss"]
                before = counter.macs
                loss.backward()
                backward += counter.macs + before.times(-1)
        return counter.macs + backward.times(-1), backward, counter.operators

    def _step(self) -> tuple[torch.optim.Optimizer, Macs]:
        """The optimizer after a step, and the step's multiply-adds in one process alone; after a backward pass."""
        if self.optimizer is None:
            self.optimizer = self._without_numbers(self._optimize)
        return self.optimizer

    def _optimize(self) -> tuple[torch.optim.Optimizer, Macs]:
        for name in ("fused", "foreach"):  # there is no such code for the meta device
            self.optim.optimizer.arguments.pop(name, None)
        optimizer = build_optimizer(self.optim, self.method)
        with OperatorCounter(autocast=False) as counter:
            optimizer.step()
        return optimizer, counter.macs

    def _resident(self, state: int) -> dict[str, int]:
        trained = list(self.method.trained_parameters().values())
        kept = {id(parameter) for parameter in trained}
        others = [tensor for tensor in self.method.parameters() if id(tensor) not in kept]
        return {
            "weights": sum(parameter.nbytes for parameter in trained),
            "gradients": sum(parameter.nbytes for parameter in trained),
            "optimizer": state,
            "averages": len(self.graph.section("ema")) * FLOAT32 * sum(parameter.numel() for parameter in trained),
            "frozen": sum(tensor.nbytes for tensor in (*others, *self.method.buffers())),
        }

    def _without_numbers(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except UserError:
            raise
        except Exception as error:  # whatever the meta device cannot do
            problem = f"an update cannot be counted: {reason(error)}"
            raise NotCountedError(f"{self.graph.source}: model: {problem}") from error
