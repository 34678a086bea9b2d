"""The contract of feature encoders."""

from torch import Tensor, nn

from genflow.errors import UserError


class FeatureEncoder(nn.Module):
    """A map from images to named features.

    A subclass sets ``feature_names``, the keys of what it returns.
    """

    kind = "feature encoder"
    feature_names: tuple[str, ...]
    #: Classes that :meth:`classify` tells apart; 0 if it does not classify.
    num_classes: int = 0
    #: Whether it has what encoding needs; one without can still be built and counted.
    has_weights: bool = True

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, C, H, W) images in [-1, 1] to ``{name: (B, tokens, channels)}``."""
        raise NotImplementedError

    def classify(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) images in [-1, 1] to (B, num_classes) logits, where the encoder is a classifier."""
        raise NotImplementedError

    def require_weights(self, images: Tensor) -> None:
        """Refuse to encode without weights; on the meta device there is nothing to compute, so counting needs none.

        Raises:
            UserError: the encoder has no weights.
        """
        if not self.has_weights and not images.is_meta:
            raise UserError(f"{type(self).__name__} has no weights: set weights: to a local file")
