"""A curation plan as data: what is to be done to one tree, and why. It can be written out, read, and changed by hand.

A plan from a file is not trusted: its form is checked here, and whatever it asks for again when it is applied.
"""

import json
import math
import re
import uuid
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from megacontext_vllm.errors import ConfigError, RequestError
from megacontext_vllm.tree.curation.policy import MAX_LEVEL, CurationPolicy
from megacontext_vllm.tree.nodes import span
from megacontext_vllm.tree.store.places import is_namespace, is_tree_id

FORMAT = "megacontext-curation-plan"
FORMAT_VERSION = 1
_MAX_BYTES = 1 << 30
_ACTION_ID = re.compile(r"[0-9a-f-]{8,64}")

Kind = Literal["keep", "compact", "archive", "delete"]


def is_action_id(text: object) -> bool:
    """Whether this may be an action's id; it becomes a file name, so there are no dots and no slashes."""
    return isinstance(text, str) and _ACTION_ID.fullmatch(text) is not None


def new_action_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Action:
    """One thing to do. Tokens ``[start, stop)``: a node ``(level, index)`` to compact, a span to keep, or a whole tree.

    ``bytes``: what it frees, at most (space comes back in whole blocks). ``action_id``: None for what is kept.
    """

    kind: Kind
    start: int
    stop: int
    reason: str
    bytes: int = 0
    level: int | None = None
    index: int | None = None
    action_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "node": None if self.level is None else [self.level, self.index],
            "start": self.start,
            "stop": self.stop,
            "tokens": self.stop - self.start,
            "bytes": self.bytes,
            "reason": self.reason,
            "action_id": self.action_id,
        }


@dataclass(frozen=True)
class CurationPlan:
    """What is to be done to one tree. ``created``: Unix seconds; ``length``: tokens of the tree then."""

    namespace: str
    tree_id: str
    created: float
    length: int
    policy: CurationPolicy
    actions: tuple[Action, ...]

    @property
    def bytes_freed(self) -> int:
        """What it frees in the tree, at most."""
        return sum(action.bytes for action in self.actions)

    def to_json(self) -> str:
        """As text, for ``from_json``."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "namespace": self.namespace,
            "tree_id": self.tree_id,
            "created": self.created,
            "length": self.length,
            "policy": self.policy.to_json(),
            "actions": [action.to_json() for action in self.actions],
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "CurationPlan":
        """Raises RequestError, which says what is wrong, for anything but a plan."""
        if len(text) > _MAX_BYTES:
            raise RequestError(f"not a curation plan: {len(text)} bytes are too many")
        try:
            return cls._parse(json.loads(text, parse_constant=_no_constant))
        except RequestError:
            raise
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise RequestError(f"not a curation plan: {error}") from None

    @classmethod
    def _parse(cls, data: Any) -> "CurationPlan":
        keys = ("format", "format_version", "namespace", "tree_id", "created", "length", "policy", "actions")
        found, version, namespace, tree_id, created, length, policy, actions = _exactly(data, keys, "a plan")
        if found != FORMAT or version != FORMAT_VERSION:
            raise ValueError(f"it is {str(found)[:80]!r} version {str(version)[:80]}, not {FORMAT} {FORMAT_VERSION}")
        if not isinstance(namespace, str) or not is_namespace(namespace):
            raise ValueError("the namespace is malformed")
        if not isinstance(tree_id, str) or not is_tree_id(tree_id):
            raise ValueError("the tree id is malformed")
        if isinstance(created, bool) or not isinstance(created, (int, float)) or not math.isfinite(created):
            raise ValueError("created is not a time")
        if not _is_count(length) or not isinstance(actions, list):
            raise ValueError("length is a number of tokens, and actions is a list")
        plan = tuple(_action(item) for item in actions)
        _require_order(plan, length)
        return cls(namespace, tree_id, float(created), length, CurationPolicy.from_json(policy), plan)


def _action(item: Any) -> Action:
    keys = ("kind", "node", "start", "stop", "tokens", "bytes", "reason", "action_id")
    kind, node, start, stop, tokens, size, reason, action_id = _exactly(item, keys, "an action")
    if kind not in get_args(Kind):
        raise ValueError(f"{str(kind)[:80]!r} is no action")
    if not all(map(_is_count, (start, stop, tokens, size))) or not 0 <= start <= stop or tokens != stop - start:
        raise ValueError("start, stop, tokens and bytes do not fit together")
    if not isinstance(reason, str) or len(reason) > 1000:
        raise ValueError("a reason is a short text")
    if (action_id is not None) if kind == "keep" else not is_action_id(action_id):
        raise ValueError(f"{str(action_id)[:80]!r} is no id of an action to {kind}")
    level = index = None
    if kind == "compact":
        if not isinstance(node, list) or len(node) != 2 or not all(map(_is_count, node)):
            raise ValueError("a node is [level, index]")
        level, index = node
        if not 2 <= level <= MAX_LEVEL or span(level, index) != (start, stop):
            raise ValueError(f"node {node} does not cover tokens {start} to {stop}")
    elif node is not None:
        raise ValueError(f"only compacting has a node, not: {kind}")
    return Action(kind, start, stop, reason, size, level, index, action_id)


def _require_order(actions: tuple[Action, ...], length: int) -> None:
    for before, after in pairwise(actions):
        if before.stop > after.start:
            raise ValueError(f"actions overlap at token {after.start}, or are not in order")
    if actions and actions[-1].stop > length:
        raise ValueError(f"an action ends behind the {length} tokens of the tree")
    if len(actions) > 1 and any(action.kind in ("archive", "delete") for action in actions):
        raise ValueError("a tree that is archived or deleted has no other action")
    ids = [action.action_id for action in actions if action.action_id is not None]
    if len(set(ids)) < len(ids):
        raise ValueError("two actions have the same id")


def _exactly(data: Any, keys: tuple[str, ...], what: str) -> list[Any]:
    if not isinstance(data, dict) or set(data) != set(keys):
        raise ValueError(f"{what} is an object with exactly {', '.join(keys)}")
    return [data[key] for key in keys]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
