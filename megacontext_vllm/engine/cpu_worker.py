"""The CPU worker; in a file of its own because importing vLLM's needs the CPU build's libraries."""

from vllm.v1.worker.cpu_worker import CPUWorker

from megacontext_vllm.engine.worker import MegaContextWorker


class MegaContextCPUWorker(MegaContextWorker, CPUWorker):
    """For ``vllm.v1.worker.cpu_worker.CPUWorker``."""
