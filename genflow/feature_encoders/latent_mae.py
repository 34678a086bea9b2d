"""The convolutional masked autoencoder whose features Drifting compares (arXiv 2602.04770; docs/drifting.md, D11)."""

import itertools
import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.feature_encoders.base import MaskedEncoder
from genflow.feature_encoders.pooling import pooled_features, pooled_names
from genflow.layers.patches import grid_side
from genflow.layers.precision import full_precision
from genflow.ranges import Depth, Length, NotNegative, Positive
from genflow.registry import FEATURE_ENCODERS


@FEATURE_ENCODERS.register_module()
class LatentMAE(MaskedEncoder):
    """A residual network on patches of samples, with a decoder that fills in hidden ones while it is trained.

    Stage s has ``width`` 2^s channels; all but the first halve the sides. A norm after every stage feeds both the
    features and the next stage. Samples do not interact, and training and evaluation mode are the same.

    Features (docs/drifting.md, D10): ``norm_x``, (B, 1, channels of a patch), the root of the mean square of the input;
    and what :func:`~genflow.feature_encoders.pooling.pooled_features` makes of the maps ``conv1`` (the stem's output),
    ``layer1``, ... (the stages' normalised outputs) and ``layer1_blk2``, ... (outputs of every ``block_interval``-th
    block of a stage, counted from 1, before that norm).

    Args:
        channels: of the samples.
        image_size: their side.
        width: channels of the first stage.
        depths: blocks of the stages.
        patch_size: side of the patches that the input is cut into.
        num_classes: classes of the classifier; 0 for none.
        decoder: whether it has the decoder, which only training needs.
        norm_groups: group norms have the largest number of groups that divides the channels and is not above this.
        windows, pooled, deviation_windows, pooled_deviation: see
            :func:`~genflow.feature_encoders.pooling.pooled_features`.
        block_interval: see above.

    Raises:
        ValueError: the image does not divide into patches, or there are no stages.
    """

    space = "samples"
    trained = False

    def __init__(
        self,
        channels: Positive,
        image_size: Positive,
        width: Positive = 256,
        depths: Annotated[tuple[Depth, ...], Length()] = (3, 4, 6, 3),
        patch_size: Positive = 1,
        num_classes: NotNegative = 1000,
        decoder: bool = False,
        norm_groups: Positive = 32,
        windows: tuple[Positive, ...] = (2, 4),
        pooled: bool = True,
        block_interval: Positive = 2,
        deviation_windows: tuple[Positive, ...] | None = None,
        pooled_deviation: bool | None = None,
    ):
        super().__init__()
        if not depths:
            raise ValueError("depths is empty, expected the blocks of at least one stage")
        side = grid_side(image_size, patch_size)
        self.image_shape = (channels, image_size, image_size)
        self.patch_shape = (channels * patch_size**2, side, side)
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.pooling = {
            "windows": windows,
            "pooled": pooled,
            "deviation_windows": deviation_windows,
            "pooled_deviation": pooled_deviation,
        }
        self.block_interval = block_interval
        widths = [width * 2**stage for stage in range(len(depths))]
        self.stem = _ConvNorm(self.patch_shape[0], width, norm_groups)
        self.stages = nn.ModuleList()
        for before, after, depth in zip([width, *widths[:-1]], widths, depths, strict=True):
            first = _Block(before, after, norm_groups, stride=2 if self.stages else 1)
            others = [_Block(after, after, norm_groups) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList([first, *others]))
        self.stage_norms = nn.ModuleList(_group_norm(after, norm_groups) for after in widths)
        self.decoder = _Decoder(widths, self.patch_shape[0], norm_groups) if decoder else None
        self.classifier = nn.Linear(widths[-1], num_classes) if num_classes else None
        self.apply(_initialize)
        self.feature_names = ("norm_x", *self._map_names(depths))

    def _map_names(self, depths: tuple[int, ...]) -> Iterator[str]:
        side = self.patch_shape[1]
        sides = {"conv1": side}
        for stage, depth in enumerate(depths, start=1):
            side = side if stage == 1 else math.ceil(side / 2)
            for block in range(self.block_interval, depth + 1, self.block_interval):
                sides[f"layer{stage}_blk{block}"] = side
            sides[f"layer{stage}"] = side
        for name, side in sides.items():
            yield from pooled_names(name, side, side, **self.pooling)

    def repeated_layers(self) -> list[nn.Module]:
        ups = [] if self.decoder is None else self.decoder.ups
        return [self.stem, *itertools.chain(*self.stages), *ups]

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """(B, channels, H, W) samples in the generator's space to features, see above."""
        patches = self.patches(samples)
        features = {"norm_x": (patches.square().mean(dim=(2, 3)) + 1e-6).sqrt().unsqueeze(1)}
        for name, maps in self._encode(patches).items():
            features |= pooled_features(name, maps, **self.pooling)
        return features

    def patches(self, samples: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels P^2, H / P, W / P); inside a patch the order is row, column, channel."""
        size = self.patch_size
        cut = "batch channel (rows row) (columns column) -> batch (row column channel) rows columns"
        return rearrange(samples, cut, row=size, column=size)

    def reconstruct(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~genflow.feature_encoders.base.MaskedEncoder.reconstruct`.

        Raises:
            UserError: it has no decoder.
        """
        if self.decoder is None:
            raise UserError("LatentMAE has no decoder to fill in patches with: set decoder: true")
        maps = self._encode(patches)
        stages = [maps[f"layer{stage}"] for stage in range(len(self.stages), 0, -1)]
        return self.decoder([*stages, maps["conv1"]]), self._logits(stages[0])

    def classify(self, samples: Tensor) -> Tensor:
        """(B, channels, H, W) samples in the generator's space to (B, num_classes) logits."""
        return self._logits(self._encode(self.patches(samples))[f"layer{len(self.stages)}"])

    def _logits(self, maps: Tensor) -> Tensor | None:
        return None if self.classifier is None else self.classifier(maps.mean(dim=(2, 3)))

    def _encode(self, patches: Tensor) -> dict[str, Tensor]:
        """(B, channels P^2, H', W') to (B, C, H', W') maps by name."""
        x = F.relu(self.stem(patches))
        maps = {"conv1": x}
        for stage, (blocks, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True), start=1):
            for index, block in enumerate(blocks, start=1):
                x = block(x)
                if index % self.block_interval == 0:
                    maps[f"layer{stage}_blk{index}"] = x
            maps[f"layer{stage}"] = x = norm(x)
        return maps


