"""Turn released weights of the original projects into run folders."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from genflow.cli.parser import Parser, subparser

EXAMPLE = "python tools/convert_checkpoint.py pmf pmf_b16.pt work_dirs/pmf_b16_imagenet256"
PMF = (
    "Convert a released file of pMF: a PyTorch one, or an .npz archive of the JAX parameters, flattened by '/'. "
    "Which of the six sizes it is follows from its shapes."
)
IMF_EXAMPLE = "python tools/convert_checkpoint.py imf iMF-B.pth work_dirs/imf_b2_imagenet"
IMF = "Convert a released file of iMF (improved MeanFlow). Which of its sizes it is follows from its shapes."
JIT_EXAMPLE = "python tools/convert_checkpoint.py jit JiT-B.pth work_dirs/jit_b16_imagenet256"
JIT = "Convert a released file of JiT. Which of the six sizes it is follows from its shapes."
DRIFTING_EXAMPLE = "python tools/convert_checkpoint.py drifting latent_B_sota work_dirs/drift_b2_imagenet"
DRIFTING = (
    "Convert a released folder of Drifting, which holds metadata.json and ema_params.msgpack of a generator or of a "
    "feature encoder. Which of the eight models it is stands in metadata.json."
)


def main() -> None:
    parser = Parser(
        "Turn released weights of the original projects into run folders, for tools/sample.py and tools/evaluate.py. "
        "Nothing in a file is executed.",
        EXAMPLE,
    )

    projects = parser.add_subparsers(metavar="PROJECT", required=True, parser_class=subparser)
    pmf = projects.add_parser("pmf", help="pMF (arXiv 2601.22158)", description=PMF, example=EXAMPLE)
    pmf.add_argument("source", type=Path, metavar="FILE", help="the released file")
    imf = projects.add_parser("imf", help="improved MeanFlow (arXiv 2512.02012)", description=IMF, example=IMF_EXAMPLE)
    imf.add_argument("source", type=Path, metavar="FILE", help="the released file")
    jit = projects.add_parser("jit", help="JiT (arXiv 2511.13720)", description=JIT, example=JIT_EXAMPLE)
    jit.add_argument("source", type=Path, metavar="FILE", help="the released file")
    jit.add_argument(
        "--weights",
        metavar="ENTRY",
        help="which weights of a file with several: model, model_ema1, ... (default: model_ema1, else model)",
    )
    drifting = projects.add_parser(
        "drifting", help="Drifting (arXiv 2602.04770)", description=DRIFTING, example=DRIFTING_EXAMPLE
    )
    drifting.add_argument("source", type=Path, metavar="FOLDER", help="the released folder")
    converters = ((pmf, _convert_pmf), (imf, _convert_imf), (jit, _convert_jit), (drifting, _convert_drifting))
    for project, convert in converters:
        project.add_argument("out", type=Path, metavar="OUT", help="run folder to write; nothing may be there")
        project.add_argument("--recipe", type=Path, help="YAML recipe of a model that was not released")
        project.set_defaults(convert=convert)
    arguments = parser.parse_args()
    from genflow.config.recipe_files import RECIPES

    given = (arguments.source, arguments.out, RECIPES, arguments.recipe)
    print(f"{arguments.out}: {arguments.convert(arguments, given)}")


def _convert_pmf(arguments: Namespace, given: tuple[Any, ...]) -> str:
    from genflow.conversion.pmf_release import convert_pmf

    return f"{arguments.source} with {convert_pmf(*given).name}"


def _convert_imf(arguments: Namespace, given: tuple[Any, ...]) -> str:
    from genflow.conversion.pmf_release import convert_imf

    return f"{arguments.source} with {convert_imf(*given).name}"


def _convert_jit(arguments: Namespace, given: tuple[Any, ...]) -> str:
    from genflow.conversion.jit_release import convert_jit

    recipe, entry = convert_jit(*given, arguments.weights)
    return f"{entry or 'the weights'} of {arguments.source} with {recipe.name}"


def _convert_drifting(arguments: Namespace, given: tuple[Any, ...]) -> str:
    from genflow.conversion.drifting_release import convert_drifting

    return f"{arguments.source} with {convert_drifting(*given).name}"
