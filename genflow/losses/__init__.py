from genflow.losses.adaptive import AdaptiveWeighting
from genflow.losses.squared_error import SquaredError
