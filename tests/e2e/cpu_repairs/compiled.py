"""vLLM's own way to compile a model, in pieces and with a cache on disk, as on a GPU; a CPU build has a simpler one."""

import inspect
import re
from types import ModuleType

import torch
from cpu_repairs.kept_settings import keep

_DEFINED: list[torch.library.Library] = []  # an operator lives as long as what defines it


def _operators(module: ModuleType) -> None:
    """A pass compares what it finds with operators that the CPU build does not have."""
    library = torch.library.Library("_C", "FRAGMENT")
    for name in set(re.findall(r"torch\.ops\._C\.(\w+)", inspect.getsource(module))):
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}() -> ()")
    _DEFINED.append(library)


REPAIRS = {
    "vllm.platforms.cpu": keep("compilation_config.mode", "compilation_config.backend"),
    "vllm.compilation.passes.utility.fix_functionalization": _operators,
}
