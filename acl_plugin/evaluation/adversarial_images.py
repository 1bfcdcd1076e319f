"""The images that broke a classifier: kept by chunk and attack, and counted again."""

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.images import Images
from acl_plugin.errors import EvaluationStopped
from acl_plugin.evaluation.verdicts import STANDARD, Verdict
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import write_atomic


@torch.no_grad()
def recount(
    run: RunDir, model: nn.Module, images: Images, found: list[Verdict], threat: ThreatModel, batch_size: int
) -> None:
    """Count the verdicts again, from the images themselves and from those that were kept.

    Raises:
        EvaluationStopped: for any that is another: a clean prediction, an image that does not break the model, or that
            lies outside the threat model.
    """
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        x = images.floats(start, start + batch_size).to(device)
        here = found[start : start + batch_size]
        if model(x).argmax(1).tolist() != [v.clean_prediction for v in here]:
            raise EvaluationStopped(
                f"clean predictions of images {start} to {start + len(x) - 1} are not those recorded"
            )
        for name in STANDARD:
            expected = [start + i for i, v in enumerate(here) if v.broken_by == name]
            positions, moved = _read(run, start, name)
            if positions.tolist() != expected:
                raise EvaluationStopped(f"{_path(run, start, name)} is not what {run.evaluation_lines} says")
            if expected:
                check_threat(name, moved.to(device), x[positions - start], threat)
                if (model(moved.to(device)).argmax(1).cpu() == images.labels[positions]).any():
                    raise EvaluationStopped(f"images of {_path(run, start, name)} do not break the model")


def check_threat(name: str, moved: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Refuse adversarial images (B, C, H, W) of ``x`` outside ball or box, or not finite.

    Raises:
        EvaluationStopped: naming the attack.
    """
    delta = (moved - x).flatten(1)
    size = (delta.abs().amax(1) if threat.norm == "Linf" else delta.norm(dim=1)).max().item()
    inside = moved.min().item() >= 0 and moved.max().item() <= 1
    if not (moved.isfinite().all() and inside and size <= threat.eps * (1 + 1e-4) + 1e-6):
        raise EvaluationStopped(
            f"{name} left the threat model: size {size:.6f} for eps {threat.eps:.6f}, in [0, 1]: {inside}"
        )


def _path(run: RunDir, start: int, name: str) -> Path:
    return run.adversarial / f"{start:06}-{name}.npz"


def keep(run: RunDir, start: int, name: str, positions: Tensor, moved: Tensor) -> None:
    """Write what attack ``name`` broke in the chunk of test images that begins at ``start``.

    Args:
        positions: (M,) of the images among all test images.
        moved: (M, C, H, W) what broke the model.
    """
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, positions=positions.cpu().numpy(), images=moved.float().cpu().numpy())
    write_atomic(_path(run, start, name), buffer.getvalue())


def _read(run: RunDir, start: int, name: str) -> tuple[Tensor, Tensor]:
    import numpy as np

    path = _path(run, start, name)
    try:
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file["positions"]), torch.from_numpy(file["images"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EvaluationStopped(f"{path} is missing or damaged: {type(error).__name__}") from error
