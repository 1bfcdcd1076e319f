"""Implement ``acl-plugin doctor``: what a bug report needs, and what to run where a machine is not ready."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from acl_plugin.cli.parser import parser_of
from acl_plugin.compat import robustbench_copy
from acl_plugin.errors import pip_install, reason
from acl_plugin.runs.environment import device_name, installed_version
from acl_plugin.runtime.paths import data_home
from acl_plugin.version import VERSION

DISTRIBUTION = "acl-plugin"
LEAST_MEMORY, LEAST_DISK = 4, 1
"""GiB below which the machine is called short: a pretraining on CIFAR-10 needs about 3 GiB of memory."""


@dataclass(frozen=True)
class Finding:
    """Line of the report.

    Attributes:
        what: what was looked at.
        found: what it is.
        remedy: what to run or set; empty if it is as it should be.
    """

    what: str
    found: str
    remedy: str = ""


def doctor(arguments: list[str]) -> int:
    """Print what the machine and its packages are; the exit status is 1 if something is to be mended."""
    parser_of("doctor").parse(arguments)
    findings = [finding for check in CHECKS for finding in _each(check)]
    width = max(len(finding.what) for finding in findings) + 2
    for finding in findings:
        print(f"{'--' if finding.remedy else 'ok'}  {finding.what:{width}}{finding.found}")
        if finding.remedy:
            print(f"{'':{width + 4}}{finding.remedy}")
    return int(any(finding.remedy for finding in findings))


def _each(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; a broken package may fail in any way, which is a finding."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(check.__name__, f"failed: {reason(error)}", "reinstall the package that is named")


def system() -> Iterator[Finding]:
    """Yield versions of the package, Python and the system."""
    yield Finding("acl_plugin", VERSION)
    yield Finding("Python", platform.python_version())
    yield Finding("system", platform.platform())


EXTRAS = ("robustbench", "corruptions", "hf", "wandb", "mlflow")


def packages() -> Iterator[Finding]:
    """Yield the version of each package against what this one needs; extras that are not installed need nothing."""
    needed: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requires(DISTRIBUTION) or ()):
        marker = requirement.marker
        extra = next((e for e in EXTRAS if marker and marker.evaluate({"extra": e})), None)
        if marker is None or extra is not None:
            needed.setdefault(extra or "", []).append(requirement)
    for extra, requirements in needed.items():
        missing = [each for each in requirements if installed_version(each.name) is None]
        for each in missing if extra and missing else requirements:
            yield _package(each, extra)


def _package(requirement: Requirement, extra: str) -> Finding:
    name, needed, found = requirement.name, str(requirement.specifier), installed_version(requirement.name)
    if found is None and extra:
        return Finding(name, f"not installed; the extra {extra} brings it")
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Finding(name, found)
    return Finding(name, f"{found or 'not installed'}; needed is {needed}", pip_install(f'"{name}{needed}"'))


def robustbench() -> Iterator[Finding]:
    """Yield whether robustbench and AutoAttack are whole."""
    state, _, command = (robustbench_copy.found_damage() or "none is damaged").partition(" Run: ")
    yield Finding("robustbench's files", state, command)
    importlib.import_module("pyautoattack")
    adversary = importlib.import_module("autoattack").AutoAttack
    yield Finding("AutoAttack", f"{adversary.__module__}.{adversary.__name__}")


def device() -> Iterator[Finding]:
    """Yield device, driver, precision and compiler."""
    import torch

    from acl_plugin.runtime.device import precision, training_device

    here = training_device("auto")
    driver = Path("/proc/driver/nvidia/version")
    if here.type != "cuda" and (driver.is_file() or shutil.which("nvidia-smi")):
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is built for CPU"
        remedy = "install the PyTorch of your driver: https://pytorch.org/get-started/locally"
        yield Finding("device", f"there is an NVIDIA driver, but no CUDA device; {built}", remedy)
    else:
        yield Finding(
            "device", f"{here.type}: {device_name()}" + (f", CUDA {torch.version.cuda}" if here.type == "cuda" else "")
        )
    quick = precision("auto", here) == "bf16-mixed"
    yield Finding(
        "bfloat16", "fast; --precision auto uses it" if quick else "not faster here; --precision auto is float32"
    )
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=here))
        yield Finding("torch.compile", "works")
    except Exception as error:
        yield Finding("torch.compile", f"does not work here, so --compile has no effect ({reason(error)})")


def memory() -> Iterator[Finding]:
    """Yield memory and threads."""
    import torch

    from acl_plugin.runtime.device import memory as total

    size = total(torch.device("cpu")) / 2**30
    remedy = "" if size >= LEAST_MEMORY else "use smaller --batch-size and --limit-train"
    yield Finding("memory", f"{size:.0f} GiB", remedy)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, given = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} of {allowed} processors" + (f", OMP_NUM_THREADS {given}" if given else "")
    remedy = f"export OMP_NUM_THREADS={allowed}" if threads > allowed else ""
    yield Finding("threads", text, remedy)


def folders() -> Iterator[Finding]:
    """Yield whether shared files and runs can be written."""
    home = data_home()
    there = next(each for each in (home, *home.parents) if each.exists())
    writable = os.access(there, os.W_OK | os.X_OK) and there.is_dir()
    remedy = "" if writable else "export ACL_PLUGIN_HOME=FOLDER, of a folder that you can write"
    yield Finding("ACL_PLUGIN_HOME", f"{home}" + ("" if writable else ", which cannot be written"), remedy)
    for what, folder in (("this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / 2**30
        remedy = "" if free >= LEAST_DISK else "free some disk space, or run elsewhere"
        yield Finding(what, f"{free:.0f} GiB free in {folder}", remedy)


def terminal() -> Iterator[Finding]:
    """Yield encoding and kind of the output."""
    kind = "a terminal" if sys.stdout.isatty() else "no terminal"
    yield Finding("output", f"{kind}, {sys.stdout.encoding}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (system, packages, robustbench, device, memory, folders, terminal)
