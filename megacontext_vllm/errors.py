"""Every error that a user can cause, in one hierarchy.

Asserts guard what cannot happen; these say what did happen and what to do about it. ``engine/`` maps them to HTTP
status codes, so a new error belongs below the class whose family it shares.
"""


class MegaContextError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(MegaContextError, ValueError):
    """The configuration is wrong: an unknown key, a bad value, two settings that exclude each other."""


class UnsupportedEngineError(MegaContextError):
    """This vLLM version, platform or engine feature was not tested with the plugin."""


class RequestError(MegaContextError, ValueError):
    """A request asks for something that cannot be done (HTTP 400)."""


class BudgetError(RequestError):
    """The pinned head and tail do not fit the window."""


class StoreError(MegaContextError):
    """The tree store cannot be read or written (full disk, missing rights)."""


class UnknownTreeError(StoreError):
    """No tree of that id exists in the caller's namespace."""


class CorruptTreeError(StoreError):
    """A file of the store is damaged; the message names the file and the damage."""


class TreeLockedError(StoreError):
    """Another process is the writer of this tree."""


class TreeInUseError(StoreError):
    """Somebody has the tree open, so that it cannot be deleted, curated or repaired now."""


class SealedSpanError(StoreError):
    """Tokens or gists of a compacted or lost span were asked for; only the gist of its node is left."""


class FingerprintMismatchError(StoreError):
    """The file was written for another model or another GistNet."""


class ReaderError(MegaContextError):
    """The model that an evaluation asks cannot be loaded or reached, or cannot be asked this."""


class EvaluationError(MegaContextError):
    """An evaluation was asked for what cannot be measured: too little text, or a history too short for a task."""
