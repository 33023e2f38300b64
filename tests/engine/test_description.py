"""Where the ranks may run that show gists."""

import pytest

from megacontext_vllm.engine.description import WorkerDescription, check_reach, this_machine
from megacontext_vllm.errors import UnsupportedEngineError


def rank(machine: str, gists: bool = True) -> WorkerDescription:
    return WorkerDescription(bytes(16), bytes(16) if gists else None, False, 4 if gists else 0, machine=machine)


def test_ranks_that_show_gists_must_reach_the_store() -> None:
    here = this_machine()
    assert here and here == this_machine()
    check_reach([rank(here), rank(here)], here)
    check_reach([rank(here), rank("far", gists=False)], here)  # a later pipeline stage
    check_reach([rank("far", gists=False)], here)
    with pytest.raises(UnsupportedEngineError, match=r'ranks \[1, 2\] .*"gist_net": "none"'):
        check_reach([rank(here), rank("far"), rank("farther"), rank("far", gists=False)], here)
