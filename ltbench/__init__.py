"""Model zoo and benchmark suite for deep long-tailed image recognition.

Example::

    import ltbench

    ltbench.list_recipes("*plot*")
    recipe = ltbench.get_recipe("quickstart", seed=1)
    result = ltbench.run(recipe)               # trains, evaluates, writes a record
    model = ltbench.load(result.folder)        # eval mode: images -> logits
    metrics = ltbench.evaluate(model, "digits_lt")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ltbench import timm_hook

__version__ = "0.1.0"

timm_hook.install()

# Where each public name lives. They are imported on first use, so that `import ltbench` and
# listing names stay fast and free of torch.
_WHERE = {
    "list_recipes": "ltbench.config",
    "get_recipe": "ltbench.config",
    "list_models": "ltbench.api",
    "create_model": "ltbench.api",
    "load": "ltbench.api",
    "evaluate": "ltbench.api",
    "run": "ltbench.runner",
    "PlotStep": "ltbench.updates.library",
    "class_gram": "ltbench.class_gradients",
    "UserError": "ltbench.errors",
    "losses": "ltbench.losses",
    "moo": "ltbench.moo",
}
_MODULES = {"losses", "moo"}

__all__ = [
    "PlotStep",
    "UserError",
    "__version__",
    "class_gram",
    "create_model",
    "evaluate",
    "get_recipe",
    "list_models",
    "list_recipes",
    "load",
    "losses",
    "moo",
    "run",
]

if TYPE_CHECKING:
    from ltbench import losses, moo
    from ltbench.api import create_model, evaluate, list_models, load
    from ltbench.class_gradients import class_gram
    from ltbench.config import get_recipe, list_recipes
    from ltbench.errors import UserError
    from ltbench.runner import run
    from ltbench.updates.library import PlotStep


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module `ltbench` has no attribute `{name}`")
    module = importlib.import_module(_WHERE[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
