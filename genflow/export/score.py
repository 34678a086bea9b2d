"""The score step of a flow as a graph, its derivative written out."""

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.flow_teachers.base import FlowTeacher


class ExplicitScore(nn.Module):
    """What a flow's ``denoise`` computes, without automatic differentiation, which torch.export does not follow.

    The log-density is exported and differentiated while its operators are recorded. Attention is not fused, for only so
    its derivative consists of operators that ONNX has.

    Args:
        flow: on the CPU, in evaluation mode.
        batch: rows of every call; None for any number.
    """

    def __init__(self, flow: FlowTeacher, batch: int | None):
        super().__init__()
        self.num_classes = flow.num_classes
        rows = batch or max(flow.image_shape) + 1  # recorded symbols of equal size are taken for the same
        inputs = {"x": torch.zeros(rows, *flow.image_shape)}
        if flow.num_classes:
            inputs["labels"] = torch.zeros(rows, dtype=torch.int64)
        size = Dim("batch", min=1) if batch is None else Dim.STATIC
        shapes = {name: {0: size} for name in inputs}
        density = torch.export.export(_Density(flow), (), inputs, dynamic_shapes=shapes, strict=False).module()

        def score(x: Tensor, *labels: Tensor) -> Tensor:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                x = x.detach().requires_grad_(True)
                total = density(**dict(zip(inputs, (x, *labels), strict=True)))
                return torch.autograd.grad(total, x)[0]

        mode = "symbolic" if batch is None else "fake"
        self.score = make_fx(score, tracing_mode=mode, _allow_non_fake_inputs=True)(*inputs.values())

    def denoise(self, x: Tensor, labels: Tensor | None, noise_std: float) -> Tensor:
        """As :meth:`genflow.flow_teachers.base.FlowTeacher.denoise`."""
        return x + noise_std**2 * self.score(x, *([] if labels is None else [labels]))


class _Density(nn.Module):
    def __init__(self, flow: FlowTeacher):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.flow.log_prob(x, labels).sum()
