"""Model zoo and benchmark suite for deep long-tailed image recognition.

Example::

    import ltbench

    ltbench.list_recipes("*plot*")
    recipe = ltbench.get_recipe("quickstart", seed=1)
    result = ltbench.run(recipe)               # trains, evaluates, writes a record
    model = ltbench.load(result.folder)        # eval mode: images -> logits
    metrics = ltbench.evaluate(model, "digits_lt")
    found = ltbench.predict(model, "images")   # a folder without labels
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ltbench import moved
from ltbench.models import timm_hook
from ltbench.version import __version__

timm_hook.install()
moved.install()

# Where each public name lives. They are imported on first use, so that `import ltbench` and
# listing names stay fast and free of torch.
_WHERE = {
    "list_recipes": "ltbench.config.files",
    "get_recipe": "ltbench.config.files",
    "list_models": "ltbench.hub.load",
    "create_model": "ltbench.models.create",
    "load": "ltbench.hub.load",
    "load_plugins": "ltbench.config.plugins",
    "evaluate": "ltbench.evaluation.evaluate",
    "compare": "ltbench.records.compare",
    "predict": "ltbench.hub.predict",
    "run": "ltbench.train.run",
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
    "compare",
    "create_model",
    "evaluate",
    "get_recipe",
    "list_models",
    "list_recipes",
    "load",
    "load_plugins",
    "losses",
    "moo",
    "predict",
    "run",
]

if TYPE_CHECKING:
    from ltbench import losses, moo
    from ltbench.class_gradients import class_gram
    from ltbench.config.files import get_recipe, list_recipes
    from ltbench.config.plugins import load_plugins
    from ltbench.errors import UserError
    from ltbench.evaluation.evaluate import evaluate
    from ltbench.hub.load import list_models, load
    from ltbench.hub.predict import predict
    from ltbench.models.create import create_model
    from ltbench.records.compare import compare
    from ltbench.train.run import run
    from ltbench.updates.library import PlotStep


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module `ltbench` has no attribute `{name}`")
    module = importlib.import_module(_WHERE[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
