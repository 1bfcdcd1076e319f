"""Add finders to Python's import system on ``import acl_plugin``; they have no cost until they are used.

- ``import autoattack`` imports our adapter of pyautoattack, if no package of that name is installed: our finder is
  consulted last.
- When timm is imported, models exported by ``acl-plugin export`` are registered with it, so that
  ``robustbench.load_model`` finds them.
- ``import robustbench`` fails with instructions if an old copy of robustbench, contained in the wheel of torchattacks,
  was installed over the real one.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from acl_plugin.compat.robustbench_copy import damage

logger = logging.getLogger(__name__)

Execute = Callable[[ModuleType], None]


class _Copy(Loader):
    """Loader that creates a module with the contents of another."""

    def __init__(self, source: str) -> None:
        self.source = source

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        contents = vars(importlib.import_module(self.source))
        vars(module).update({k: v for k, v in contents.items() if k == "__version__" or not k.startswith("__")})


class _Refuse(Loader):
    """Loader for a package whose ``__init__.py`` is missing."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(damage(), name="robustbench")


class AutoAttackFinder(MetaPathFinder):
    """Finder for ``autoattack`` and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, submodule = fullname.partition(".")
        if package != "autoattack" or importlib.util.find_spec("pyautoattack") is None:
            return None
        source = f"pyautoattack.{submodule}" if submodule else "acl_plugin.compat.autoattack_adapter"
        return ModuleSpec(fullname, _Copy(source), is_package=not submodule)


class OnImport(MetaPathFinder):
    """Finder that calls ``around(module, execute)`` instead of executing the module ``name``."""

    def __init__(self, name: str, around: Callable[[ModuleType, Execute], None]) -> None:
        self.name, self.around = name, around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None:
            return None
        if spec.loader is None:  # a folder without an __init__.py
            spec.loader = _Refuse() if self.name == "robustbench" else None
            return spec
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: self.around(module, execute)  # type: ignore[method-assign]
        return spec


def check_robustbench(module: ModuleType, execute: Execute) -> None:
    """Execute ``robustbench``, and refuse a copy that is old or incomplete.

    Raises:
        ImportError: with instructions.
    """
    try:
        execute(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "robustbench" or "benchmark" not in _imports(module):
            raise ImportError(damage(), name="robustbench") from error
        raise
    if not hasattr(module, "benchmark"):
        raise ImportError(damage(), name="robustbench")


def install(after_timm: Callable[[], None]) -> None:
    """Install all finders once."""
    if any(isinstance(finder, AutoAttackFinder) for finder in sys.meta_path):
        return
    sys.meta_path.append(AutoAttackFinder())

    def then(module: ModuleType, execute: Execute) -> None:
        execute(module)
        after_timm()

    if "timm.models" in sys.modules:
        after_timm()
    else:
        sys.meta_path.insert(0, OnImport("timm.models", then))
    there = sys.modules.get("robustbench")
    if there is not None and not hasattr(there, "benchmark"):
        logger.warning(damage())
    sys.meta_path.insert(0, OnImport("robustbench", check_robustbench))


def _imports(module: ModuleType) -> list[str]:
    """Return the names bound by the import statements of a module's source."""
    import ast

    with open(str(module.__file__), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    return [
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
