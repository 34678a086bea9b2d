"""Recipes with one mistake each: refused in one line that names the place, or fine for at least an update.

``GENFLOW_MUTANTS=1000`` tries more than the few of every run, and ``GENFLOW_MUTATION_SEED`` others.
"""

import copy
import math
import os
import random
import re
import signal
import warnings
from pathlib import Path

import pytest

from genflow import ComponentGraph, UserError, load_recipe
from genflow.engine.preflight import check, check_untrained
from genflow.runs.folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ["biflow_digits", "biflow_digits_perceptual", "drift_digits", "sinkhorn_digits", "pmf_digits"]
NAMES += ["itarflow_digits", "mae_digits", "classifier_digits"]
MUTANTS = int(os.environ.get("GENFLOW_MUTANTS", "50"))
SEED = int(os.environ.get("GENFLOW_MUTATION_SEED", "12"))
#: Seconds of the processor that a mutant may take, and the share of refused ones whose message must name the place.
LIMIT, NAMED = 10, 0.97
VALUES = [None, True, False, -1, 0, 1, 2, 3, 7, 1000, 10**6, 10**9, 2**31, 10**20, -0.5, 0.0, 0.5, 1.5, 1e308, 1e-308]
VALUES += [math.nan, math.inf, "", "text", "1e-3", "$nothing", "$encoder", "../x", "a\nb", [], [1], [1.0, 0.2]]
VALUES += [[-1, "a"], [0.5] * 3, {}, {"a": 1}, {"type": "Nothing"}, {"type": "Muon"}, {"type": "SquaredError"}]


def places(value, path=()):
    """Every place below a value, with what lies there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in pairs:
        yield (*path, key), entry
        yield from places(entry, (*path, key))


def at(recipe, path):
    for key in path:
        recipe = recipe[key]
    return recipe


def mutated(recipe, chance):
    """A copy with one change, and the path of its place."""
    mutant = copy.deepcopy(recipe)
    path, old = chance.choice(list(places(recipe)))
    parent, key = at(mutant, path[:-1]), path[-1]
    how = chance.choice(["value", "value", "value", "number", "delete", "rename", "add", "swap"])
    if how == "number" and isinstance(old, (int, float)) and not isinstance(old, bool):
        parent[key] = chance.choice([-old, old * 10, old * 1000, old * 10**6, old + 1, old / 3, old - 1])
    elif how == "delete" and isinstance(parent, dict):
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
        path = (*path[:-1], f"{key}s")
    elif how == "add" and isinstance(old, dict):
        parent[key]["surplus"] = chance.choice(VALUES)
        path = (*path, "surplus")
    elif how == "swap":
        parent[key] = copy.deepcopy(chance.choice(list(places(recipe)))[1])
    else:
        parent[key] = chance.choice(VALUES)
    return mutant, path


def names_the_place(message, path):
    """Whether a message has the place, or the name of its key or of the component that holds it."""
    parts = [str(part) for part in path]
    inner = ".".join(parts[len(parts) - parts[::-1].index("recipe") :]) if "recipe" in parts else ".".join(parts)
    around = [place for place in (inner, inner.rpartition(".")[0]) if place]
    holder = parts[-2] if len(parts) > 1 and not parts[-1].isdecimal() else parts[-1]
    return any(place in message for place in around) or re.search(rf"\b({holder}|{parts[-1]})\b", message) is not None


def outcome(mutant, folder):
    """None if all checks pass, or the one line with which they refuse."""
    try:
        graph = ComponentGraph.from_recipe(mutant, "mutant.yaml")
        check(graph)
        check_untrained(graph, RunFolder(folder / "run"))
    except UserError as error:
        return str(error)
    return None


class TooLong(BaseException):
    """Past the components' own handlers."""


def too_long(number, frame):
    raise TooLong(f"more than {LIMIT} s")


@pytest.fixture
def alarm():
    """Of the processor's seconds, for the machine may have more to do."""
    before = signal.signal(signal.SIGPROF, too_long)
    yield lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.signal(signal.SIGPROF, before)


def test_mutants_are_refused_in_a_line_that_names_the_place_or_pass(tmp_path, alarm):
    warnings.simplefilter("ignore")
    recipes = [load_recipe(RECIPES / f"{name}.yaml") for name in NAMES]
    chance = random.Random(SEED)
    unnamed, wrong, refused = [], [], 0
    for number in range(MUTANTS):
        recipe = recipes[number % len(recipes)]
        mutant, path = mutated(recipe, chance)
        what = f"{NAMES[number % len(recipes)]} {'.'.join(map(str, path))}"
        alarm(LIMIT)
        try:
            message = outcome(mutant, tmp_path)
        except BaseException as error:  # a traceback, or the alarm
            wrong.append(f"{what}: {type(error).__name__}: {error}")
            continue
        finally:
            alarm(0)
        if message is None:
            continue
        refused += 1
        if not message.isprintable() or len(message) > 1000:
            wrong.append(f"{what}: {message!r}")
        if not names_the_place(message, path):
            unnamed.append(f"{what}: {message}")
    assert wrong == []
    assert refused > MUTANTS / 3
    assert len(unnamed) <= (1 - NAMED) * refused, "\n".join(unnamed)
