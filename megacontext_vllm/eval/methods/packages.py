"""Packages that only some methods need."""

import importlib
from typing import Any

from megacontext_vllm.errors import EvaluationError


def need(package: str, method: str) -> Any:
    """The module ``package``; raises EvaluationError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EvaluationError(
            f"method '{method}' needs the package {error.name or package}: pip install 'megacontext-vllm[eval]'"
        ) from None
