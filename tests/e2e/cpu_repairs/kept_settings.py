"""vLLM's CPU platform overrides settings that a GPU's would leave: they are to stay as they were asked for."""

from collections.abc import Callable
from types import ModuleType
from typing import Any


def keep(*paths: str) -> Callable[[ModuleType], None]:
    """A repair of ``vllm.platforms.cpu`` that keeps the settings ``paths`` of the VllmConfig (``section.name``)."""

    def repair(module: ModuleType) -> None:
        platform = module.CpuPlatform
        stock = platform.check_and_update_config.__func__

        def check_and_update_config(cls: Any, config: Any) -> None:
            places = [(getattr(config, section), name) for section, name in (path.split(".") for path in paths)]
            asked = [getattr(section, name) for section, name in places]
            stock(cls, config)
            for (section, name), value in zip(places, asked, strict=True):
                setattr(section, name, value)

        platform.check_and_update_config = classmethod(check_and_update_config)

    return repair
