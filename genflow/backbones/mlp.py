"""A plain multilayer perceptron, as in the toy of pMF (docs/pmf.md, P15)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.ranges import Depth, Length, NotNegative, Positive, Size
from genflow.registry import BACKBONES


@dataclass(frozen=True)
class StartSection:
    """Where an untrained network puts standard normal noise: a Gaussian blob.

    Args:
        mean, std: of each channel.
    """

    mean: Annotated[Sequence[float], Length()]
    std: Annotated[Sequence[Size], Length()]


@BACKBONES.register_module()
class MLP(Backbone):
    """Linear layers with ReLU between them, on the flattened image beside time, duration and class.

    Times enter as the numbers they are: features of high frequency would make derivatives with respect to them large.

    Args:
        image_size: side of the square image; 1 for vectors.
        channels: its channels, the entries of a vector.
        width: of the hidden layers.
        layers: linear maps.
        num_classes: classes, which enter as one-hot vectors; 0 builds an unconditional backbone.
        start: the output is ``mean + std * x`` and the layers' own on top, which is zero before training, for their
            last one is; None is the layers' output alone, all at random.

    Raises:
        ValueError: ``start`` is not of as many channels.
    """

    def __init__(
        self,
        image_size: Positive,
        channels: Positive,
        width: Positive = 256,
        layers: Depth = 7,
        num_classes: NotNegative = 0,
        start: StartSection | None = None,
    ):
        super().__init__()
        self.image_shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.uses = ("labels", "time", "duration") if num_classes else ("time", "duration")
        features = channels * image_size**2
        widths = [features + num_classes + 2, *[width] * (layers - 1), features]
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in itertools.pairwise(widths))
        self.start = start
        if start is not None:
            if not len(start.mean) == len(start.std) == channels:
                raise ValueError(f"start has {len(start.mean)} means and {len(start.std)} stds for {channels} channels")
            for name in ("mean", "std"):  # constants, which the recipe says
                values = torch.tensor(getattr(start, name), dtype=torch.float32).view(-1, 1, 1)
                self.register_buffer(f"start_{name}", values, persistent=False)
            nn.init.zeros_(self.layers[-1].weight)
            nn.init.zeros_(self.layers[-1].bias)

    def repeated_layers(self) -> nn.ModuleList:
        return self.layers

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        inputs = [x.flatten(1), torch.stack([condition.time, condition.duration], dim=1).to(x.dtype)]
        if self.num_classes:
            # "No class" matches no column.
            classes = condition.labels.unsqueeze(1) == torch.arange(self.num_classes, device=x.device)
            inputs.append(classes.to(x.dtype))
        hidden = torch.cat(inputs, dim=1)
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        output = self.layers[-1](hidden).view_as(x)
        return {"main": output if self.start is None else self.start_mean + self.start_std * x + output}
