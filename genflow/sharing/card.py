"""The model card of a published run, written from its recipe and its figures."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genflow.analysis.description import build_on_meta, describe, first_paragraph, system
from genflow.config.recipe import dump_yaml
from genflow.runs.folder import Run
from genflow.runs.hub import PREFIX, hub

_ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True)
class Facts:
    """What a card says beside what the run's graph does.

    Args:
        repository: ``user/name`` on the hub.
        licence: its identifier, as who publishes it says.
        recipe, metrics: of the run, without what is private.
        cut: what was a path of the trainer's machine, by its place in the recipe.
        files: relative paths of the files that are published.
    """

    repository: str
    licence: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    cut: Mapping[str, str]
    files: list[str]


def model_card(run: Run, facts: Facts) -> Any:
    """The card, a :class:`huggingface_hub.ModelCard`; its head is YAML as the hub wants it."""
    client = hub()
    title = facts.repository.split("/")[1]
    method = run.graph.model.cls
    what = system(run.graph)
    papers = list(dict.fromkeys(_ARXIV.findall(what)))
    generator = build_on_meta(run.graph, for_training=False).generator
    classes = 0 if generator is None else generator.num_classes
    task = "class-conditional-image-generation" if classes else "unconditional-image-generation"
    results = [] if generator is None else _results(client, facts, task)
    data = client.ModelCardData(
        license=facts.licence.lower(),
        library_name="genflow",
        pipeline_tag=None if classes or generator is None else task,  # the hub has no such tag for classes
        tags=[
            "genflow",
            method.__name__,
            *([] if generator is None else [task]),
            *(f"arxiv:{paper}" for paper in papers),
        ],
        model_name=title if results else None,
        eval_results=results or None,
    )
    blocks = [
        f"# {title}",
        what,
        *(f"![Samples]({file})" for file in facts.files if file.startswith("samples/")),
        "## Use",
        *_use(run, facts, None if generator is None else classes),
        "## Model",
        _model(run, facts, papers),
        _components(run),
        "## Training data",
        *_training(run, facts),
        "## Figures",
        *_figures(run, facts),
        "## Licence",
        f"{facts.licence}, as stated by who published it.",
    ]
    return client.ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(blocks) + "\n")


def _use(run: Run, facts: Facts, classes: int | None) -> list[str]:
    """How to use it; ``classes`` is None for what does not sample, such as an encoder."""
    name = PREFIX + facts.repository
    labels = str(list(range(min(classes, 8)))) if classes else "[0] * 8"
    modules = run.graph.plain.get("custom_imports") or []
    consent = f", allow_imports={modules!r}" if modules else ""
    option = f" --allow-imports {' '.join(modules)}" if modules else ""
    samples = f"""images = run.generator().sample({labels}, seed=0)  # (B, C, H, W) in [-1, 1]
genflow.save_grid(images, "samples.png", columns=4)"""
    trained = f"""trained = run.method().{run.graph.model.cls.artifact}  # a torch.nn.Module, frozen"""
    python = f"""```python
import genflow

run = genflow.open_run("{name}"{consent})
{trained if classes is None else samples}
```"""
    sample = "" if classes is None else f"python tools/sample.py {name}{option} --out samples.png\n"
    shell = f"""```bash
{sample}python tools/share.py pull {facts.repository} work_dirs/{facts.repository.split("/")[1]}{option}
```"""
    blocks = ["With GenFlow, and its extra `hub`, installed. In Python:", python, "On the command line:", shell]
    if modules:
        own = ", ".join(f"`{module}`" for module in modules)
        blocks.append(f"It needs modules that are not part of it, and importing them runs their code: {own}.")
    if facts.cut:
        paths = " ".join(f"{place}=YOURS" for place in facts.cut)
        blocks.append(
            "Files and folders of the training are not part of it. Where one is needed (a decoder's weights, data), "
            f"say where yours is: `--cfg-options {paths}`."
        )
    return blocks


