"""Put the planner together from what the engine core process knows: settings, tokenizer, workers."""

import logging
from typing import Any

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.description import WorkerDescription
from megacontext_vllm.engine.plan import Planner
from megacontext_vllm.engine.text_memory import text_memory
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.nets.model_fingerprint import model_fingerprint
from megacontext_vllm.nets.sentence_encoder import encoder_of
from megacontext_vllm.tree.files.durability import Durability
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.store.retention import RetentionPolicy

logger = logging.getLogger("vllm.megacontext")


def make_planner(settings: MegaContextConfig, tokenizer: Any, workers: WorkerDescription) -> Planner:
    if workers.gist_fingerprint is None:
        why = "gist_net is 'none'" if settings.gist_net == "none" else "no GistNet is the default for this model"
        logger.info("MegaContext: unexpanded spans are hidden behind %r: %s.", settings.gap_marker, why)
    elif workers.gist_trained:
        logger.info("MegaContext: unexpanded spans are shown as gists of the %s.", workers.gist_net)
    else:
        logger.warning("MegaContext: %s is untrained; its gists turn answers into noise.", settings.gist_net)
    fingerprint = model_fingerprint(tokenizer, workers.embedding_digest)
    return Planner(
        TreeLibrary(
            settings.store,
            fingerprint,
            retention=RetentionPolicy(settings.retain_bytes, settings.retain_days),
            durability=Durability(settings.fsync, settings.fsync_seconds),
        ),
        Focus.of(tokenizer, settings, encoder_of(settings)),
        gist_fingerprint=workers.gist_fingerprint,
        model_fingerprint=fingerprint,
        text_memory=text_memory(settings),
    )
