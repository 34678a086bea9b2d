"""Evaluate a finished run."""

from pathlib import Path

from genflow.cli.parser import Parser, default_device, device
from genflow.cli.progress import console, progress_bar


def main() -> None:
    parser = Parser(
        "Measure a finished run as its recipe's evaluation section says, beside real data; the figures also go to the "
        "run's metrics.json. A killed call goes on where it stopped; under torchrun the processes share the work.",
        "python tools/evaluate.py work_dirs/pmf_digits --sweep guidance=1:3:0.5 average=all",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the recipe's)")
    parser.add_times()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_average()
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="NAME=VALUES",
        help="measure many settings: guidance=1:4:0.5, average=all, interval=0:1,0.1:0.7, steps=1,2, seed=0,1; also "
        "draws sweep.png in the run folder",
    )
    parser.add_argument("--num-samples", type=int, metavar="N", help="images to generate (default: the recipe's)")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="N", help="error bars from N resamplings")
    parser.add_argument("--device", type=device, help="where to generate (default: a GPU of each process, or the CPU)")
    parser.add_overrides()
    parser.add_argument(
        "--launcher", choices=["auto", "none", "pytorch", "slurm"], default="auto", help="what started the processes"
    )
    parser.add_imports()
    arguments = parser.parse_args()
    if not 0 <= arguments.bootstrap <= 100_000:
        parser.error(f"--bootstrap: found {arguments.bootstrap}, expected 0 to 100,000")

    from mmengine.dist import get_world_size, is_main_process

    from genflow.engine.distributed import find_launcher, start_process_group, training_device
    from genflow.runs.evaluate import Setting, report_table
    from genflow.runs.folder import RAW, open_run
    from genflow.runs.sweep import best_of, draw_sweep, settings_of, sweep_run, sweep_table

    start_process_group(find_launcher(arguments.launcher))
    overrides = list(arguments.cfg_options)
    if arguments.num_samples is not None:
        overrides.append(f"evaluation.num_samples={arguments.num_samples}")
    run = open_run(arguments.run, overrides, arguments.allow_imports)
    interval = None if arguments.interval is None else tuple(arguments.interval)
    base = Setting(arguments.seed, arguments.guidance, arguments.average, arguments.steps, interval)
    averages = [run.exported_average, *(name for name in (*run.averages, RAW) if name != run.exported_average)]
    settings = settings_of(arguments.sweep, base, list(dict.fromkeys(averages)))
    where = arguments.device or (training_device() if get_world_size() > 1 else default_device())
    with progress_bar("evaluating") as bar:
        task = bar.add_task("", total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        reports = sweep_run(run, settings, where, told, get_world_size() > 1, arguments.bootstrap)
    if not is_main_process():
        return
    if not arguments.sweep:
        console().print(report_table(reports[0]))
    else:
        console().print(sweep_table(settings, reports))
        figure, best = best_of(reports)
        average = best["average"] or run.exported_average
        print(f"best {figure}: {best['model'][figure]:.3f} at guidance {best['guidance']:g}, average {average}")
        draw_sweep(settings, reports, run.path / "sweep.png")
        print(run.path / "sweep.png")
    if "beside" in reports[0]:
        print(f"published figures that these may stand beside: {reports[0]['beside']}")
