"""Implement the commands.

What imports PyTorch, which takes seconds, is imported after the options are checked.
"""

import logging
from inspect import signature
from pathlib import Path
from typing import Literal

from acl_plugin import config as configuration
from acl_plugin.cli.parser import (
    PROGRAM,
    add_published,
    defaults_of_data,
    defaults_of_published,
    defaults_of_run,
    defaults_of_transfer,
    known_options,
    parse,
    parser_of,
)
from acl_plugin.config import MachineConfig, ProbeConfig, ThreatConfig, check, unused
from acl_plugin.errors import UsageError
from acl_plugin.registry import EXPORTERS, OBJECTIVES
from acl_plugin.runs.folder import RunDir
from acl_plugin.validation import Range, check_value


def pretrain(arguments: list[str]) -> None:
    """Pretrain an encoder, in a new folder or to resume an interrupted run."""
    _run("pretrain", arguments)


def run(arguments: list[str]) -> None:
    """Do the whole job, in a new folder or to resume an interrupted run."""
    _run("run", arguments)


def _run(name: str, arguments: list[str]) -> None:
    parser = parser_of(name)
    parser.add_argument("--out", type=Path, required=True, help="The run's folder; an unfinished run is resumed.")
    parser.add_argument("--overwrite", type=bool, help="Replace a run that is there, whatever its configuration.")
    add_published(parser)
    if name == "run":
        text = "A second objective to run with the same settings, but for --objective-kwargs, which are the first's."
        parser.add_argument("--compare", type=str | None, default=None, help=text)
    for group in configuration.SECTIONS.values():
        parser.add_class_arguments(group)
    options = parse(parser, arguments, defaults_of_published(probed=name == "run"), {})
    out, compare, overwrite = options.pop("out"), options.pop("compare", None), options.pop("overwrite")
    config = configuration.from_dict(known_options(options))
    configs = [config]
    if compare is not None:
        configs.append(config.replace(objective=compare, **configuration.following(config, objective=compare)))
    for each in configs:
        OBJECTIVES.require(each.objective.objective)
    unused.refuse([each.options() for each in configs], configuration.usual(config).options(), unused.RUN)

    from acl_plugin import pipeline
    from acl_plugin.data import datasets
    from acl_plugin.reporting import tables
    from acl_plugin.training import build
    from acl_plugin.training import pretrain as pretraining

    for logger in ("lightning.pytorch", "lightning.fabric"):  # after their import, which sets the level
        logging.getLogger(logger).setLevel(logging.ERROR)
    if name == "pretrain":
        print(f"encoder: {pretraining.pretrain(config, out, overwrite=overwrite).encoder_file}")
        return
    runs = [(config, out)]
    for other in configs[1:]:
        build.build(other, datasets.load(other.data))  # find errors in the second run before the first starts
        runs.append((other, out / "compare" / other.objective.objective))
    results = [(each.objective.objective, pipeline.run(each, folder, overwrite=overwrite)) for each, folder in runs]
    print("\n".join(tables.accuracies(results)))
    print(f"results: {out}/evaluation.json, model: acl_plugin.load_classifier({str(out)!r})")


def probe_run(arguments: list[str]) -> None:
    """Train a classifier on the encoder of a run folder, whose configuration provides the defaults."""
    parser = parser_of("probe")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_class_arguments(ProbeConfig)
    add_published(parser)
    parser.add_argument("--overwrite", type=bool, help="Replace a probe that is there, whatever its settings.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the dataset is now.")
    parser.add_class_arguments(MachineConfig, skip={"num_nodes", "compile", "devices"})
    options = parse(parser, arguments, defaults_of_run, unused.PROBE)
    run = RunDir(options.pop("run"))
    config = run.read_config().replace(**known_options(options))
    check(config)

    from acl_plugin.probing import protocols

    protocols.probe(run, config, overwrite=options["overwrite"])
    print(f"classifier: {run.classifier_file}")


