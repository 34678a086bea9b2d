"""A page to try finished runs in."""

from pathlib import Path

from genflow.cli.parser import Parser


def main() -> None:
    parser = Parser(
        "Show a page in the browser to try finished runs in: samples of several runs beside each other, walks between "
        "seeds, and edits with a run of BiFlow. Ctrl-C ends it.",
        "python tools/demo.py work_dirs/pmf_digits work_dirs/biflow_digits",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_average()
    parser.add_device()
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_overrides()
    parser.add_imports()
    arguments = parser.parse_args()

    from genflow.demo.server import check_address, require_gradio, serve

    require_gradio()
    check_address(arguments.host, arguments.port)

    from genflow.demo.sampled_run import SampledRun
    from genflow.runs.folder import open_run

    runs = [open_run(path, arguments.cfg_options, arguments.allow_imports) for path in arguments.runs]
    subjects = [SampledRun(run, arguments.device, arguments.average) for run in runs]
    serve(subjects, arguments.device, arguments.host, arguments.port)
