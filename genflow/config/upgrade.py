"""Recipes of older run folders, in today's words."""

from typing import Any

#: Modules that older recipes import, and where they are now.
MOVED_MODULES = {"genflow.analysis.drift_toy": "genflow.reproduction.drift_toy"}
#: Arguments of components that say how to train and not what; they are settings of ``train_cfg`` now.
_TRAINING_SETTINGS = {"PixelTransformer": ("checkpointing", "compile"), "LightningDiT": ("checkpointing",)}


def upgrade(recipe: dict[str, Any]) -> None:
    """Put settings that have moved where they belong now, in place, in a recipe and in its prerequisites' recipes."""
    moved: set[str] = set()
    _take_settings(recipe.get("model"), moved)
    _take_settings(recipe.get("components"), moved)
    training = recipe.get("train_cfg")
    if isinstance(training, dict):
        for name in sorted(moved):
            training.setdefault(name, True)
    prerequisites = recipe.get("prerequisites")
    for entry in prerequisites.values() if isinstance(prerequisites, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("recipe"), dict):
            upgrade(entry["recipe"])


def _take_settings(value: Any, moved: set[str]) -> None:
    """Remove the settings from components, and note those that were on."""
    if isinstance(value, list):
        for entry in value:
            _take_settings(entry, moved)
    elif isinstance(value, dict):
        component = value.get("type")
        for name in _TRAINING_SETTINGS.get(component, ()) if isinstance(component, str) else ():
            if value.pop(name, False):
                moved.add(name)
        for entry in value.values():
            _take_settings(entry, moved)
