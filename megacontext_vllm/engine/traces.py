"""Focus traces: what a request was shown, kept as small JSON files beside the namespace's trees.

Files, because any of several front-end processes may be asked for them. A trace is only found by who knows both the
response id and the namespace's ``cache_salt``.
"""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.plan import Plan, PlanRequest

logger = logging.getLogger("vllm.megacontext")

# vLLM appends eight random characters to the id that the client sees, and prefixes children of n > 1 with their index.
_INTERNAL_ID = re.compile(r"^(?:\d+_)?(?P<external>.+?)-[0-9a-f]{8}$")
_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def response_id(request_id: str) -> str:
    """The id the client sees, from the engine's."""
    match = _INTERNAL_ID.match(request_id)
    return match["external"] if match else request_id


def trace_path(store: Path, namespace: str, external_id: str) -> Path | None:
    """Where the trace of a response lies; None for an id that no response has."""
    if not _SAFE_ID.fullmatch(external_id):
        return None
    return store / "traces" / namespace / f"{external_id}.json"


def write_trace(settings: MegaContextConfig, request: PlanRequest, plan: Plan, renewed: int = 0) -> None:
    """Write one trace and drop the oldest beyond ``traces_kept``. Never raises: a trace is not worth a request.

    ``renewed``: how often what is shown was changed since the answer began.
    """
    try:
        path = trace_path(settings.store, request.namespace, response_id(request.request_id))
        if path is None:
            logger.warning("MegaContext: no trace for request %s: its id is no file name.", request.request_id)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        context = plan.context
        trace = {
            "tree": plan.tree.tree_id,
            "history_tokens": plan.length,
            "reused_tokens": plan.reused,
            "renewed": renewed,
            "window": context.window,
            "working_context": context.cost,
            "raw_tokens": sum(e["end"] - e["start"] for e in plan.described or () if e["kind"] == "raw"),  # type: ignore[operator]
            "seconds": {name: round(value, 4) for name, value in plan.seconds.items()},
            "entries": plan.described,
        }
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_text(json.dumps(trace))
        os.replace(unfinished, path)
        traces = sorted(path.parent.glob("*.json"), key=_written)
        for old in traces[: -settings.traces_kept]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("MegaContext: the trace of %s could not be written: %s", request.request_id, error)


def _written(path: Path) -> float:
    """When, in seconds; long ago where another engine of this store has deleted it meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read_trace(store: Path, namespace: str, external_id: str) -> dict[str, Any] | None:
    """The trace of a response, or None. A completion's first prompt has the response's id with a suffix."""
    for name in (external_id, f"{external_id}-0", f"{external_id}_0"):
        path = trace_path(store, namespace, name)
        if path is not None and path.is_file():
            trace: dict[str, Any] = json.loads(path.read_text())
            return trace
    return None
