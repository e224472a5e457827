"""Where code lies: what the child may read of it, and modules found by name, so that no folder need be listed."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")


def library_paths() -> list[str]:
    """Where installed packages and the system's libraries lie."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    named = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [str(Path(prefix, "lib")) for prefix in prefixes if prefix != "/"]
    loaded = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    return [*SYSTEM_LIBRARIES, *named, *own, *loaded, *filter(_is_library, sys.path)]


def _is_library(entry: str) -> bool:
    """Whether a folder of the module path holds installed packages; others, such as a working directory, hold more."""
    path = Path(entry).resolve()
    installed = [Path(place).resolve() for place in (*sysconfig.get_paths().values(), *SYSTEM_LIBRARIES)]
    return path.name in ("site-packages", "dist-packages") or any(path.is_relative_to(place) for place in installed)


class _ByName:
    """Finds packages and modules by name, so that the folder that they lie in need not be listed."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """The module of this name, if it is one of them."""
        place = self._places.get(name)
        if place is None:
            return None
        if place.suffix == ".py":
            return spec_from_file_location(name, place)
        return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])


def _code_in(root: str) -> list[Path]:
    """Packages and modules in a folder; none in one that cannot be looked into, where Python would find none either."""
    try:
        found = sorted(Path(root).iterdir())
    except OSError:
        return []
    return [place for place in found if _is_package(place) or _is_module(place)]


def _is_package(place: Path) -> bool:
    return os.access(place / "__init__.py", os.R_OK)


def _is_module(place: Path) -> bool:
    return place.suffix == ".py" and os.access(place, os.R_OK) and place.is_file()


def import_by_name() -> list[str]:
    """Takes working directories off the module path, but not their packages; returns where these lie."""
    places: dict[str, Path] = {}
    roots = [entry for entry in sys.path if not _is_library(entry) and Path(entry).is_dir()]
    for root in roots:
        for found in _code_in(root):
            places.setdefault(found.stem, found)
    for name in ("pipelines", "hybrid_models"):  # an editable installation finds them by a finder of its own
        spec = find_spec(name)
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            places.setdefault(name, Path(location))
    sys.path[:] = [entry for entry in sys.path if entry not in roots]
    sys.meta_path.insert(0, _ByName(places))
    return [str(place) for place in places.values()]
