"""The contract of field estimators."""

from torch import nn


class FieldEstimator(nn.Module):
    """What moves a sample: a drifting field in feature space, or a velocity along a path.

    The two families have different inputs; each states its own ``forward`` in the contract of its family.
    """

    kind = "field estimator"
