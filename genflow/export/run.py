"""From a finished run to a file, which is compared with the run before it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.export.formats import FORMATS, check_packages
from genflow.export.metadata import describe_export
from genflow.export.sampler import Inputs, Sampler, check_exportable, input_names, made_up_inputs, trace
from genflow.generators.base import Generator, Precision
from genflow.runs.folder import Run
from genflow.weights import write_atomically

#: The largest difference of a number of a picture, in [-1, 1], that is let pass.
LARGEST = 1e-4
#: The root of the mean square difference that is let pass where the network's numbers have 11 or 8 bits: half a grey
#: level, and four.
ROOT_MEAN_SQUARE = {"float16": 0.5 * 2 / 255, "bfloat16": 4 * 2 / 255}
#: Batches that a file for any size is tried with; it was traced with another one.
_TRIED = (3, 1)


@dataclass(frozen=True)
class Difference:
    """How far a file is from its run.

    Args:
        largest: of all numbers of the pictures that were compared, in [-1, 1].
        root_mean_square: of the same.
        pictures: how many were compared.
    """

    largest: float
    root_mean_square: float
    pictures: int

    def exceeds(self, precision: Precision) -> str:
        """The bound that it exceeds, in words; nothing if none."""
        if precision == "float32":
            return "" if self.largest <= LARGEST else f"the largest difference is {self.largest:.2g}, above {LARGEST:g}"
        bound = ROOT_MEAN_SQUARE[precision]
        found = f"the root mean square difference is {self.root_mean_square:.2g}, above {bound:.2g}"
        return "" if self.root_mean_square <= bound else found


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        inputs: of the graph, by name.
        size: of the file, in bytes.
        difference: from the run, in float32.
    """

    inputs: Sequence[str]
    size: int
    difference: Difference


def check_out(path: Path, file_format: str, overwrite: bool) -> None:
    """See that the file can be written.

    Raises:
        UserError: a name of another format, or something lies there.
    """
    if path.suffix != f".{file_format}":
        raise UserError(f"--out: found '{path}', expected a name ending in .{file_format}")
    if path.exists() and not path.is_file():
        raise UserError(f"--out: '{path}' is a folder or no plain file")
    if path.exists() and not overwrite:
        raise UserError(f"--out: '{path}' is there already; --overwrite replaces it")


def export_run(
    run: Run,
    path: Path,
    file_format: str = "onnx",
    batch: int | None = None,
    precision: Precision = "float32",
    average: str | None = None,
    steps: int | None = None,
    interval: Sequence[float] | None = None,
) -> Exported:
    """Write a run's generator and its decoder as one file; nothing is written if it differs from the run.

    Args:
        run: what to export.
        path: the file.
        file_format: ``onnx`` or ``pt2``.
        batch: pictures of a call; None for any number.
        precision: what the network's weights are cast to, and its products are computed in; inputs, pictures, the
            decoder and a score step stay float32.
        average: which of the run's weights; None for the exported ones.
        steps, interval: as in :meth:`genflow.generators.base.Generator.set_sampling`.

    Raises:
        UserError: a generator that is no graph of fixed size, a format that cannot hold it, a package that is missing,
            or a file whose pictures are not those of the run.
    """
    check_packages(file_format)
    generator = run.generator("cpu", average)
    generator.set_sampling(steps, interval)
    check_exportable(generator)
    expected = [(inputs, _sample(generator, inputs)) for inputs in _tried(generator, batch)]
    if precision != "float32":
        generator.accelerate(precision)
    program = trace(generator, batch)
    metadata = describe_export(run, generator, program, average, precision)
    write, open_file = FORMATS[file_format]
    found: list[Difference] = []

    def write_and_compare(temporary: Path) -> None:
        write(program, temporary, metadata)
        session = open_file(temporary)
        found.append(_difference([(session(inputs), pictures) for inputs, pictures in expected]))
        if problem := found[0].exceeds(precision):
            raise UserError(f"the file's pictures are not those of {run}: {problem}; it was not kept")

    write_atomically(path, write_and_compare)
    return Exported(input_names(program), path.stat().st_size, found[0])


def _tried(generator: Generator, batch: int | None) -> list[Inputs]:
    sizes = _TRIED if batch is None else (batch, batch)
    return [made_up_inputs(generator, size, lowest) for size, lowest in zip(sizes, (False, True), strict=True)]


@torch.no_grad()
def _sample(generator: Generator, inputs: Inputs) -> Tensor:
    pictures = Sampler(generator)(**inputs)
    if not pictures.isfinite().all():
        raise UserError("the generator returned samples that are not finite")
    return pictures


def _difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    apart = torch.cat([(found - expected).double().abs() for found, expected in pairs])
    apart = apart.nan_to_num(nan=float("inf"))  # clipping keeps what is no number
    return Difference(apart.max().item(), apart.square().mean().sqrt().item(), len(apart))
