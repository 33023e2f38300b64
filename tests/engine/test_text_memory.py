"""What is remembered of texts is bounded by the machine, by the container, and by whoever says so."""

import os
from pathlib import Path

import pytest

from megacontext_vllm.config import parse_config
from megacontext_vllm.engine import text_memory
from megacontext_vllm.engine.text_memory import machine_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("says", "expected"),
    [("1073741824\n", 1 << 30), ("max\n", PHYSICAL), (f"{1 << 62}\n", PHYSICAL), (None, PHYSICAL)],
)
def test_a_container_has_what_it_is_allowed(tmp_path: Path, says: str | None, expected: int) -> None:
    limit = tmp_path / "memory.max"
    if says is not None:
        limit.write_text(says)
    assert machine_memory([tmp_path / "nothing", limit]) == expected


@pytest.mark.parametrize(("of_machine", "expected"), [(8 << 30, 256 << 20), (1 << 40, 4 << 30)])
def test_the_default_is_a_share(monkeypatch: pytest.MonkeyPatch, of_machine: int, expected: int) -> None:
    monkeypatch.setattr(text_memory, "machine_memory", lambda limits: of_machine)
    assert text_memory.text_memory(parse_config({})) == expected
    assert text_memory.text_memory(parse_config({"text_memory": 12345})) == 12345
