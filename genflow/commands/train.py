"""Train a recipe."""

from pathlib import Path

from genflow.cli.parser import Parser, recipe


def main() -> None:
    parser = Parser(
        "Train a recipe; missing prerequisites are trained first. Writes work_dirs/<recipe>/.",
        "python tools/train.py recipes/biflow_digits.yaml --cfg-options train_cfg.max_iters=200",
    )
    parser.add_argument("recipe", type=recipe, help="YAML recipe, or name of GenFlow's own")
    parser.add_argument("--work-dir", type=Path, help="run folder (default: work_dirs/<recipe>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CKPT", help="continue from the newest checkpoint, or from CKPT"
    )
    parser.add_overrides()
    parser.add_argument(
        "--allow-change", action="store_true", help="resume with other data, batch size, noise or seed than before"
    )
    parser.add_argument(
        "--launcher",
        choices=["auto", "none", "pytorch", "slurm"],
        default="auto",
        help="what started the processes (default: auto, by the variables that torchrun and srun set)",
    )
    parser.add_argument("--seed", type=int, help="override the recipe's seed")
    arguments = parser.parse_args()

    from genflow.engine.distributed import launched_rank
    from genflow.engine.signals import TrainingStopped
    from genflow.engine.train import TrainOptions, train

    options = TrainOptions(arguments.work_dir, arguments.resume, arguments.launcher, arguments.allow_change)
    try:
        work_dir = train(arguments.recipe, arguments.cfg_options, arguments.seed, options)
    except TrainingStopped as error:
        raise TrainingStopped(error.number, f"{error}; --resume goes on") from None
    if launched_rank() == 0:
        pictures = sorted((work_dir / "samples").glob("*.png"))
        print(f"samples: {pictures[-1]}" if pictures else f"trained: {work_dir}")
