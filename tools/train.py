"""Train a recipe."""

import sys
from pathlib import Path

from genflow.cli.parser import Parser, run_tool


def main() -> None:
    parser = Parser(
        "Train a recipe; missing prerequisites are trained first. Writes work_dirs/<recipe>/.",
        "python tools/train.py recipes/biflow_digits.yaml --cfg-options train_cfg.max_iters=200",
    )
    parser.add_argument("recipe", help="YAML recipe")
    parser.add_argument("--work-dir", type=Path, help="run folder (default: work_dirs/<recipe>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CKPT", help="continue from the newest checkpoint, or from CKPT"
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override recipe entries")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    parser.add_argument("--seed", type=int, help="override the recipe's seed")
    arguments = parser.parse_args()

    from genflow.engine.loop import TrainingDiverged
    from genflow.engine.train import TrainOptions, train

    options = TrainOptions(arguments.work_dir, arguments.resume, arguments.launcher)
    try:
        work_dir = train(arguments.recipe, arguments.cfg_options, arguments.seed, options)
    except TrainingDiverged as error:
        print(f"training stopped at {error}", file=sys.stderr)
        sys.exit(1)
    if options.launcher == "none":
        pictures = sorted((work_dir / "samples").glob("*.png"))
        print(f"samples: {pictures[-1]}" if pictures else f"trained: {work_dir}")


if __name__ == "__main__":
    run_tool(main)