def _model(run: Run, facts: Facts, papers: list[str]) -> str:
    rows = [
        ("method", f"`{run.graph.model.cls.__name__}`"),
        ("paper", ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)),
        ("recipe", "[recipe.yaml](recipe.yaml)"),
    ]
    cost = facts.metrics.get("generator")
    if isinstance(cost, Mapping):
        rows += [
            ("parameters", f"{cost['generator_params'] / 1e6:.2f} M"),
            ("multiply-adds per image, each counted once", f"{cost['generator_macs'] / 1e9:.4g} G"),
            ("network evaluations per image (NFE)", str(cost["nfe"])),
        ]
        if cost["decoder_macs"]:
            decoder = f"{cost['decoder_params'] / 1e6:.2f} M, {cost['decoder_macs'] / 1e9:.4g} G"
            rows.append(("decoder: parameters, multiply-adds", decoder))
    elif cost:
        rows.append(("parameters and multiply-adds", str(cost)))
    rows.append(("averages of the weights", f"`{run.exported_average}` (as exported)"))
    for file in facts.files:
        name = re.fullmatch(r"generator-(.+)\.safetensors", file)
        if name:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]}, `{name[1]}`")
    return _table(("", ""), [row for row in rows if row[1]])


def _components(run: Run) -> str:
    rows = []
    for row in describe(run.graph):
        macs = "not counted" if isinstance(row.macs, str) else "" if row.macs is None else f"{row.macs / 1e9:.4g}"
        rows.append((f"`{row.path}`", row.kind, f"`{row.type}`", f"{row.parameters:,}", macs))
    return _table(("component", "kind", "type", "parameters", "G multiply-adds"), rows)


def _training(run: Run, facts: Facts) -> list[str]:
    dataset = facts.recipe.get("train_dataloader", {}).get("dataset", {})
    what = first_paragraph(run.graph.recipe.arguments["train_dataloader"].arguments["dataset"].cls.__doc__)
    counts = [f"{facts.metrics[name]:,} {name}" for name in ("updates", "images") if facts.metrics.get(name)]
    counts += [f"seed {facts.metrics['seed']}"] if facts.metrics.get("seed") is not None else []
    blocks = [what, f"```yaml\n{dump_yaml(dataset)}```"]
    if counts:
        blocks.append(f"Trained for {', '.join(counts)}.")
    if facts.metrics.get("converted_from"):
        blocks.append("The weights are somebody else's, converted: " + _settings(facts.metrics["converted_from"]) + ".")
    names = facts.metrics.get("class_names") or []
    if names:
        more = f" and {len(names) - 20} more (metrics.json)" if len(names) > 20 else ""
        blocks.append(f"Classes: {', '.join(names[:20])}{more}.")
    return blocks


def _figures(run: Run, facts: Facts) -> list[str]:
    found = _evaluations(facts.metrics)
    if not found:
        return ["None were measured."]
    evaluator = run.graph.recipe.arguments["evaluation"]
    blocks = []
    if evaluator is not None:
        what = first_paragraph(evaluator.cls.__doc__)
        by = f"By `{evaluator.cls.__name__}`, as the recipe's `evaluation` says: {what}"
        blocks = [by, f"```yaml\n{dump_yaml(facts.recipe['evaluation'])}```"]
    for key, report in found.items():
        real = report.get("real") or {}
        figures = [
            (name, _number(value), _number(real[name]) if name in real else "")
            for name, value in report["model"].items()
        ]
        how = {name: value for name, value in report.items() if name not in ("model", "real")}
        blocks += [f"`{key}`: {_settings(how)}.", _table(("figure", "model", "real data"), figures)]
    return blocks


def _results(client: Any, facts: Facts, task: str) -> list[Any]:
    """The figures of the run's own evaluation in the hub's terms."""
    report = _evaluations(facts.metrics).get("evaluation", {"model": {}})
    data = str(facts.recipe.get("train_dataloader", {}).get("dataset", {}).get("type", "unknown"))
    settings = ("samples", "guidance", "nfe", "seed", "convention")
    return [
        client.EvalResult(
            task_type=task,
            dataset_type=data.lower(),
            dataset_name=data,
            metric_type=name,
            metric_value=value,
            metric_args={key: report[key] for key in settings if report.get(key) is not None},
        )
        for name, value in report["model"].items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def _evaluations(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: report
        for key, report in metrics.items()
        if key.startswith("evaluation") and isinstance(report, Mapping) and isinstance(report.get("model"), Mapping)
    }


def _settings(values: Mapping[str, Any]) -> str:
    given = {name: value for name, value in values.items() if value not in (None, {}, "")}
    return ", ".join(f"{name.replace('_', ' ')} {_words(value)}" for name, value in given.items())


def _words(value: Any) -> str:
    return f"({_settings(value)})" if isinstance(value, Mapping) else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
