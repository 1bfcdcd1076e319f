"""Provide AutoAttack's original interface for the package pyautoattack.

RobustBench imports ``autoattack``. PyPI has the same attacks as ``pyautoattack``, with other argument names and another
return value. ``from autoattack import AutoAttack`` imports this class when no package ``autoattack`` is installed (see
``acl_plugin.compat.import_hook``).
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from torch import Tensor, nn

__version__ = f"(pyautoattack {pyautoattack.__version__})"


class AutoAttack(pyautoattack.AutoAttack):  # type: ignore[misc]
    """Ensemble of APGD-CE, APGD-T, FAB-T and Square.

    Args:
        model: returns logits (N, K) for images (N, C, H, W) in [0, 1].
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: radius of the ball.
        seed: random seed; None uses the time.
        verbose: print the progress.
        attacks_to_run: names of attacks, for ``version="custom"``.
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        is_tf_model: not supported.
        device: device of the model; by default the GPU if there is one.
        log_path: file to write the progress to as well.

    Source: arXiv 2003.01690; the interface is that of the authors' package.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise ValueError("TensorFlow models need the original package autoattack")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        attacks = list(attacks_to_run) or None
        super().__init__(model, norm=norm, eps=eps, seed=seed, attacks=attacks, version=version, device=device)
        self.verbose = verbose
        if verbose or log_path is not None:
            self.logger = self.apgd.logger = self.apgd_targeted.logger = _logger(verbose, log_path)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | None = None,
    ) -> Any:
        """Return adversarial images (N, C, H, W), and their predicted labels (N,) if ``return_labels``."""
        x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run each attack on all images; return name -> adversarial images, and labels if ``return_labels``."""
        names: list[str] = list(self.attacks_to_run)  # type: ignore[has-type]
        verbose, results = self.verbose, {}
        self.verbose = False
        for name in names:
            self.attacks_to_run = [name]
            results[name] = self.run_standard_evaluation(x_orig, y_orig, bs=bs, return_labels=return_labels)
        self.attacks_to_run, self.verbose = names, verbose
        return results


def _logger(verbose: bool, log_path: str | Path | None) -> logging.Logger:
    logger = logging.Logger("auto-attack", logging.DEBUG)  # one per instance, so that handlers are not shared
    if verbose:
        logger.addHandler(logging.StreamHandler(sys.stdout))
    if log_path is not None:
        logger.addHandler(logging.FileHandler(log_path))
    return logger
