from genflow.losses.adaptive import AdaptiveWeighting
from genflow.losses.feature_distance import FeatureDistance
from genflow.losses.squared_error import SquaredError
