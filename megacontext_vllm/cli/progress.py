"""A progress bar for long work, on standard error, so that standard output stays what was asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (done, total); nothing is drawn where there is no terminal."""
    console = Console(stderr=True)
    share = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def phases() -> Iterator[Callable[[str, int, int, str], None]]:
    """Yields a function to call with (phase, done, total, numbers): a bar for each phase, without a terminal a line."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int, numbers: str) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total, numbers="")
            progress.update(tasks[phase], completed=done, numbers=numbers)
            if done == total and not console.is_terminal:
                console.print(f"{phase}: {done:,}  {numbers}", highlight=False)

        yield report
