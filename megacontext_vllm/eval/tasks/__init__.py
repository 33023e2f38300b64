"""The tasks, by name."""

from megacontext_vllm.eval.tasks.aggregation import Aggregation
from megacontext_vllm.eval.tasks.base import Task
from megacontext_vllm.eval.tasks.chat import Chat
from megacontext_vllm.eval.tasks.continuation import Continuation
from megacontext_vllm.eval.tasks.coverage import Coverage
from megacontext_vllm.eval.tasks.follow_up import FollowUp
from megacontext_vllm.eval.tasks.many_keys import ManyKeys
from megacontext_vllm.eval.tasks.needle import Needle
from megacontext_vllm.eval.tasks.no_shared_words import NoSharedWords
from megacontext_vllm.eval.tasks.tool_result import ToolResult
from megacontext_vllm.eval.tasks.updated_fact import UpdatedFact
from megacontext_vllm.eval.tasks.variable_tracking import VariableTracking

_ALL: tuple[Task, ...] = (
    Needle(),
    ManyKeys(),
    NoSharedWords(),
    VariableTracking(),
    UpdatedFact(),
    Aggregation(),
    Coverage(),
    Chat(),
    FollowUp(),
    ToolResult(),
    Continuation(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "Task"]
