"""The contract of backbones."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.condition import Condition
from genflow.errors import UserError, nearest, reason
from genflow.layers.precision import without_graph
from genflow.layers.tangents import derivative


class Backbone(nn.Module):
    """A network from an image-shaped tensor and a Condition to image-shaped tensors.

    A subclass sets ``image_shape`` (C, H, W), ``num_classes``, ``uses``, the Condition fields it needs, and
    ``heads``, the outputs it has; generators use ``main``. One that uses ``style`` also sets ``style_codes``, the
    number of codebooks and of entries in each: a sample has one random entry of every codebook.
    """

    kind = "backbone"
    uses: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("main",)
    style_codes: tuple[int, int] = (0, 0)
    image_shape: tuple[int, int, int]
    num_classes: int
    #: Whether its layers are compiled; the engine says so.
    compiled: bool = False

    def repeated_layers(self) -> Sequence[nn.Module]:
        """Its layers of equal form, which training may compile or checkpoint one by one (``train_cfg``)."""
        return ()

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        """Map (B, C, H, W) to ``{head: (B, C, H, W)}``; only the heads asked for are computed.

        Raises:
            ValueError: a field of ``uses`` is missing from ``condition``, or a head is unknown.
        """
        raise NotImplementedError

    def check_heads(self, heads: Sequence[str]) -> None:
        """Raise ``ValueError`` for a head that the network does not have."""
        for name in heads:
            if name not in self.heads:
                known = ", ".join(self.heads)
                hint = nearest(name, self.heads)
                raise ValueError(f"{type(self).__name__} has no head '{name}'{hint} (known: {known})")

    def directional(
        self,
        x: Tensor,
        condition: Condition,
        direction: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> tuple[dict[str, Tensor], Tensor]:
        """:meth:`forward`, and the derivative of the head ``main`` while ``x`` moves along ``direction`` and time
        and duration grow at rate 1.

        This one serves every backbone: a forward-mode pass without a graph and without fused attention, which has
        no such derivative, then the ordinary pass. A backbone that knows a cheaper way overrides it.

        Args:
            x, condition, heads: as in :meth:`forward`; ``main`` is among the heads.
            direction: (n, C, H, W), n <= B, of the first n rows; the others do not move.

        Returns:
            What :meth:`forward` returns, and the (n, C, H, W) derivative, without a graph.

        Raises:
            UserError: an operator of the network has no forward-mode derivative, or changes a buffer.
        """
        rows = condition.rows(slice(len(direction)))
        clocks = {name: getattr(rows, name) for name in ("time", "duration") if getattr(rows, name) is not None}

        def main(x: Tensor, *times: Tensor) -> Tensor:
            return self(x, replace(rows, **dict(zip(clocks, times, strict=True))))["main"]

        start = (x[: len(direction)].detach(), *clocks.values())
        rates = (direction, *(torch.ones_like(value) for value in clocks.values()))
        # A compiled function has no forward-mode derivative.
        eager = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        with without_graph(), sdpa_kernel(SDPBackend.MATH), eager:
            try:
                moved = derivative(main, start, rates)
            except RuntimeError as error:
                if not re.search(r"\bjvp\b|forward.AD|forward.mode", str(error)):
                    raise
                raise UserError(
                    f"{type(self).__name__} cannot be differentiated forward, which needs operators with such a "
                    "derivative and no buffer that changes (as those of a BatchNorm do); a field with derivative: "
                    f"central takes differences instead. {reason(error)}"
                ) from error
        return self(x, condition, heads), moved


class GroupedBackbone(Backbone):
    """A backbone made of groups that can be run one by one, as a reverse model of a flow needs it.

    ``groups`` groups and a last, finishing stage map states (B, T, ``state_features``). Group ``i`` produces
    the state that faces state ``i`` of the flow's trajectory; the groups run from ``groups - 1`` down to 0.
    Tokens are row-major patches of side ``patch_size``. States are hidden ones, or lie in the space of the
    data where ``states`` is ``data``; ``state_features`` is then C * patch_size^2.
    """

    groups: int
    state_features: int
    patch_size: int
    states: Literal["hidden", "data"] = "hidden"

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the first group's input (B, T, state_features)."""
        raise NotImplementedError

    def group(self, index: int, state: Tensor, condition: Condition) -> Tensor:
        """Run group ``index`` on (B, T, state_features)."""
        raise NotImplementedError

    def finish(self, state: Tensor, condition: Condition) -> Tensor:
        """The finishing stage: (B, T, state_features) to (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Condition, heads: Sequence[str] = ("main",)) -> dict[str, Tensor]:
        condition.require(*self.uses, user=type(self).__name__)
        self.check_heads(heads)
        state = self.embed(x)
        for index in reversed(range(self.groups)):
            state = self.group(index, state, condition.of_group(index))
        # The finishing stage continues group 0.
        return {"main": self.finish(state, condition.of_group(0))}
