"""MONAI without what labelling an image never touches: half the time until the first window.

``import monai`` runs every module of MONAI, most of them twice, and with them ignite (which loads
torch's distributed and symbolic parts), matplotlib, pandas and scikit-image. Here its loader of
submodules does nothing, and those packages load when something of them is used. Only the verb
``predict`` asks for it, whose process trains nothing and draws nothing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: What the inference of a bundle is built from.
_USED = ("monai.apps", "monai.transforms", "monai.networks.nets", "monai.inferers", "monai.data",
         "monai.bundle")  # fmt: skip
#: Packages that MONAI imports if they are there, and needs for other things.
_LATER = ("ignite", "pandas", "skimage", "sklearn", "itk", "matplotlib", "scipy.signal",
          "scipy.stats", "jsonschema", "PIL")  # fmt: skip
#: Imported without asking whether they are there: MONAI's plots for notebooks, and ignite's
#: checkpoints of optimizers that are spread over processes.
_STOOD_FOR = ("matplotlib", "matplotlib.pyplot", "torch.distributed.optim")
_PATCHED = "monai.utils.module"
_state: dict[str, Any] = {"is_importing": False, "load_submodules": None}


def import_monai() -> None:
    """Import what inference needs of MONAI; does nothing if MONAI is imported already.

    Everything else of MONAI still loads when it is imported or named (``monai.engines``).
    """
    if "monai" in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    standing = [name for name in _STOOD_FOR if name not in sys.modules]
    sys.modules.update({name: _Standing(name) for name in standing})
    _state["is_importing"] = True
    try:
        for name in _USED:
            importlib.import_module(name)
    finally:
        _state["is_importing"] = False
        sys.meta_path.remove(finder)
        for name in standing:
            if isinstance(sys.modules.get(name), _Standing):
                del sys.modules[name]
    package: Any = sys.modules["monai"]
    package.__getattr__ = _subpackage


def require_components(config: Mapping[str, Any], sections: Iterable[str]) -> None:
    """Load the rest of MONAI if a section of a bundle's config calls something by its bare name
    that is not there yet; MONAI looks bare names up among the modules that are loaded."""
    if _state["load_submodules"] is None:
        return
    names = {n for s in sections for n in _targets(config.get(s)) if n.isidentifier()}
    loaded = [m for name, m in list(sys.modules.items()) if name.startswith("monai.") and m]
    if all(any(name in vars(module) for module in loaded) for name in names):
        return
    monai: Any = sys.modules["monai"]
    for load_all in (False, True):
        _state["load_submodules"](monai, load_all, exclude_pattern=monai.excludes)
    _state["load_submodules"] = None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MONAI's helper of imports, to be changed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _PATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs a module and then changes two of its functions for as long as MONAI is imported."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.real.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self.real.exec_module(module)
        _state["load_submodules"] = module.load_submodules
        module.load_submodules = _later_submodules(module.load_submodules)
        module.optional_import = _later_import(module.optional_import)


def _later_submodules(real: Callable[..., Any]) -> Callable[..., Any]:
    def load_submodules(*args: Any, **kwargs: Any) -> Any:
        return ([], []) if _state["is_importing"] else real(*args, **kwargs)

    return load_submodules


def _later_import(real: Callable[..., Any]) -> Callable[..., Any]:
    def optional_import(module: str, *args: Any, **kwargs: Any) -> Any:
        is_late = any(module == name or module.startswith(f"{name}.") for name in _LATER)
        top = module.partition(".")[0]
        if not _state["is_importing"] or not is_late or PathFinder.find_spec(top) is None:
            return real(module, *args, **kwargs)
        return _Later(lambda: real(module, *args, **kwargs)[0]), True

    return optional_import


class _Standing(ModuleType):
    """A module that is imported for real when something of it is used."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - that of ModuleType

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        later = _Later(lambda: getattr(importlib.import_module(self.__name__), name))
        return later if _state["is_importing"] else later._load()


class _Later:
    """Stands for a module, class or function until something of it is used."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    def __mro_entries__(self, bases: Any) -> tuple[Any, ...]:
        return (self._load(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._load())


def _subpackage(name: str) -> Any:
    if name not in sys.modules["monai"].__all__:
        raise AttributeError(f"module 'monai' has no attribute {name!r}")
    return importlib.import_module(f"monai.{name}")


def _targets(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        if isinstance(content.get("_target_"), str):
            yield content["_target_"]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _targets(part)
