"""What ``import acl_plugin`` adds to Python's import system; it costs nothing until something asks for it.

- ``import autoattack`` gives our adapter of pyautoattack, if no package of that name is installed: our finder is
  asked last.
- Once timm is imported, models that ``acl-plugin export`` has exported are registered with it, which is where
  ``robustbench.load_model`` looks for them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Copy(Loader):
    """Makes a module with the contents of another."""

    def __init__(self, source: str) -> None:
        self.source = source

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        contents = vars(importlib.import_module(self.source))
        vars(module).update({k: v for k, v in contents.items() if k == "__version__" or not k.startswith("__")})


class AutoAttackFinder(MetaPathFinder):
    """Answers for ``autoattack`` and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, submodule = fullname.partition(".")
        if package != "autoattack" or importlib.util.find_spec("pyautoattack") is None:
            return None
        source = f"pyautoattack.{submodule}" if submodule else "acl_plugin.autoattack_adapter"
        return ModuleSpec(fullname, _Copy(source), is_package=not submodule)


class AfterImport(MetaPathFinder):
    """Calls ``then`` once, after the module ``name`` is imported."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then(module: ModuleType) -> None:
            execute(module)
            self.then()

        spec.loader.exec_module = execute_then  # type: ignore[method-assign]
        return spec


def install(after_timm: Callable[[], None]) -> None:
    """Put both finders in place, once."""
    if any(isinstance(finder, AutoAttackFinder) for finder in sys.meta_path):
        return
    sys.meta_path.append(AutoAttackFinder())
    if "timm.models" in sys.modules:
        after_timm()
    else:
        sys.meta_path.insert(0, AfterImport("timm.models", after_timm))
