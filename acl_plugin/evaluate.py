"""AutoAttack on a probed model, one verdict per test image, which a later start continues.

The random state of an attack is a function of seed, attack and chunk of images, so that an evaluation that was
stopped and started again ends with the verdicts of one that was not.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin import data as datasets
from acl_plugin import randomness
from acl_plugin.config import RunConfig
from acl_plugin.data import Images
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import ThreatModel, require_unit_range
from acl_plugin.progress import Progress
from acl_plugin.randomness import EVALUATION, mixed_seed
from acl_plugin.run_dir import RunDir, load_classifier, read_json, weights_hash, write_atomic, write_json

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class Verdict:
    """What happened to one test image.

    Attributes:
        index: its row in the data set's own order.
        label: its class.
        clean_prediction: the model's class for the image itself.
        broken_by: the first attack that changed a right prediction; None if the image is robust, or if the
            clean prediction is wrong already.
    """

    index: int
    label: int
    clean_prediction: int
    broken_by: str | None

    @property
    def clean(self) -> bool:
        """Whether the clean prediction is right."""
        return self.clean_prediction == self.label


def evaluate(run: RunDir, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Attack the classifier of ``run``; writes and returns ``evaluation.json``.

    Raises:
        UsageError: when there is no classifier, or the folder holds the evaluation of something else.
    """
    model = load_classifier(run.path).to(device)
    threat = ThreatModel.parse(config.norm, config.eps)
    images = datasets.load(config).test
    settings: dict[str, Any] = {
        "dataset": config.data,
        "threat_model": threat.norm,
        "eps": threat.eps,
        "n": len(images),
        "seed": config.seed,
        "version": "standard" if len(model.spec.classes) > 3 else "AA-reduced",
        "batch_size": config.eval_batch_size,
        "weights_sha256": weights_hash(model),
    }
    earlier = _earlier(run, settings)
    if earlier and run.evaluation.is_file():
        return read_json(run.evaluation)
    verdicts, flags = earlier or ([], set())
    started, resumed = time.monotonic(), bool(verdicts)
    write_json(run.evaluation_key, settings | {"flags": sorted(flags)})
    chunks = -(-len(images) // config.eval_batch_size)
    done = -(-len(verdicts) // config.eval_batch_size)
    with Progress("AutoAttack", chunks * len(STANDARD), done * len(STANDARD), unit="attack") as progress:
        for start in range(len(verdicts), len(images), config.eval_batch_size):
            chunk = slice(start, min(start + config.eval_batch_size, len(images)))
            found, raised = attack_chunk(model, images, chunk, threat, config.seed, progress.advance)
            verdicts += found
            flags |= raised
            write_json(run.evaluation_key, settings | {"flags": sorted(flags)})
            write_atomic(run.evaluation_lines, "".join(json.dumps(asdict(v)) + "\n" for v in verdicts).encode())
    if sum(v.broken_by == "square" for v in verdicts) > 0.002 * len(verdicts):
        flags.add("Square broke more than 0.2 % of the images after the white-box attacks: these may be unreliable")
    result = {
        **settings,
        **summary(verdicts),
        "flags": sorted(flags),
        "autoattack": _autoattack_package(),
        "device": str(device),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": resumed,
    }
    write_json(run.evaluation, result)
    return result


def _earlier(run: RunDir, settings: dict[str, Any]) -> tuple[list[Verdict], set[str]] | None:
    """Verdicts and warnings of an earlier start with the same settings; None if there was none."""
    if not run.evaluation_key.is_file():
        return None
    before = read_json(run.evaluation_key)
    other = [f"{k} {settings[k]}, there {before.get(k)}" for k in settings if settings[k] != before.get(k)]
    if other:
        raise UsageError(
            f"{run.path} holds an evaluation of something else ({'; '.join(other)}); "
            f"delete {run.evaluation_lines.name} and {run.evaluation_key.name} to evaluate anew"
        )
    return read_verdicts(run), set(before.get("flags", []))


def attack_chunk(
    model: nn.Module,
    images: Images,
    chunk: slice,
    threat: ThreatModel,
    seed: int,
    on_attack: Callable[[], object] = lambda: None,
) -> tuple[list[Verdict], set[str]]:
    """Run the attacks of AutoAttack standard on a chunk, each on what the ones before it left robust.

    A verdict is recounted from the adversarial image that the attack returned.

    Args:
        model: classifier on [0, 1], in eval mode.
        images: the test images; ``chunk`` is the range of them to attack.
        threat: norm and eps.
        seed: of the evaluation.
        on_attack: called after each attack.

    Returns:
        One verdict per image, and AutoAttack's warnings.
    """
    assert not any(m.training for m in model.modules()), "the model is not in eval mode"
    device = next(model.parameters()).device
    x = images.floats(chunk.start, chunk.stop).to(device)
    y = images.labels[chunk].to(device)
    require_unit_range(x)
    model.requires_grad_(False)
    flags: list[str] = []
    with randomness.private(seed, device), _warnings_of_autoattack(flags):
        clean = model(x).argmax(1)
        robust = clean == y
        broken_by: list[str | None] = [None] * len(y)
        classes = model(x[:1]).shape[1]
        for number, name in enumerate(STANDARD):
            left = robust.nonzero().squeeze(1)
            if len(left) and (name != "apgd-t" or classes > 3):
                attack_seed = mixed_seed(seed, EVALUATION, number, chunk.start) % 2**31
                moved = _attack(model, name, x[left], y[left], threat, attack_seed, classes)
                _check_threat(name, moved, x[left], threat)
                fooled = left[model(moved).argmax(1) != y[left]]
                robust[fooled] = False
                for i in fooled.tolist():
                    broken_by[i] = name
            on_attack()
    rows, labels, predictions = images.rows[chunk].tolist(), y.tolist(), clean.tolist()
    return [Verdict(*fields) for fields in zip(rows, labels, predictions, broken_by, strict=True)], set(flags)


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """Clean accuracy, robust accuracy, and the accuracy after each attack (cumulative), as fractions."""
    n = len(verdicts)
    after, cumulative = sum(v.clean for v in verdicts), {}
    for name in STANDARD:
        after -= sum(v.broken_by == name for v in verdicts)
        cumulative[name] = after / n
    clean = sum(v.clean for v in verdicts) / n
    return {"clean_accuracy": clean, "robust_accuracy": robust_accuracy(verdicts), "cumulative_accuracy": cumulative}


def robust_accuracy(verdicts: list[Verdict]) -> float:
    """Share of the images that are classified rightly and that no attack has broken."""
    return sum(v.clean and v.broken_by is None for v in verdicts) / len(verdicts)


def read_verdicts(run: RunDir) -> list[Verdict]:
    """The lines of ``evaluation.jsonl``, none when there is no such file.

    Raises:
        UsageError: when it is damaged.
    """
    path = run.evaluation_lines
    if not path.is_file():
        return []
    try:
        return [Verdict(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); delete it to evaluate anew") from error


def _attack(model: nn.Module, name: str, x: Tensor, y: Tensor, threat: ThreatModel, seed: int, classes: int) -> Tensor:
    from autoattack import AutoAttack

    adversary = AutoAttack(
        model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=x.device, verbose=False
    )
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    adversary.attacks_to_run = [name]
    return adversary.run_standard_evaluation(x, y, bs=len(x)).detach()


def _check_threat(name: str, moved: Tensor, x: Tensor, threat: ThreatModel) -> None:
    delta = (moved - x).flatten(1)
    size = (delta.abs().amax(1) if threat.norm == "Linf" else delta.norm(dim=1)).max().item()
    inside = moved.min().item() >= 0 and moved.max().item() <= 1
    if not (moved.isfinite().all() and inside and size <= threat.eps * (1 + 1e-4) + 1e-6):
        raise RuntimeError(
            f"{name} left the threat model: size {size:.6f} for eps {threat.eps:.6f}, in [0, 1]: {inside}"
        )


@contextmanager
def _warnings_of_autoattack(flags: list[str]) -> Iterator[None]:
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            flags.append(record.getMessage().replace(" See flags_doc.md for details.", ""))

    logger, handler = logging.getLogger("auto-attack"), Keep(level=logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _autoattack_package() -> str:
    import autoattack

    return f"{autoattack.__name__} {getattr(autoattack, '__version__', '')}".strip()
