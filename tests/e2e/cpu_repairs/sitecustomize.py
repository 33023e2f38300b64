"""Gives vLLM's CPU build what its GPU build has, to test the plugin with: ``CPU_REPAIRS="parallel second_runner"``.

Each name is a module of this folder, whose ``REPAIRS`` are done as vLLM's and Triton's modules are imported. Python
runs this at the start of every process that has this folder in ``PYTHONPATH``: vLLM's workers, too.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).parents[1]))
WANTED: dict[str, list[Callable[[ModuleType], None]]] = {}
for name in os.environ.get("CPU_REPAIRS", "").split():
    for module_name, repair in import_module(f"cpu_repairs.{name}").REPAIRS.items():
        WANTED.setdefault(module_name, []).append(repair)


class Repairs(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        wanted = WANTED.get(fullname, [])
        spec = PathFinder.find_spec(fullname, path) if wanted else None
        if spec is None or spec.loader is None:
            return None
        stock = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            stock(module)
            for repair in wanted:
                repair(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Repairs())