def export_run(arguments: list[str]) -> None:
    """Export the results of a run folder to the format of RobustBench or another one."""
    parser = parser_of("export")
    parser.add_argument("run", type=Path, help="The run's folder.")
    for option, line in {
        "name": "The model's name on the leaderboard; by default objective and backbone.",
        "paper-url": "Link to the paper.",
        "paper-title": "Title of the paper.",
        "authors": "Authors, separated by commas.",
        "venue": "Where the paper appeared, with the year.",
    }.items():
        parser.add_argument(f"--{option}", type=str | None, default=None, help=line)
    text = "Whether more images were used than the dataset's training images; needed where no file decides it."
    parser.add_argument("--additional-data", type=bool | None, default=None, help=text)
    text = "Target datasets of --format robustssl, separated by commas; by default those of the leaderboard."
    parser.add_argument("--targets", type=str | None, default=None, help=text)
    text = "LP-AFT before the probes of --format robustssl."
    parser.add_argument("--lpaft", type=Literal["none", "dynacl", "air"], default="none", help=text)
    parser.add_argument("--overwrite", type=bool, help="Take over a name that the export of another run has.")
    parser.add_argument("--format", type=str, default="robustbench", help=f"Format: {', '.join(EXPORTERS.names())}.")
    options = parse(parser, arguments, lambda given: {}, {})
    run = RunDir(options.pop("run"))
    run.read_config()
    exporter = EXPORTERS.get(options.pop("format"))
    given = {k: v for k, v in options.items() if k != "config" and v != parser.get_default(k)}
    allowed = tuple(signature(exporter).parameters)[1:]
    for name, value in given.items():
        if name not in allowed:
            message = f"`{name}` {value} is not used with this `format`; allowed are {', '.join(allowed) or 'none'}"
            raise UsageError(message, parameter=name, given=value, allowed=allowed)
    print(f"exported: {exporter(run, **given)}")


