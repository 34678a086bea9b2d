"""Losses and sample grids of runs over their updates, in one picture."""

from pathlib import Path

from genflow.cli.parser import Parser


def main() -> None:
    parser = Parser(
        "Draw what runs logged over their updates, finished or not: the loss and the terms that they share, distances "
        "held out, the gradient's norm; and for each its first, middle and last grid of samples.",
        "python tools/plot.py work_dirs/pmf_digits work_dirs/drift_digits --out curves.png",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture that lies there")
    arguments = parser.parse_args()

    from genflow.inference.write_images import check_out
    from genflow.runs.curves import draw_curves, read_curves
    from genflow.runs.folder import RunFolder

    check_out(arguments.out, (".png",), overwrite=arguments.overwrite)
    draw_curves([read_curves(RunFolder(path)) for path in arguments.runs], arguments.out)
    print(arguments.out)
