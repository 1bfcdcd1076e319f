"""Pages of an exported encoder: how to load it, and its card for a hub."""

from typing import Any

from acl_plugin.leaderboard import provenance
from acl_plugin.models.encoder import Encoder
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_record

Described = dict[str, Any]
"""Contents of ``config.json``."""


def usage(run: RunDir, encoder: Encoder, described: Described) -> str:
    """Return the page of ``--format timm``."""
    name, given = described["architecture"], {**described["model_args"], "num_classes": 0}
    arguments = ", ".join(f"{k}={v!r}" for k, v in given.items())
    load = f'timm.create_model("{name}", checkpoint_path="model.safetensors", {arguments})'
    return "\n".join(
        [f"# {name}", "", *_what(encoder, run.read_config().data.resize), "", *_code(encoder, described, load), ""]
    )


def card(run: RunDir, encoder: Encoder, described: Described) -> str:
    """Return the model card of ``--format hub``."""
    name = described["architecture"]
    load = 'timm.create_model("hf-hub:OWNER/NAME", pretrained=True)'
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        "- image-feature-extraction",
        "- timm",
        "- adversarial-robustness",
        "- self-supervised-learning",
        "---",
        f"# {name}",
        "",
        *_what(encoder, run.read_config().data.resize),
        "",
        _origin(run),
        *_results(run),
        "",
        "## Use",
        "",
        *_code(encoder, described, load),
        "",
    ]
    return "\n".join(lines)


def _origin(run: RunDir) -> str:
    """Return how the encoder was pretrained, as far as the run's files record it."""
    found = provenance.pretraining(run)
    objective = found["objective"]["objective"]
    if objective == "imported":
        source = found["objective"]["objective_kwargs"]
        details = [f"{key} {source[key]}" for key in ("format", "sha256") if key in source]
        return (
            f"Imported with acl_plugin from the published checkpoint {source.get('file', '')} ({', '.join(details)})."
        )
    own = run.pretrained_on()
    text = f"Pretrained without labels on {own} by `{objective}` with acl_plugin"
    parts = [text, f"epochs: {found['training']['epochs']}"]
    if threat := found.get("threat"):
        parts.append(f"threat model: {threat['norm']}, eps {threat['eps']}")
    sources = provenance.sources(run)
    parts += [how for name, how in sources.seen.items() if name != own]
    parts += [f"training images not recorded: {source}" for source in sources.unknown]
    return "; ".join(parts) + "."


def _what(encoder: Encoder, resize: int | None) -> list[str]:
    """Return the description of the images and features; for ``resize`` see ``form.Form``."""
    channels, height, width = encoder.spec.shape
    resized = "x".join(map(str, encoder.preprocess.size))
    crop = f"their shorter side is resized to {resize} pixels, before a central crop"
    files = "they are resized whatever their aspect ratio, without a crop" if resize is None else crop
    lines = [
        f"Encoder {encoder.spec.backbone}: images of {channels} x {height} x {width}, features of size {encoder.size}.",
        f"Image files of another size: {files}.",
        f"Its input is resized to {resized} (bilinear) and normalized with the mean and standard deviation below.",
    ]
    return [*lines, "Divide the features by their L2 norm, as in its training."] if encoder.spec.normalized else lines


def _code(encoder: Encoder, described: Described, load: str) -> list[str]:
    """Return the code that loads and uses the encoder."""
    name = described["architecture"]
    own = [f"import {name}  # {name}.py of this folder registers the network"] if name != encoder.spec.backbone else []
    size, antialias = encoder.preprocess.size, ", antialias=True" if encoder.preprocess.antialias else ""
    features = ["features = network((images - mean) / std)"]
    if size != encoder.spec.shape[1:]:
        resize = f'torch.nn.functional.interpolate(images, {size}, mode="bilinear"{antialias})'
        features = [f"images = {resize}", *features]
    if encoder.spec.normalized:
        features = [*features, "features = torch.nn.functional.normalize(features, dim=1)"]
    return [
        "```python",
        "import timm",
        "import torch",
        *own,
        "",
        f"network = {load}.eval()",
        f"mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ({list(encoder.spec.mean)}, {list(encoder.spec.std)}))",
        f"images = torch.rand(2, {', '.join(map(str, encoder.spec.shape))})  # in [0, 1]",
        *features,
        "```",
    ]


def _results(run: RunDir) -> list[str]:
    """Return the accuracies of the run's classifier, if it was evaluated since its probe."""
    if not all(file.is_file() for file in (run.classifier_file, run.evaluation_file, run.probe_file)):
        return []
    found, probe = read_record(run.evaluation_file), read_record(run.probe_file)
    if found["weights_sha256"] != weights_hash(load_classifier(run.path)):
        return []
    clean, robust = (100 * found[key] for key in ("clean_accuracy", "robust_accuracy"))
    line = (
        f"After the probe `{probe['protocol']}` on {found['dataset']}: {clean:.2f} % clean, {robust:.2f} % under "
        f"AutoAttack ({found['version']}, {found['threat_model']}, eps {found['eps']:.4g}), {found['n']} test images."
    )
    return ["", line]