def import_checkpoint(arguments: list[str]) -> None:
    """Create a run folder from a published checkpoint."""
    parser = parser_of("import")
    parser.add_argument("file", type=Path, help="The checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="The new run's folder.")
    parser.add_argument("--format", type=str, default="auto", help="Its layout (`acl-plugin list formats`).")
    parser.add_argument("--bank", type=str | None, default=None, help="Norm bank to probe; the adversarial one if any.")
    text = "How its network normalizes images, where the file does not store it: none, cifar or imagenet."
    parser.add_argument("--normalization", type=str | None, default=None, help=text)
    text = "Objective that trained the encoder, where the format leaves it open; for probe --published."
    parser.add_argument("--method", type=str | None, default=None, help=text)
    parser.add_argument("--allow-pickle", type=bool, help="Read a file that could execute any code.")
    parser.add_class_arguments(configuration.DataConfig, skip=configuration.PRETRAINING)
    parser.add_class_arguments(configuration.EncoderConfig, skip=configuration.PRETRAINING | {"stem"})
    parser.set_defaults({"data": "cifar10"})
    options = parse(parser, arguments, defaults_of_data, unused.RUN)

    from acl_plugin.runs import published
    from acl_plugin.runs.layouts import LAYOUTS

    out = RunDir(options["out"])
    layout = published.import_run(
        options["file"],
        out,
        configuration.preset(**known_options(options)),
        layout=options["format"],
        bank=options["bank"],
        allow_pickle=options["allow_pickle"],
        normalization=options["normalization"],
        method=options["method"],
    )
    print(f"encoder: {out.encoder_file}, format {layout}: {LAYOUTS[layout].papers}")


def audit_runs(arguments: list[str]) -> None:
    """Measure the terms of the bounds on the checkpoints of runs."""
    parser = parser_of("audit")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders.")
    text = "last: the pretrained encoder; all: those of --keep-every as well, and correlations over them."
    parser.add_argument("--checkpoints", type=Literal["last", "all"], default="last", help=text)
    parser.add_argument("--limit", type=int, default=500, help="Test images that are looked at.")
    parser.add_argument("--out", type=Path | None, default=None, help="Folder of the joint result of several runs.")
    kinds = Literal["auto", "cpu", "gpu", "cuda", "mps"]
    parser.add_argument("--accelerator", type=kinds, default="auto", help="auto takes what there is.")
    parser.add_argument("--overwrite", type=bool, help="Replace audits that are there, whatever their settings.")
    given = parser.parse(arguments)
    if len(given.runs) > 1 and given.out is None:
        message = "`out` FOLDER is needed for the joint result of several runs"
        raise UsageError(message, parameter="out", given=None, allowed="a folder")
    check_value("limit", given.limit, int, Range(8))
    runs = [RunDir(path) for path in given.runs]
    for run in runs:
        run.read_config()

    from acl_plugin.reporting import tables
    from acl_plugin.runtime.device import training_device
    from acl_plugin.theory import audit

    out = RunDir(given.out or given.runs[0])
    device = training_device(given.accelerator)
    result = audit.audit(runs, out, given.checkpoints, given.limit, device, given.overwrite)
    print("\n".join(tables.audit(result)))
    print(f"results: {out.audit_file}, figure: {out.audit_figure_file}")


def write_report(arguments: list[str]) -> None:
    """Write the report of one or several runs."""
    parser = parser_of("report")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders; several are compared.")
    parser.add_argument("--out", type=Path | None, default=None, help="The file; report.html of the first run.")
    given = parser.parse(arguments)
    runs = [RunDir(path) for path in given.runs]
    for run in runs:
        run.require_folder()

    from acl_plugin.reporting import report

    out = given.out or runs[0].report_file
    report.report(runs, out)
    print(f"report: {out}")


def show_status(arguments: list[str]) -> None:
    """Print the progress of runs."""
    parser = parser_of("status")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders.")
    given = parser.parse(arguments)

    from acl_plugin.reporting.status import status

    for path in given.runs:
        print("\n".join(status(RunDir(path))))


def transfer_run(arguments: list[str]) -> None:
    """Create a run folder for a run's encoder on another dataset."""
    parser = parser_of("transfer")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--out", type=Path, required=True, help="The new run's folder.")
    groups = (configuration.DataConfig, ThreatConfig, ProbeConfig)
    for group in groups:
        parser.add_class_arguments(group, skip=configuration.PRETRAINING)
    options = parse(parser, arguments, defaults_of_transfer, unused.RUN)

    from acl_plugin.runs import transfer

    source, out = RunDir(options.pop("run")), RunDir(options.pop("out"))
    transfer.transfer(source, out, transfer.transferred(source.read_config(), **known_options(options)))
    print(f"encoder: {out.encoder_file}; next: {PROGRAM} probe {out.path} && {PROGRAM} evaluate {out.path}")


def make_pseudo_labels(arguments: list[str]) -> None:
    """Cluster the training images by a run's features."""
    parser = parser_of("pseudo-labels")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--out", type=Path, required=True, help="The file to write, such as labels.npz.")
    text = "Their numbers; by default those of AdvCL: 2, 10, 50, 100, 500."
    parser.add_argument("--clusters", type=list[int] | None, default=None, help=text)
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the dataset is now.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of k-means.")
    options = parse(parser, arguments, defaults_of_run, unused.PSEUDO_LABELS)
    config = RunDir(options["run"]).read_config().replace(**known_options(options))
    check(config)

    from acl_plugin.runs.pseudo_labels import require_file, write_pseudo_labels

    require_file(options["out"])

    from acl_plugin.data import datasets
    from acl_plugin.leaderboard import provenance
    from acl_plugin.models.memory_format import channels_last
    from acl_plugin.objectives import pseudo_labels
    from acl_plugin.runs.models import load_encoder, weights_hash

    encoder = channels_last(load_encoder(options["run"], benign=True))
    origin, seen = provenance.sources(RunDir(options["run"])), None
    if not origin.unknown:
        seen = sorted(origin.seen)
    source = {
        "data": config.data.data,
        "objective": config.objective.objective,
        "encoder_sha256": weights_hash(encoder),
    }
    images = datasets.load(config.data).pretraining
    sizes = pseudo_labels.PUBLISHED_SIZES if options["clusters"] is None else options["clusters"]
    labels = pseudo_labels.make(encoder, images, sizes, config.machine.seed, source | {"seen": seen})
    write_pseudo_labels(labels, options["out"])
    print(f"pseudo-labels: {options['out']}")
