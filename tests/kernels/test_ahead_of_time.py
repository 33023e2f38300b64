"""Every kernel compiles for the GPUs it is meant for, on a machine without one, and keeps its values in registers."""

import re
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FORMS = [
    (name, *form)
    for module in ("span_gather", "gist_reduce", "lens_scan")
    for name, *form in import_module(f"megacontext_vllm.kernels.{module}").compiled_forms()
]
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes that one program may have."""


@dataclass(frozen=True)
class Cost:
    """``spills``: bytes (NVIDIA) or values (AMD) that go to memory for want of registers."""

    registers: int
    spills: int


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS, ids=[form[0] for form in FORMS])
def test_compiles_without_spills(form: tuple[Any, ...], target: str, tmp_path: Path) -> None:
    name, kernel, types, constants, warps = form
    places = {argument: place for place, argument in enumerate(kernel.arg_names)}
    # As a call specialises it: torch's memory is aligned, and "i32:16" is a size that 16 divides.
    aligned = [argument for argument, kind in types.items() if kind[0] == "*" or kind.endswith(":16")]
    source = ASTSource(
        kernel,
        {name: kind.removesuffix(":16") for name, kind in types.items()} | dict.fromkeys(constants, "constexpr"),
        {(places[argument],): value for argument, value in constants.items()},
        {(places[argument],): [["tt.divisibility", 16]] for argument in aligned},
    )
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": warps})
    cost = _amd(compiled.asm["amdgcn"]) if target == "gfx942" else _nvidia(compiled.asm["ptx"], target, tmp_path)
    shared = compiled.metadata.shared
    print(f"{name:<45} {target:<7} {cost.registers:>4} registers {cost.spills:>3} spilt {shared:>6} bytes shared")
    assert cost.spills == 0
    assert shared <= SHARED[target]
    assert 0 < cost.registers <= (512 if target == "gfx942" else 255)


def _nvidia(ptx: str, target: str, folder: Path) -> Cost:
    """Triton leaves this to the driver, which is not here; the assembler says it too."""
    assembler = get_ptxas(TARGETS[target].arch).path
    text, arch = folder / "kernel.ptx", re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch is not None and arch[1].startswith(target)
    text.write_text(ptx)
    command = [assembler, "-v", f"--gpu-name={arch[1]}", str(text), "-o", str(folder / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stores, loads = (
        re.search(pattern, said)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    )
    assert registers and stores and loads, said
    return Cost(int(registers[1]), int(stores[1]) + int(loads[1]))


def _amd(assembly: str) -> Cost:
    """Scalars that do not fit (``sgpr_spill_count``) move to lanes of vector registers, not to memory: no harm."""
    registers, spills, memory = (
        [int(number) for number in re.findall(rf"\.{name}:\s+(\d+)", assembly)]
        for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    assert registers and spills and memory, "the assembly says nothing of registers"
    return Cost(max(registers), max(spills) + max(memory))
