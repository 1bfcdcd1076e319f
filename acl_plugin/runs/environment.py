"""Record versions, device and threads of a process."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "acl_plugin torch torchvision timm torchattacks robustbench autoattack pyautoattack lightning kornia "
    "scikit-learn numpy jsonargparse"
).split()


def environment() -> dict[str, Any]:
    """Return versions, device and threads of this process, and the package's git commit if it is a checkout."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := installed_version(name))},
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def installed_version(package: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name() -> str:
    """Return the name of the GPU, or of the processor without one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(source), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
