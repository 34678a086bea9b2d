"""Whether a run is whole: its weights are read, and laid beside what its recipe builds."""

from pathlib import Path

from genflow.config.building import built_on_meta
from genflow.errors import UserError
from genflow.runs.folder import Run
from genflow.weights import check_state, read_weights


def weights_files(run: Run) -> list[Path]:
    """The files of a run's weights that its recipe knows of: the exported average, the others, its prerequisites'.

    Others that lie there are left out.

    Raises:
        UserError: the weights of a prerequisite are missing that it takes to sample.
    """
    known = {run.weights_file(name) for name in ("none", *run.graph.section("ema"))}
    averages = sorted(file for file in known - {run.weights_file()} if file.is_file())
    needed: set[str] = set()
    built_on_meta(lambda: run.graph.build(needed.add, for_training=False))
    kept = []
    for name in run.graph.prerequisites:
        file = run.prerequisite_file(name)
        if file.is_file():
            kept.append(file)
        elif name in needed:
            raise UserError(f"{run}: the weights of its prerequisite '{name}' are missing: {file}")
    return [run.weights_file(), *averages, *kept]


def check_weights(run: Run) -> list[Path]:
    """Read all of a run's weights.

    Returns:
        :func:`weights_files`.

    Raises:
        UserError: a file is missing, damaged, or not what the recipe builds; names it.
    """
    own = run.graph.build_artifact().state_dict()
    of_prerequisites = {run.prerequisite_file(name): entry.graph for name, entry in run.graph.prerequisites.items()}
    files = weights_files(run)
    for file in files:
        graph = of_prerequisites.get(file)
        expected = own if graph is None else graph.build_artifact().state_dict()
        try:
            check_state(expected, read_weights(file))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{file}: does not fit {run.recipe_file}: {error}") from None
    return files
