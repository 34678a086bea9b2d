"""GenFlow: one-step image generation in PyTorch.

Importing the package registers every built-in component; heavy optional packages are imported when used.
"""

from genflow import (
    backbones,
    codecs,
    data,
    engine,
    evaluation,
    feature_encoders,
    field_estimators,
    flow_teachers,
    guidance,
    inverse_heads,
    losses,
    methods,
    time_samplers,
)
from genflow.condition import Condition
from genflow.config.graph import ComponentGraph
from genflow.config.recipe import load_recipe
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.generators.base import Generator
from genflow.inference.write_images import save_grid
from genflow.runs.folder import Run, open_run

__version__ = "0.1.0"
