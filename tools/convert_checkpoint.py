"""Turn released weights of the original projects into run folders."""

from pathlib import Path
from typing import Any

from genflow.cli import Parser, run_tool

EXAMPLE = "python tools/convert_checkpoint.py pmf pmf_b16.pt work_dirs/pmf_b16_imagenet256"
PMF = (
    "Convert a released file of pMF: the PyTorch one, or an .npz archive of the JAX parameters, flattened by '/'. "
    "Which of the six sizes it is, its shapes tell."
)


def main() -> None:
    parser = Parser(
        "Turn released weights of the original projects into run folders, for tools/sample.py and tools/evaluate.py. "
        "Nothing in a file is executed.",
        EXAMPLE,
    )

    def subparser(prog: str, description: str, example: str, **_: Any) -> Parser:
        made = Parser(description, example)
        made.prog = prog
        return made

    projects = parser.add_subparsers(metavar="PROJECT", required=True, parser_class=subparser)
    pmf = projects.add_parser("pmf", help="pMF (arXiv 2601.22158)", description=PMF, example=EXAMPLE)
    pmf.add_argument("file", type=Path, metavar="FILE", help="the released file")
    pmf.add_argument("out", type=Path, metavar="OUT", help="run folder to write; nothing may be there")
    pmf.add_argument("--recipe", type=Path, help="YAML recipe of a size that was not released")
    pmf.set_defaults(run=_convert_pmf)
    arguments = parser.parse_args()
    arguments.run(arguments)


def _convert_pmf(arguments: Any) -> None:
    from genflow.conversion.pmf_release import convert_pmf

    recipes = Path(__file__).resolve().parents[1] / "recipes"
    recipe = convert_pmf(arguments.file, arguments.out, recipes, arguments.recipe)
    print(f"{arguments.out}: {arguments.file} with {recipe.name}")


if __name__ == "__main__":
    run_tool(main)
