"""How quality is measured: tasks with known evidence, methods at equal budget, one reader for all of them.

Data goes one way: task → sample → prompt → method → context → reader → reading → record → report.
"""
