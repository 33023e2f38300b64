"""Our HTTP routes: what a response was shown."""

from argparse import Namespace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException, Request
from starlette.datastructures import State

from megacontext_vllm.config import SECTION, parse_config
from megacontext_vllm.engine.activation import is_active
from megacontext_vllm.engine.traces import read_trace
from megacontext_vllm.tree.store.library import namespace_of

router = APIRouter(prefix="/v1/megacontext", tags=["MegaContext"])


@router.get("/focus/{response_id}")
async def focus(
    response_id: str, request: Request, x_cache_salt: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """The Working Context of a response that was asked for with ``vllm_xargs: {"megacontext_trace": true}``.

    The header ``X-Cache-Salt`` must be the ``cache_salt`` the request was sent with: traces of other namespaces are
    not found. A header, because addresses end up in logs and the salt is the client's secret.
    """
    settings = request.app.state.megacontext_settings
    if settings is None:
        raise HTTPException(503, "This server was not started with --plugin megacontext.")
    trace = read_trace(settings.store, namespace_of(x_cache_salt), response_id)
    if trace is None:
        raise HTTPException(
            404,
            "No focus trace of that response here: it fitted the window, was sent without megacontext_trace, is too "
            "old, or belongs to another cache_salt.",
        )
    return trace


class MegaContextEndpoints:
    """vLLM's EndpointPlugin protocol."""

    name = "megacontext"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        config = getattr(engine_client, "vllm_config", None)
        if config is not None and is_active(config):
            state.megacontext_settings = parse_config(config.additional_config[SECTION])
        else:
            state.megacontext_settings = None


def endpoint_plugin() -> MegaContextEndpoints:
    return MegaContextEndpoints()