class _GroupNorm(nn.GroupNorm):
    """Works at least in float32, also under autocast; the result has the type of the input."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x.device):
            return super().forward(x.to(wide)).to(x.dtype)


def _group_norm(channels: int, most_groups: int) -> _GroupNorm:
    groups = next(count for count in range(min(most_groups, channels), 0, -1) if channels % count == 0)
    return _GroupNorm(groups, channels, eps=1e-6)


class _ConvNorm(nn.Module):
    """A convolution without bias that keeps the size (but for the stride), and a norm."""

    def __init__(self, channels: int, width: int, groups: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = _group_norm(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, channels: int, width: int, groups: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = _group_norm(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _group_norm(width, groups)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else _ConvNorm(channels, width, groups, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class _Up(nn.Module):
    """Resize to the size of a map from the encoder, put that beside it, two convolutions."""

    def __init__(self, channels: int, width: int, groups: int):
        super().__init__()
        self.norm = _group_norm(channels + width, groups)
        self.project = _ConvNorm(channels + width, width, groups)
        self.refine = _ConvNorm(width, width, groups)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        resized = F.interpolate(x, size=skip.shape[2:], mode="bilinear")
        x = self.norm(torch.cat([resized, skip], dim=1))
        return F.relu(self.refine(F.relu(self.project(x))))


class _Decoder(nn.Module):
    """From the encoder's maps back to patches (docs/drifting.md, D11)."""

    def __init__(self, widths: list[int], patch_channels: int, groups: int):
        super().__init__()
        self.bridge = _ConvNorm(widths[-1], widths[-1], groups)
        skips = [*widths[-2::-1], widths[0]]
        self.ups = nn.ModuleList(
            _Up(before, after, groups) for before, after in itertools.pairwise([widths[-1], *skips])
        )
        self.output = nn.Conv2d(widths[0], patch_channels, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Outputs of the stages, the last one first, and of the stem, to (B, patch_channels, H', W')."""
        x = F.relu(self.bridge(maps[0]))
        for up, skip in zip(self.ups, maps[1:], strict=True):
            x = up(x, skip)
        return self.output(x)


def _initialize(module: nn.Module) -> None:
    """LeCun normal, cut off at two standard deviations, which 0.8796 makes up for; biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
