"""MegaContext for vLLM: a frozen model, an unbounded history."""

__version__ = "0.1.0"
