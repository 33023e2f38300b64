"""Kernels on a machine without a GPU: run by Triton's interpreter on the host, and compiled ahead of time."""

import importlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

# Before Triton is asked: what kernels compute does not depend on it, and the warning fills the log.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """``interpreted("span_gather")``: the module, its kernels run by Triton's interpreter for as long as the test.

    TRITON_INTERPRET=1 decides when Triton is imported, for the whole process, in which nothing could be compiled any
    more. So what it would have made of Triton's own functions is put in their places.
    """
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    import triton.language
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder
    from triton.runtime.jit import JITFunction

    made: dict[int, InterpretedFunction] = {}

    def interpret(module: ModuleType) -> ModuleType:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, made.setdefault(id(value), InterpretedFunction(value.fn)))
        return module

    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot)
    # A call of one kernel function by another patches Triton's language for good, and nothing would compile any more.
    scopes: list[Any] = []
    patch = interpreter._patch_lang
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: scopes.append(patch(fn)) or scopes[-1])
    interpret(triton.language.standard)
    interpret(triton.language)
    yield lambda name: interpret(importlib.import_module(f"megacontext_vllm.kernels.{name}"))
    for scope in reversed(scopes):
        scope.restore()


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """The interpreter keeps a bfloat16 as its 16 bits, and its own ``create_dot`` multiplies these as whole numbers."""
    from triton.runtime.interpreter import TensorHandle

    a_data, b_data = (_widen(x.data) if x.dtype.is_bf16() else x.data for x in (a, b))
    return TensorHandle(np.matmul(a_data, b_data, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
