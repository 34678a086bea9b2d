"""Updates of a recipe without its runner, data and files: random pictures, latents and weights in their places."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genflow.codecs.base import Codec
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import load_recipe
from genflow.data.base import Dataset
from genflow.data.stream import build_loader
from genflow.draws import Draws
from genflow.engine.averages import WeightAverage
from genflow.engine.layers import apply_layer_settings
from genflow.engine.loop import AutocastOptimWrapper, UpdateLoop
from genflow.engine.optimizer import build_optimizer
from genflow.errors import UserError
from genflow.feature_encoders.base import FeatureEncoder, without_weights
from genflow.methods.base import Method
from genflow.registry import DATASETS

#: Different samples of made-up data, after which they repeat.
_POOL = 64
#: So small that no number of updates changes the weights; the arithmetic of an update does not depend on it.
_RATE = 1e-9
_AT_RANDOM = (
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
)
_CONSTANT = ("zeros_", "ones_", "constant_")


@DATASETS.register_module()
class MadeUpData(Dataset):
    """Uniform numbers in [-1, 1] of a shape, of any class in turn.

    Args:
        image_shape: (C, H, W).
        num_classes: classes; 0 for none.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self._pool: Tensor | None = None

    def __len__(self) -> int:
        return 100_000

    def batch(self, indices: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        if self._pool is None:
            self._pool = torch.rand(_POOL, *self.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return {"images": self._pool[indices % _POOL], "labels": indices % max(1, self.num_classes)}


def load_share(path: str, overrides: Iterable[str] = (), processes: int = 1) -> ComponentGraph:
    """A recipe with one process's share of its batch, and made-up data in the place of files.

    Args:
        path, overrides: of the recipe.
        processes: among which a batch, and the labels of an update where the method takes labels, are divided.

    Raises:
        UserError: as :meth:`~genflow.config.graph.ComponentGraph.load`, or a share is not whole.
    """
    recipe = load_recipe(path, list(overrides))
    data, model = recipe["train_dataloader"], recipe["model"]
    dataset = data["dataset"]
    if "data_root" in dataset:
        side = dataset.get("image_size")
        shape = dataset.get("latent_shape") or [dataset.get("channels", 3), side, side]
        classes = dataset.get("num_classes", 1000)
        data["dataset"] = {"type": "MadeUpData", "image_shape": list(shape), "num_classes": classes}
    for section, name in ((data, "batch_size"), (model, "labels_per_update")):
        if name in section:
            if section[name] % processes:
                raise UserError(f"{path}: {name}: found {section[name]}, expected a multiple of {processes} processes")
            section[name] //= processes
    recipe["evaluation"] = None
    return ComponentGraph.from_recipe(recipe, path)


@contextmanager
def drawn_on(device: torch.device) -> Iterator[list[nn.Module]]:
    """Build networks whose initial weights are drawn on the device, at the end, which a GPU does in no time.

    Yields:
        a list for the networks that were built and have been moved to ``device``; what is zero in them at the end is
        drawn as well, small, so that no branch is idle.
    """
    later: dict[int, tuple[Tensor, partial]] = {}

    def postponed(draw: Any) -> Any:
        def note(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if not isinstance(tensor, nn.Parameter):  # a part of one, which does not move with it
                return draw(tensor, *arguments, **options)
            if not tensor.is_meta:
                later[id(tensor)] = (tensor, partial(draw, *arguments, **options))
            return tensor

        return note

    def at_once(fill: Any) -> Any:
        def note(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
            later.pop(id(tensor), None)
            return fill(tensor, *arguments, **options)

        return note

    originals = {name: getattr(nn.init, name) for name in (*_AT_RANDOM, *_CONSTANT)}
    networks: list[nn.Module] = []
    for name, original in originals.items():
        setattr(nn.init, name, (postponed if name in _AT_RANDOM else at_once)(original))
    try:
        yield networks
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)
    with torch.no_grad():
        for tensor, draw in later.values():
            if tensor.device.type == device.type:  # others belong to a network whose weights were copied
                _draw(tensor, draw)
        for network in networks:
            for parameter in network.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1 * max(1, parameter.shape[-1] if parameter.dim() else 1) ** -0.5)


def _draw(tensor: Tensor, draw: partial) -> None:
    draw.func(tensor, *draw.args, **draw.keywords)


def made_up_method(graph: ComponentGraph, device: torch.device, for_training: bool = True) -> Method:
    """The method of a recipe on ``device``, in training mode.

    Prerequisites, and encoders and codecs whose files are not given, have random weights.

    Args:
        graph: the recipe.
        device: where to put it.
        for_training: as in :meth:`~genflow.config.graph.ComponentGraph.build`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with drawn_on(device) as networks, without_weights():
            method: Method = graph.build(partial(_random_artifact, graph), for_training=for_training)
            for module in method.modules():
                if isinstance(module, Codec) and not module.can_decode:
                    module.randomize()
            networks.append(method.to(device))
        for module in method.modules():
            if isinstance(module, FeatureEncoder) and not module.has_weights:
                _fill(module)
                module.has_weights = True
    return method.train()


def _random_artifact(graph: ComponentGraph, name: str) -> nn.Module:
    return graph.prerequisites[name].graph.build(for_training=False).artifact_module


@torch.no_grad()
def _fill(encoder: FeatureEncoder) -> None:
    """Weights of an encoder that was built without any; its activations keep their size from layer to layer."""
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=(2 / max(1, parameter[0].numel())) ** 0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


class Updating:
    """What a training does in an update, hooks aside: loop, optimizer and averages.

    Args:
        graph: as :func:`load_share` makes it.
        device: where to train.
    """

    def __init__(self, graph: ComponentGraph, device: torch.device):
        section, optim = graph.section("train_cfg"), graph.section("optim_wrapper")
        data = graph.section("train_dataloader")
        self.method = made_up_method(graph, device)
        apply_layer_settings(self.method, section)
        self.optimizer = AutocastOptimWrapper(
            build_optimizer(optim, self.method), optim.precision, optim.clip_grad_norm
        )
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = _RATE
        self.averages = [
            WeightAverage(self.method.trained_parameters(), rule) for rule in graph.section("ema").values()
        ]
        self.rows: int = data.batch_size
        loader = build_loader(data.dataset, data.batch_size, 0)
        nobody = SimpleNamespace(note=lambda *_: None)
        runner = SimpleNamespace(
            model=self.method, optim_wrapper=self.optimizer, watchdog=nobody, stop=SimpleNamespace(number=0)
        )
        self._loop = UpdateLoop(runner, loader, section, 0)
        self._batches = iter(loader)

    def read(self) -> dict[str, Any]:
        """The next batch."""
        return next(self._batches)

    def update(self, batch: dict[str, Any]) -> dict[str, float]:
        """One update; figures and errors as :meth:`~genflow.engine.loop.UpdateLoop.update`."""
        figures = self._loop.update(batch)
        self.average()
        return figures

    def average(self) -> None:
        """Let the averages follow."""
        for average in self.averages:
            average.update(self.method.trained_parameters(), 1, self.rows)
