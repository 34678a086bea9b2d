"""Prepare data for training: pictures cropped once, latents of a codec, checks."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genflow.cli.parser import Parser, device, subparser
from genflow.cli.progress import progress_bar

if TYPE_CHECKING:
    from genflow.data.packed import Index
    from genflow.preparation.sources import Source


def main() -> None:
    arguments = parse()
    arguments.run(arguments)


def parse() -> argparse.Namespace:
    parser = Parser(
        "Prepare data for training. What is there already is left alone, a killed call goes on where it stopped, and "
        "under torchrun the processes share the work.",
        "python tools/prepare_data.py images photos/ data/folder64 --size 64",
    )
    commands = parser.add_subparsers(
        title="what to prepare (each with --help of its own)", metavar="WHAT", required=True, parser_class=subparser
    )
    images = commands.add_parser(
        "images",
        help="crop pictures once and pack them",
        description="Crop pictures to squares as ADM does and pack them for PackedImages.",
        example="python tools/prepare_data.py images photos.zip data/folder64 --size 64 --unreadable skip",
    )
    _add_source(images)
    images.add_argument("--size", type=int, required=True, help="side of the squares in pixels")
    images.set_defaults(run=_images)
    latents = commands.add_parser(
        "latents",
        help="encode pictures and their mirror images by a codec and pack the moments",
        description="Encode pictures and their mirror images by a recipe's codec, and pack means and standard "
        "deviations of their posteriors for LatentCache.",
        example="GENFLOW_SD_VAE=sd-vae-ft-mse python tools/prepare_data.py latents imagenet/train "
        "data/imagenet256_latents --recipe recipes/biflow_b2_imagenet.yaml --workers 8",
    )
    _add_source(latents)
    latents.add_argument("--recipe", required=True, help="YAML recipe whose codec encodes")
    latents.add_overrides()
    latents.add_argument("--batch-size", type=int, default=64, help="pictures encoded at once (default: 64)")
    latents.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the codec")
    latents.add_argument("--device", type=device, help="where to encode (default: a GPU of each process, or the CPU)")
    latents.add_imports()
    latents.set_defaults(run=_latents)
    emoji = commands.add_parser(
        "emoji",
        help="the colour pictures of an emoji font",
        description="Draw the emoji of a font with colour bitmaps over white, labelled with Unicode's groups, without "
        "those that differ in the tone of a skin.",
        example="python tools/prepare_data.py emoji --font NotoColorEmoji.ttf --out data/emoji32 --size 32",
    )
    emoji.add_argument("--font", type=Path, required=True, help="Noto's, from the package fonts-noto-color-emoji")
    emoji.add_argument("--out", type=Path, required=True, help="folder to write")
    emoji.add_argument("--size", type=int, default=32, help="side of the squares in pixels (default: 32)")
    emoji.add_argument("--split", choices=["all", "train", "test"], default="all", help="all, or one half of them")
    emoji.add_argument(
        "--emoji-test", type=Path, help="Unicode's list (default: where the package unicode-data has it)"
    )
    emoji.set_defaults(run=_emoji)
    statistics = commands.add_parser(
        "statistics",
        help="mean and covariance of a data set's features, for Frechet distances",
        description="Write mean and covariance of an extractor's features of packed pictures, for GenerationEvaluator.",
        example="python tools/prepare_data.py statistics data/imagenet256 imagenet256.npz --convention jax",
    )
    statistics.add_argument("source", help="packed pictures")
    statistics.add_argument("out", type=Path, metavar="OUT.npz", help="file to write")
    statistics.add_argument(
        "--extractor",
        help="a run folder, whose artifact encodes, or a feature encoder as in a recipe (default: the convention's "
        "Inception)",
    )
    statistics.add_argument(
        "--convention", default="torch_fidelity", help="adm, torch_fidelity (default), jax or drifting"
    )
    statistics.add_argument("--batch-size", type=int, default=64, help="pictures at once (default: 64)")
    statistics.add_argument(
        "--device", type=device, help="where to encode (default: a GPU of each process, or the CPU)"
    )
    _add_launcher(statistics)
    statistics.add_imports()
    statistics.set_defaults(run=_statistics)
    verify = commands.add_parser(
        "verify",
        help="compare packed data with their checksums, or look at a file of statistics",
        description="Read every file of packed data and compare it with the index, a line for each that differs; or "
        "see that a file of statistics can be used.",
        example="python tools/prepare_data.py verify data/folder64",
    )
    verify.add_argument("folder", type=Path, help="packed data, or an .npz of statistics")
    verify.set_defaults(run=_verify)
    return parser.parse_args()


def _add_source(parser: Parser) -> None:
    parser.add_argument("source", help="folder, .zip or .tar of pictures, or cifar10, cifar100, celeba of torchvision")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; empty, or begun by the same call")
    parser.add_argument(
        "--labels", default="folders", help="folders: a class each (default); none; or a .json or .csv file in SOURCE"
    )
    parser.add_argument("--channels", type=int, choices=[1, 3], default=3, help="1 for grey (default: 3)")
    parser.add_argument("--background", default="white", help="colour behind transparent pixels (default: white)")
    parser.add_argument(
        "--unreadable",
        choices=["stop", "skip"],
        default="stop",
        help="at a picture that cannot be read (default: stop)",
    )
    parser.add_argument("--split", default="train", help="of torchvision's data sets (default: train)")
    parser.add_argument("--root", type=Path, default=Path("data/torchvision"), help="torchvision's folder of data sets")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch what is not there")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures (default: this one)")
    parser.add_argument("--shard-size", type=int, help="samples in a file (default: about a GiB of them)")
    _add_launcher(parser)


def _add_launcher(parser: Parser) -> None:
    parser.add_argument(
        "--launcher", choices=["auto", "none", "pytorch", "slurm"], default="auto", help="what started the processes"
    )


def _images(arguments: argparse.Namespace) -> None:
    from genflow.preparation.packing import Reader, pack_images

    with ExitStack() as stack:
        source = _open(arguments, arguments.size, stack)
        reader = stack.enter_context(Reader(source, arguments.workers, arguments.unreadable))
        index = pack_images(reader, arguments.out, arguments.shard_size, _shown(stack, "packing"))
    size, classes = index.shape[0], index.num_classes
    dataset = f"{{type: PackedImages, data_root: {arguments.out}, image_size: {size}, channels: {index.shape[2]}}}"
    _say(arguments.out, index, f"pictures of {size} x {size} pixels", classes, dataset)


def _latents(arguments: argparse.Namespace) -> None:
    from genflow.codecs.base import Codec
    from genflow.config.graph import ComponentGraph
    from genflow.engine.distributed import training_device
    from genflow.errors import UserError
    from genflow.inference.editing import pixel_shape
    from genflow.preparation.packing import Reader, pack_latents

    graph = ComponentGraph.load(arguments.recipe, arguments.cfg_options, allow_imports=arguments.allow_imports)
    codec = graph.build_argument("codec")
    if not isinstance(codec, Codec):
        raise UserError(f"{graph.source}: model: has no codec to encode with")
    if not codec.can_decode:
        raise UserError(f"{graph.source}: the codec has no weights: {codec.weights_hint}")
    with ExitStack() as stack:
        arguments.channels = pixel_shape(codec)[0]
        source = _open(arguments, pixel_shape(codec)[-1], stack)
        reader = stack.enter_context(Reader(source, arguments.workers, arguments.unreadable))
        index = pack_latents(
            reader,
            codec,
            arguments.out,
            arguments.batch_size,
            arguments.precision,
            arguments.device or training_device(),
            arguments.shard_size,
            _shown(stack, "encoding"),
        )
    shape = [index.shape[1] // 2, *index.shape[2:]]
    dataset = f"{{type: LatentCache, data_root: {arguments.out}, latent_shape: {shape}}}"
    _say(arguments.out, index, f"pictures as latents of shape {shape}", index.num_classes, dataset)


def _emoji(arguments: argparse.Namespace) -> None:
    from genflow.preparation.emoji import TEST_FILE, EmojiSource, font_renderer, read_list
    from genflow.preparation.packing import Reader, pack_images

    _check_size(arguments.size)
    emoji, groups = read_list(arguments.emoji_test or TEST_FILE)
    render = font_renderer(arguments.font)
    source = EmojiSource(emoji, groups, render, arguments.size, arguments.split, {"font": arguments.font.name})
    if source.missing:
        print(f"left out: {len(source.missing)} that the font has not as one picture, {source.missing[0]!r} first")
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(source, 0, "stop"))
        index = pack_images(reader, arguments.out, None, _shown(stack, "packing"))
    dataset = f"{{type: PackedImages, data_root: {arguments.out}, image_size: {arguments.size}}}"
    _say(arguments.out, index, "emoji", index.num_classes, dataset)


def _statistics(arguments: argparse.Namespace) -> None:
    from mmengine.dist import get_dist_info, is_main_process

    from genflow.data.packed_images import PackedImages
    from genflow.engine.distributed import find_launcher, start_process_group, training_device
    from genflow.errors import UserError, nearest
    from genflow.evaluation.base import Share
    from genflow.evaluation.conventions import CONVENTIONS
    from genflow.evaluation.statistics import make_statistics

    name = arguments.convention
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise UserError(f"--convention: found {name!r}, expected one of {known}{nearest(name, CONVENTIONS)}")
    start_process_group(find_launcher(arguments.launcher))
    inception = f"{{type: Inception, resize: {CONVENTIONS[name].inception}}}"
    encoder = _extractor(arguments.extractor or inception, arguments.allow_imports)
    if getattr(encoder, "resize", CONVENTIONS[name].inception) != CONVENTIONS[name].inception:
        raise UserError(f"--extractor: the convention {name} resizes otherwise, expected {inception}")
    dataset = PackedImages.opened(arguments.source)
    with ExitStack() as stack:
        shown = _shown(stack, "encoding")
        out, size, where = arguments.out, arguments.batch_size, arguments.device or training_device()
        made = make_statistics(dataset, encoder, CONVENTIONS[name], out, size, where, shown, Share(*get_dist_info()))
    if not is_main_process():
        return
    print(f"{out}: {len(made.gaussian.mean)} features of {len(dataset)} pictures")
    print(f"in a recipe: evaluation: {{statistics: {{NAME: {out}}}}}")


def _extractor(text: str, allow_imports: Any) -> Any:
    """The feature encoder that ``--extractor`` names."""
    from genflow.config.graph import ComponentGraph
    from genflow.errors import UserError
    from genflow.feature_encoders.base import FeatureEncoder
    from genflow.runs.folder import open_run

    if Path(text).is_dir():
        encoder = open_run(text, (), allow_imports).method().artifact_module
    else:
        encoder = ComponentGraph.component(text, "--extractor")
    if not isinstance(encoder, FeatureEncoder):
        raise UserError(f"--extractor: found a {type(encoder).__name__}, expected a feature encoder")
    encoder.require_trained(f"--extractor: a {type(encoder).__name__}")
    return encoder


def _verify(arguments: argparse.Namespace) -> None:
    from genflow.data.packed import faults, read_index
    from genflow.errors import UserError
    from genflow.evaluation.statistics import read_statistics

    if arguments.folder.suffix == ".npz":
        statistics = read_statistics(arguments.folder)
        said = ", ".join(f"{name} {value}" for name, value in statistics.facts.items()) or "it does not say of what"
        print(f"{arguments.folder}: {len(statistics.gaussian.mean)} features; {said}")
        return
    found = list(faults(arguments.folder))
    for fault in found[:-1]:
        print(f"error: {UserError(fault)}")
    if found:
        raise UserError(found[-1])
    index = read_index(arguments.folder)
    print(f"{arguments.folder}: {index.count} samples in {len(index.shards)} shard(s), all as the index says")


def _open(arguments: argparse.Namespace, size: int, stack: ExitStack) -> "Source":
    from genflow.engine.distributed import find_launcher, start_process_group
    from genflow.errors import UserError
    from genflow.preparation.sources import TORCHVISION, FolderSource, TorchvisionSource, unpacked

    _check_size(size)
    for name, least in (("workers", 0), ("shard_size", 1), ("batch_size", 1)):
        value = getattr(arguments, name, None)
        if value is not None and not least <= value <= 10**6:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected {least} to 1,000,000")
    start_process_group(find_launcher(arguments.launcher))
    if arguments.source in TORCHVISION and not Path(arguments.source).exists():
        return TorchvisionSource(
            arguments.source, size, arguments.root, arguments.split, arguments.download, arguments.channels
        )
    folder = arguments.source
    if "://" not in folder:
        folder = str(stack.enter_context(unpacked(Path(folder), arguments.out)))
    options = {"channels": arguments.channels, "labels": arguments.labels, "background": arguments.background}
    return FolderSource(folder, size, **options)


def _check_size(size: int) -> None:
    from genflow.errors import UserError

    if not 1 <= size <= 8192:
        raise UserError(f"--size: found {size}, expected 1 to 8,192 pixels")


def _shown(stack: ExitStack, title: str) -> Any:
    bar = stack.enter_context(progress_bar(title))
    task = bar.add_task("", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _say(out: Path, index: "Index", what: str, classes: int, dataset: str) -> None:
    from mmengine.dist import is_main_process

    if not is_main_process():
        return
    left_out = f", {len(index.left_out)} left out, {index.left_out[0]!r} first" if index.left_out else ""
    print(f"{out}: {index.count} {what}, {f'{classes} classes' if classes else 'without classes'}{left_out}")
    print(f"in a recipe: train_dataloader: {{dataset: {dataset}}}")
