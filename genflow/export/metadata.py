"""What an exported file says about itself."""

import json
from typing import Any

from torch.export import ExportedProgram

import genflow
from genflow.analysis.description import cost_or_reason, figures, system
from genflow.config.recipe import dump_yaml
from genflow.export.sampler import input_names
from genflow.generators.base import Generator
from genflow.runs.folder import Run


def describe_export(
    run: Run, generator: Generator, program: ExportedProgram, average: str | None, precision: str
) -> dict[str, str]:
    """The entries of a file's metadata: text, of which ``recipe`` is YAML and those with structure are JSON.

    Args:
        run: what is exported.
        generator: its generator, as it samples.
        program: the graph.
        average: which of its weights; None for the exported ones.
        precision: of the network.
    """
    inputs = _inputs(generator)
    sampling = {name: getattr(generator, name) for name in ("steps", "interval") if hasattr(generator, name)}
    return {
        "genflow_version": genflow.__version__,
        "system": run.graph.model.cls.__name__,
        "paper": _paper(run),
        "recipe": dump_yaml(run.graph.plain),
        "average": average or run.exported_average,
        "precision": precision,
        "network_evaluations": str(generator.nfe),
        "sampling": json.dumps(sampling),
        "multiply_adds": json.dumps(figures(cost_or_reason(run.graph))),
        "class_names": json.dumps(run.class_names, ensure_ascii=False),
        "inputs": json.dumps({name: inputs[name] for name in input_names(program)}),
        "outputs": json.dumps(_outputs(generator)),
    }


def _paper(run: Run) -> str:
    """Where the model was published, or else what the method is, with its papers."""
    source = run.graph.section("published").get("source")
    return str(source) if source else system(run.graph)


def _inputs(generator: Generator) -> dict[str, dict[str, Any]]:
    channels, rows, columns = generator.noise_shape
    codebooks, entries = getattr(generator.network, "style_codes", (0, 0))
    lowest = generator.lowest_guidance
    return {
        "noise": {
            "shape": ["batch", channels, rows, columns],
            "type": "float32",
            "meaning": "standard normal numbers, independent of each other",
        },
        "labels": {
            "shape": ["batch"],
            "type": "int64",
            "meaning": "the class of each picture",
            "range": [0, generator.num_classes - 1],
        },
        "guidance": {
            "shape": ["batch"],
            "type": "float32",
            "meaning": "the guidance scale of each picture",
            "lowest": lowest if lowest > float("-inf") else None,
            "default": generator.default_guidance,
        },
        "style": {
            "shape": ["batch", codebooks],
            "type": "int64",
            "meaning": "style codes, each drawn uniformly",
            "range": [0, entries - 1],
        },
    }


def _outputs(generator: Generator) -> dict[str, dict[str, Any]]:
    return {
        "pictures": {
            "type": "float32",
            "meaning": "(batch, channels, rows, columns); -1 is black, 1 is white; decoded and clipped",
            "range": [-1, 1],
        }
    }
