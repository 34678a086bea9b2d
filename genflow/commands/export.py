"""Write a finished run's generator as a file that needs neither GenFlow nor the run."""

import argparse
from pathlib import Path

from genflow.cli.parser import Parser


def main() -> None:
    parser = Parser(
        "Write a finished run's generator and its decoder as one file, ONNX or that of torch.export (pt2), which says "
        "what it is. Its pictures are compared with the run's before it is kept.",
        "python tools/export.py work_dirs/pmf_digits --format onnx --out pmf_digits.onnx",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--format", choices=["onnx", "pt2"], required=True)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: beside the weights in the run folder, generator.onnx)"
    )
    parser.add_argument(
        "--batch", type=_batch, default=None, metavar="N", help="pictures of a call, or dynamic: any (default: dynamic)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="of the network; inputs, pictures and the decoder stay float32",
    )
    parser.add_times("steps from noise to data, unrolled")
    parser.add_average()
    parser.add_overrides()
    parser.add_argument("--overwrite", action="store_true", help="replace the file that lies there")
    parser.add_imports()
    arguments = parser.parse_args()

    from genflow.export.run import check_out, export_run
    from genflow.runs.folder import open_run

    if arguments.out is not None:
        check_out(arguments.out, arguments.format, arguments.overwrite)
    run = open_run(arguments.run, arguments.cfg_options, arguments.allow_imports)
    out = arguments.out or run.weights_file(arguments.average).with_suffix(f".{arguments.format}")
    check_out(out, arguments.format, arguments.overwrite)
    exported = export_run(
        run,
        out,
        arguments.format,
        arguments.batch,
        arguments.precision,
        arguments.average,
        arguments.steps,
        arguments.interval,
    )
    difference = exported.difference
    print(f"{out}: {exported.size / 1e6:.1f} MB, inputs {', '.join(exported.inputs)}, output pictures in [-1, 1]")
    print(
        f"{difference.pictures} pictures compared with the run's in float32: largest difference "
        f"{difference.largest:.2g}, root mean square {difference.root_mean_square:.2g}"
    )


def _batch(text: str) -> int | None:
    """``dynamic``, or a number above 0."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65_536:
        raise argparse.ArgumentTypeError(f"found '{text}', expected dynamic or a number from 1 to 65536")
    return int(text)
