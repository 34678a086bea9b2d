"""Average velocities from a network that predicts images (pMF; docs/pmf.md, P2, P3) or velocities (MeanFlow, iMF)."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from genflow.backbones.base import Backbone
from genflow.condition import Condition
from genflow.field_estimators.base import VelocityEstimator, VelocityFields
from genflow.layers.precision import full_precision, without_graph
from genflow.layers.tangents import derivative
from genflow.ranges import Range, Share
from genflow.registry import FIELD_ESTIMATORS
from genflow.time_samplers.base import Times

#: Standard deviation of data in the preconditioners (EDM).
_DATA_STD = 0.5
#: Half the distance of the two evaluations of a central difference.
_STEP = 5e-3


@FIELD_ESTIMATORS.register_module()
class AverageVelocity(VelocityEstimator):
    """u(z, r, t), the mean velocity of the path from r to t, and its derivative along the path.

    Args:
        prediction: what the network predicts: ``x``, the image that the average velocity leads to, z - t u; or ``u``.
        preconditioner: of ``x``, for comparison: the image is skip(t) z + out(t) network. ``linear`` is
            skip = 1 - t, out = t; ``edm`` that of EDM for noise t / (1 - t); ``scm`` the cosine and the sine of
            sCM at the angle pi t / 2. The paper names the last two without formulas known to us.
        time_floor: the smallest time by which z - x is divided.
        derivative: ``forward``: exact, by forward-mode differentiation without a graph; for comparison ``central``:
            a difference of two further evaluations, and ``with_graph``: forward-mode differentiation of the whole,
            over attention that is not fused, whose graph is kept (the plain way).
        moving_rows_only: differentiate only rows with r < t; the others' derivative is multiplied by 0. Off for
            comparison, with the same result.

    Raises:
        ValueError: a preconditioner of ``u``.
    """

    def __init__(
        self,
        prediction: Literal["x", "u"] = "x",
        preconditioner: Literal["none", "linear", "edm", "scm"] = "none",
        time_floor: Annotated[Share, Range(above=0)] = 0.05,
        derivative: Literal["forward", "central", "with_graph"] = "forward",
        moving_rows_only: bool = True,
    ):
        super().__init__()
        if prediction == "u" and preconditioner != "none":
            raise ValueError(f"preconditioner {preconditioner} is for prediction x, found prediction u")
        self.prediction = prediction
        self.preconditioner = preconditioner
        self.time_floor = time_floor
        self.derivative = derivative
        self.keeps_graph = derivative == "with_graph"
        self.moving_rows_only = moving_rows_only

    def convert(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        with full_precision(output.device):
            output = output.to(z.dtype)
            if self.prediction == "u":
                return output
            if self.preconditioner != "none":
                skip, out = _coefficients(self.preconditioner, t.view(-1, 1, 1, 1))
                output = skip * z + out * output
            return self.conditional(z, output, t)

    def forward(
        self,
        network: Backbone,
        z: Tensor,
        times: Times,
        condition: Condition,
        tangent: Tensor,
        heads: Sequence[str] = ("main",),
    ) -> VelocityFields:
        equal = times.on_host.equal
        moving = ~equal if self.moving_rows_only else torch.ones_like(equal)
        count = int(moving.sum())
        # Rows that move come first; what is returned has the order of the arguments.
        order = torch.argsort(~moving, stable=True).to(z.device, non_blocking=True) if count < len(z) else None
        if order is not None:
            z, tangent, condition = z[order], tangent[order], condition.rows(order)
            times = Times(times.t[order], times.r[order], times.equal[order])
        differentiate = self._plainly if self.derivative == "with_graph" and count else self._differentiate
        velocities, derivative = differentiate(network, z, times, condition, tangent[:count], heads)
        with full_precision(z.device):
            span = (times.t - times.r)[:count].view(-1, 1, 1, 1)
            correction = torch.cat([span * derivative, derivative.new_zeros(len(z) - count, *z.shape[1:])])
            velocities["compound"] = velocities["main"] + correction
        if order is not None:
            back = torch.argsort(order)
            velocities = {name: velocity[back] for name, velocity in velocities.items()}
        return VelocityFields(velocities["main"], velocities["compound"], velocities.get("auxiliary"))

    def _differentiate(
        self,
        network: Backbone,
        z: Tensor,
        times: Times,
        condition: Condition,
        tangent: Tensor,
        heads: Sequence[str],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The velocities at all rows, and du/dt of the first rows, of which ``tangent`` says the direction."""
        count = len(tangent)
        if not count:
            return self.velocity(network, z, times.t, times.r, condition, heads), tangent
        start, t = z[:count], times.t[:count]
        if self.derivative == "central":
            rows, r = condition.rows(slice(count)), times.r[:count]
            with without_graph():
                after, before = (
                    self.velocity(network, start + step * tangent, t + step, r, rows)["main"]
                    for step in (_STEP, -_STEP)
                )
            velocities = self.velocity(network, z, times.t, times.r, condition, heads)
            return velocities, (after - before) / (2 * _STEP)
        outputs, d_output = network.directional(z, self.timed(condition, times.t, times.r), tangent, heads)
        output = outputs["main"][:count].detach().to(z.dtype)
        along = (d_output.to(z.dtype), tangent, torch.ones_like(t))
        velocities = {name: self.convert(output, z, times.t) for name, output in outputs.items()}
        return velocities, derivative(self.convert, (output, start, t), along)

    def _plainly(
        self,
        network: Backbone,
        z: Tensor,
        times: Times,
        condition: Condition,
        tangent: Tensor,
        heads: Sequence[str],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """As :meth:`_differentiate`, in one pass whose graph holds the derivative, too."""
        count = len(tangent)

        def average(z: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            velocities = self.velocity(network, z, t, times.r, condition, heads)
            return velocities["main"], velocities

        rest = len(z) - count
        along = (torch.cat([tangent, tangent.new_zeros(rest, *z.shape[1:])]), torch.ones_like(times.t))
        with sdpa_kernel(SDPBackend.MATH), _AttentionAsGiven():
            _, moved, velocities = torch.func.jvp(average, (z, times.t), along, has_aux=True)
        return velocities, moved[:count].detach()


class _AttentionAsGiven(TorchFunctionMode):
    """Attention out of autocast's reach, which has cast its inputs already.

    Under a derivative autocast would reach the softmax inside of it as well, and give it gradients of another type than
    its output, which CUDA refuses.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        alone = function is functional.scaled_dot_product_attention
        with full_precision(arguments[0].device) if alone else nullcontext():
            return function(*arguments, **(options or {}))


def _coefficients(preconditioner: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """skip(t) and out(t)."""
    if preconditioner == "linear":
        return 1 - t, t
    if preconditioner == "scm":
        angle = 0.5 * math.pi * t
        return angle.cos(), -_DATA_STD * angle.sin()
    variance = t.square() + (_DATA_STD * (1 - t)).square()
    return _DATA_STD**2 * (1 - t) / variance, _DATA_STD * t * variance.rsqrt()
