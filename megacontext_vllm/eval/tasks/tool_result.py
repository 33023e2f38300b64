"""An agent: the user asked, the model called a tool, and what the tool returned is far longer than the window."""

from dataclasses import replace
from typing import ClassVar

from megacontext_vllm.eval.sample import Layout
from megacontext_vllm.eval.tasks.base import Question
from megacontext_vllm.eval.tasks.needle import Needle
from megacontext_vllm.eval.tasks.planted import Fact
from megacontext_vllm.eval.tasks.values import Values

_CALL = "I do not know that yet. I will read the file that was uploaded."


class ToolResult(Needle):
    """The plainest question, with everything that is to be read behind it."""

    name = "tool_result"
    summary = "a five-digit number in what a tool returned, asked for before the tool was called"
    layout: ClassVar[Layout] = Layout.TOOL_RESULT

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        facts, questions = super().plan(values, length, seed)
        return facts, [replace(question, said=(("assistant", _CALL),)) for question in questions]
