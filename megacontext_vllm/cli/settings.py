"""``megacontext settings``: every setting of the plugin, as ``config.py`` describes it."""

import argparse
import json
from typing import Any, get_args

from rich import box
from rich.markup import escape
from rich.table import Table

from megacontext_vllm.cli.text import out
from megacontext_vllm.config import SECTION, MegaContextConfig


def show(options: argparse.Namespace) -> int:
    settings = [
        {
            "name": name,
            "type": type_text(field.annotation),
            "default": field.get_default(call_default_factory=True),
            "description": field.description or "",
        }
        for name, field in MegaContextConfig.model_fields.items()
    ]
    if options.json:
        print(json.dumps(settings, indent=1, default=str))
        return 0
    table = Table("setting", "type", "default", "what it is", box=box.SIMPLE_HEAD)
    for setting in settings:
        default = setting["default"]
        shown = "–" if default is None else repr(default) if isinstance(default, str) else str(default)
        name, kind, description = setting["name"], setting["type"], setting["description"]
        table.add_row(f"[bold]{name}[/bold]", escape(kind), escape(shown), escape(description))
    console = out()
    console.print(table)
    console.print("Set one:   vllm serve MODEL --plugin megacontext --additional-config.megacontext.window 1024")
    console.print(
        f"""Several:   vllm serve MODEL --additional-config '{{"{SECTION}": {{"window": 1024}}}}'""", markup=False
    )
    return 0


def type_text(annotation: Any) -> str:
    """``int | None`` as "int", a Literal as its values."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if not arguments:
        return str(getattr(annotation, "__name__", annotation))
    return " or ".join(a.__name__ if isinstance(a, type) else repr(a) for a in arguments)
