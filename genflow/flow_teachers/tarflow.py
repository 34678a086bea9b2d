"""TARFlow (arXiv 2412.06329) and the improved flow that teaches BiFlow (arXiv 2512.10953)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from genflow.flow_teachers.base import FlowTeacher, Trajectory
from genflow.flow_teachers.captured_inverse import CapturedInverse, invert_blocks, require_cuda
from genflow.flow_teachers.flow_block import FlowBlock, FlowStyle, GuidedInverse
from genflow.layers.patches import grid_side, patchify, unpatchify
from genflow.layers.transformer import Feedforward, Norm
from genflow.ranges import Above0, Depth, Length, NotNegative, Positive
from genflow.registry import FLOW_TEACHERS


@FLOW_TEACHERS.register_module()
class TARFlow(FlowTeacher):
    """A transformer autoregressive flow; the defaults are the published TARFlow, block by block.

    Blocks alternate between raster order and reversed raster order of the patches.

    Args:
        image_size: side of the square image or latent.
        channels: its channels.
        patch_size: side of a patch; a token has D = channels * patch_size^2 features.
        width: W of the transformers.
        blocks: number of flow blocks.
        layers: transformer layers of every block, or a list with one number per block.
        num_classes: classes; 0 builds an unconditional flow.
        head_width: width of an attention head.
        scaled: predict scale and shift ("nvp"); without it shift only ("vp"), with a tracked prior variance.
        norm: ``layer``, or ``rms`` with a further norm before the output map.
        feedforward: ``gelu`` with biases, or ``swiglu`` without biases in the layers.
        qk_norm: RMS normalisation of queries and keys.
        positions: ``learned`` table per block, or ``rotary`` over rows and columns.
        prefix_tokens: 0 adds the class to every token; otherwise so many in-context class tokens precede
            the sequence, and the first token is transformed too.
        bound: c, the largest absolute value of the network's outputs in both directions; None for no bound.
            A trajectory's saturation is the share of outputs that reach c before the clip.
        clip: how outputs o are bounded: ``hard`` clamps, ``soft`` takes c * tanh(o / c).
        scale: how the first half of the bounded outputs r becomes the scale: ``exp`` takes exp(r), ``softplus``
            softplus(r + log(e - 1)), so that 0 gives 1 (STARFlow).
        start_token: feed a learned token before the others, so that the first token is transformed too
            (STARFlow); the class is still added to every token. Excludes ``prefix_tokens``.

    Raises:
        ValueError: sizes that do not divide, a list of layers of another length than ``blocks``, a start token
            beside prefix tokens, or a softplus scale without ``scaled``.
    """

    def __init__(
        self,
        image_size: Positive,
        channels: Positive,
        patch_size: Positive,
        width: Positive,
        blocks: Depth,
        layers: Depth | Annotated[list[Depth], Length()],
        num_classes: NotNegative = 0,
        head_width: Positive = 64,
        scaled: bool = True,
        norm: Norm = "layer",
        feedforward: Feedforward = "gelu",
        qk_norm: bool = False,
        positions: Literal["learned", "rotary"] = "learned",
        prefix_tokens: NotNegative = 0,
        bound: Above0 | None = None,
        clip: Literal["hard", "soft"] = "hard",
        scale: Literal["exp", "softplus"] = "exp",
        start_token: bool = False,
    ):
        super().__init__()
        depths = [layers] * blocks if isinstance(layers, int) else list(layers)
        if len(depths) != blocks:
            raise ValueError(f"layers lists {len(depths)} blocks, blocks is {blocks}")
        if start_token and prefix_tokens:
            raise ValueError(f"start_token excludes prefix_tokens, found {prefix_tokens}")
        if scale == "softplus" and not scaled:
            raise ValueError("scale 'softplus' needs scaled")
        side = grid_side(image_size, patch_size)
        features = channels * patch_size**2
        style = FlowStyle(
            head_width,
            scaled,
            norm,
            feedforward,
            qk_norm,
            positions,
            prefix_tokens,
            bound,
            clip,
            scale,
            start_token,
        )
        self.image_shape = (channels, image_size, image_size)
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.blocks = blocks
        self.inverse_evaluations = blocks * (side * side - (0 if style.leading else 1))
        self.flow_blocks = torch.nn.ModuleList(
            FlowBlock(side, features, width, depth, bool(index % 2), num_classes, style)
            for index, depth in enumerate(depths)
        )
        self.register_buffer("prior_variance", torch.ones(side * side, features))
        self.tracks_prior = not scaled
        self._seen: list[Tensor] = []  # latents since the last update
        self.captured: CapturedInverse | None = None

    def _image(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.patch_size, self.image_shape[0])

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Trajectory:
        """Map (B, C, H, W) data to its trajectory; states and log-determinants are at least float32."""
        tokens = patchify(x if x.dtype == torch.float64 else x.float(), self.patch_size)
        states, log_dets, saturations = [self._image(tokens)], [], []
        for block in self.flow_blocks:
            tokens, log_det, saturation = block(tokens, labels)
            states.append(self._image(tokens))
            log_dets.append(log_det)
            saturations.append(saturation)
        if self.tracks_prior and self.training:
            self._seen.append(states[-1].detach())
        return Trajectory(states, log_dets, torch.stack(saturations).mean())

    def repeated_layers(self) -> list[torch.nn.Module]:
        return [layer for block in self.flow_blocks for layer in block.layers]

    def sample_prior(self, noise: Tensor) -> Tensor:
        """Scale standard normal noise by the tracked prior deviation (all ones unless ``scaled`` is off)."""
        return noise * self._image(self.prior_variance.sqrt().unsqueeze(0))

    def after_update(self) -> None:
        """Show the prior the latents of the whole update."""
        if self._seen:
            self.update_prior(torch.cat(self._seen))
            self._seen.clear()

    @torch.no_grad()
    def update_prior(self, z: Tensor) -> None:
        """Move the prior variance a tenth of the way to the mean square of all processes' z (docs/biflow.md, B5)."""
        square = patchify(z, self.patch_size).square().mean(dim=0)
        all_reduce(square, op="mean")
        self.prior_variance.lerp_(square.to(self.prior_variance.dtype), 0.1)

    @torch.no_grad()
    def inverse_states(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        guidance: float | Tensor = 0.0,
        guided: Literal["both", "scale", "shift"] = "both",
        anneal: bool = False,
        temperature: float = 1.0,
        rule: Literal["linear", "gaussian"] = "linear",
    ) -> list[Tensor]:
        """Invert block by block: (B, C, H, W) noise to the blocks + 1 states, noise first, data last.

        Args:
            z: latents, as :meth:`forward` returns them.
            labels: (B,) or None.
            guidance: number or (B,); leads away from the null class. 0 never runs the null branch.
            guided, anneal, temperature, rule: as in :class:`GuidedInverse`.
        """
        tokens = patchify(z if z.dtype == torch.float64 else z.float(), self.patch_size)
        scale = torch.as_tensor(guidance)
        guided_inverse = None
        if bool((scale != 0).any()):
            scale = scale.to(tokens).reshape(-1, 1)
            guided_inverse = GuidedInverse(scale, guided, anneal, temperature, rule)
        invert = invert_blocks if self.captured is None else self.captured
        return [z, *map(self._image, invert(self.flow_blocks, tokens, labels, guided_inverse))]

    def inverse(self, z: Tensor, labels: Tensor | None = None, guidance: float | Tensor = 0.0, **options) -> Tensor:
        """Map (B, C, H, W) noise to data exactly; options as in :meth:`inverse_states`."""
        return self.inverse_states(z, labels, guidance, **options)[-1]

    def capture(self) -> None:
        """From now on run the exact inverse from CUDA graphs (:class:`CapturedInverse`).

        Another batch size or form of guidance is recorded when it first comes up.

        Raises:
            UserError: the flow is not on a CUDA device; :meth:`inverse` raises it when the flow leaves it.
        """
        require_cuda(self.prior_variance.device)
        self.captured = CapturedInverse()


def official_parameter_names(names: Sequence[str]) -> dict[str, str]:
    """Map parameter names of Apple's published TARFlow files to those of :class:`TARFlow`."""
    parts = {
        "attn_blocks": "layers",
        "attention.norm": "attention_norm",
        "attention.qkv": "attention.qkv",
        "attention.proj": "attention.out",
        "mlp.norm": "feedforward_norm",
        "mlp.main.0": "feedforward.up",
        "mlp.main.2": "feedforward.down",
        "proj_in": "embed",
        "proj_out": "out",
        "pos_embed": "positions",
        "class_embed": "classes.table",
    }
    renamed = {}
    for name in names:
        new = "prior_variance" if name == "var" else name.replace("blocks.", "flow_blocks.", 1)
        for old_part, new_part in parts.items():
            new = new.replace(old_part, new_part)
        renamed[name] = new
    return renamed
