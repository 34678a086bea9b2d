"""Publish a finished run on the Hugging Face Hub, or take one from there."""

import sys
from argparse import Namespace
from pathlib import Path

from genflow.cli.parser import Parser, subparser

PUSH = (
    "Publish a finished run: its weights, recipe, figures, newest grid of samples, and a model card written from them. "
    "Absolute paths are cut down to last names; logs and checkpoints stay. Says what it will publish before it does."
)
PUSH_EXAMPLE = "python tools/share.py push work_dirs/biflow_digits user/biflow-digits --licence MIT --dry-run look"
PULL = (
    "Make a run folder of a run on the hub. Only files with the names of a run's are fetched, nothing in them is "
    "executed, and the weights are compared with their digests and with the recipe."
)
PULL_EXAMPLE = "python tools/share.py pull user/biflow-digits work_dirs/biflow_digits"


def main() -> None:
    parser = Parser(
        "Publish a finished run on the Hugging Face Hub, or take one; the other tools take hub:user/name, too.",
        PUSH_EXAMPLE,
    )

    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=subparser)
    push = commands.add_parser("push", help="publish a run", description=PUSH, example=PUSH_EXAMPLE)
    push.add_argument("run", type=Path, help="run folder")
    push.add_argument("name", help="user/name on the hub")
    push.add_argument("--licence", "--license", help="of the weights, an SPDX identifier; it is never guessed")
    push.add_argument("--private", action="store_true", help="for you alone; an existing public one is refused")
    push.add_argument("--scalars", action="store_true", help="also the scalars of every update (scalars.jsonl)")
    push.add_argument("--dry-run", type=Path, metavar="FOLDER", help="only write there what would be published")
    push.add_argument("--overwrite", action="store_true", help="add a revision in the place of what is there")
    push.set_defaults(act=_push)
    pull = commands.add_parser("pull", help="take a run", description=PULL, example=PULL_EXAMPLE)
    pull.add_argument("name", help="user/name on the hub, or user/name@revision")
    pull.add_argument("out", type=Path, nargs="?", metavar="OUT", help="run folder to write (default: work_dirs/name)")
    pull.set_defaults(act=_pull)
    for command in (push, pull):
        command.add_imports()
    arguments = parser.parse_args()
    arguments.act(arguments)


def _push(arguments: Namespace) -> None:
    from genflow.cli.progress import console
    from genflow.runs.folder import open_run
    from genflow.runs.hub import HubName
    from genflow.sharing.push import check_licence, check_place, contents, push, size_of, write_folder

    licence = check_licence(arguments.licence)
    name = HubName.parse(arguments.name)
    _quiet()
    run = open_run(arguments.run, allow_imports=arguments.allow_imports)
    files, cut = contents(run, name, licence, arguments.scalars)
    there = [] if arguments.dry_run else check_place(name, arguments.private, arguments.overwrite)
    lines = [f"{size_of(content):>14,} bytes  {file}" for file, content in sorted(files.items())]
    lines += [f"cut to the last name: {place} -> {text}" for place, text in cut.items()]
    if run.class_names:
        lines.append(f"metrics.json has the names of {len(run.class_names)} classes")
    lines += [f"goes, but for older revisions: {file}" for file in there if file not in files]
    visible = "for you alone" if arguments.private else "for everybody"
    console().print(f"{name}, {visible}, licence {licence}:", *lines, sep="\n", soft_wrap=True)
    if arguments.dry_run:
        write_folder(files, arguments.dry_run)
        print(f"{arguments.dry_run}: what would be published")
        return
    sys.stdout.flush()
    commit = push(name, files, arguments.private, there, f"{run.name}, by GenFlow")
    print(f"published: {name}@{commit}")


def _pull(arguments: Namespace) -> None:
    from genflow.runs.hub import HubName
    from genflow.sharing.pull import pull

    name = HubName.parse(arguments.name)
    out = arguments.out or Path("work_dirs") / name.repository.split("/")[1]
    _quiet()
    files = pull(name, out, arguments.allow_imports)
    print(f"{out}: {len(files)} files of {name}")


def _quiet() -> None:
    """The hub's progress bars are for a terminal."""
    from genflow.runs.hub import hub

    client = hub()
    if not sys.stderr.isatty():
        client.utils.disable_progress_bars()
