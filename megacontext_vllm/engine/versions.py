"""Which vLLM the plugin was tested with."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from megacontext_vllm.errors import UnsupportedEngineError

TESTED = SpecifierSet(">=0.32.0,<0.33")


def vllm_version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return "unknown"


def is_tested(found: str) -> bool:
    # A build tag such as +cpu says nothing about the code's interfaces.
    return found != "unknown" and TESTED.contains(found.partition("+")[0], prereleases=False)


def check_version() -> None:
    """Raise UnsupportedEngineError, naming the tested range, on any other vLLM."""
    found = vllm_version()
    if not is_tested(found):
        raise UnsupportedEngineError(
            f"megacontext-vllm was tested with vLLM {TESTED} and found {found}. Install a tested version "
            "(pip install 'vllm==0.32.0'), or set MEGACONTEXT_DISABLE=1 to serve without the plugin."
        )
