"""Files of graphs: ONNX, and torch.export's own; each is written, read and run."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from genflow.errors import UserError, missing_extra, reason
from genflow.export.sampler import Inputs, input_names

#: Runs a file that was read.
Session = Callable[[Inputs], torch.Tensor]

#: Bytes of a protocol buffer, which an ONNX file is, with some room for the graph beside the weights.
_MOST_BYTES = 2**31 - 2**24


def check_packages(file_format: str) -> None:
    """See that a format can be written and read.

    Raises:
        UserError: a package is missing.
    """
    if file_format != "onnx":
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_extra(package, "export") from error


def write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph and its weights as one ONNX file, what it is in its metadata.

    Raises:
        UserError: more than a protocol buffer holds, or an operator that ONNX has no words for.
    """
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _MOST_BYTES:
        raise UserError(
            f"--format onnx: the weights take {size / 2**30:.1f} GiB, one ONNX file holds 2; use "
            "--precision float16 or --format pt2"
        )
    names = input_names(program)
    try:
        exported = torch.onnx.export(program, input_names=names, output_names=["pictures"], verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"--format onnx: {reason(error.__cause__ or error)}") from error
    graph = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        if not isinstance(value.shape[0], int):
            value.shape = type(value.shape)(["batch", *value.shape[1:]])
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


def open_onnx(path: Path) -> Session:
    """Read an ONNX file with ONNX Runtime, on the CPU.

    Raises:
        UserError: it has no kernel for an operator.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # classes of its own, which it does not name in public
        raise UserError(f"--format onnx: ONNX Runtime cannot open the file: {reason(error)}") from error

    def run(inputs: Inputs) -> torch.Tensor:
        arrays = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
        return torch.from_numpy(np.asarray(session.run(None, arrays)[0]))

    return run


def write_pt2(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph and its weights as torch.export does, what it is in ``extra_files``."""
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files=dict(metadata))


def open_pt2(path: Path) -> Session:
    """Read what :func:`write_pt2` wrote."""
    with open(path, "rb") as file:
        program = torch.export.load(file)
    module, names = program.module(), input_names(program)

    @torch.no_grad()
    def run(inputs: Inputs) -> torch.Tensor:
        return module(**{name: inputs[name] for name in names})

    return run


#: {format: (writes a file, opens it)}; also the suffixes of their names.
FORMATS = {"onnx": (write_onnx, open_onnx), "pt2": (write_pt2, open_pt2)}
