"""Kernels, each file holding the Triton kernel, its torch reference and one public function that picks by device.

Installed as ``megacontext_vllm.kernels``. Nothing here knows of requests, trees or vLLM.
"""
