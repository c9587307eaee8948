# %% [markdown]
# # Your own method
#
# A method from a file outside the package, trained beside a baseline on the digits that come with
# scikit-learn, compared with it, and loaded again. Under a minute, no network:
#
#     python tools/examples/own_method.py
#
# ## The method
#
# `tail_margin.py`, beside this file, is all of it: a class with its options, `setup`, which sees
# the class counts, and `loss`, which returns one loss per image. `ltbench new method NAME` writes
# such a file with a recipe and a test; `ltbench/methods/README.md` lists what can be overridden.
#
# A file becomes a plugin by being named: `plugins=FILE.py` on the command line or in a recipe,
# `plugins=` or `ltbench.load_plugins` in Python. Nothing is installed, and ltbench is not edited.

# %%
from pathlib import Path

import ltbench

plugin = Path(__file__).with_name("tail_margin.py")

# %% [markdown]
# ## Method and baseline under equal conditions
#
# `ce` is cross-entropy on a folder of images. Here it gets the digits instead, 114 images of `zero`
# down to 5 of `nine`, and a small network; then only the method differs. On the command line:
#
#     ltbench run recipe=ce stages.0.method=tail_margin plugins=tail_margin.py data=digits_lt

# %%
SETTINGS = (
    "data=digits_lt",
    "data.image_size=8",
    "backbone=resnet20_cifar",
    "backbone.args.widths=[8,16,32]",
    "run.threads=1",  # fastest for a network of this size
)
for seed in range(3):
    base = ltbench.get_recipe("ce", *SETTINGS, epochs=15, seed=seed, out=f"runs/ce/seed{seed}")
    ltbench.run(base)
    ours = ltbench.get_recipe(
        "ce",
        *SETTINGS,
        "stages.0.method=tail_margin",
        "stages.0.method.strength=1.0",
        name="tail_margin",
        plugins=[str(plugin)],
        epochs=15,
        seed=seed,
        out=f"runs/tail_margin/seed{seed}",
    )
    result = ltbench.run(ours)
    print(result)

# %% [markdown]
# ## Is the difference more than noise?
#
# Seeds are paired: the same seed means the same first weights and the same order of images.
#
#     ltbench compare runs/ce runs/tail_margin baseline=ce out=comparison

# %%
print(ltbench.compare("runs/*/seed*", baseline="ce"))

# %% [markdown]
# ## The trained model
#
# The run keeps a copy of the plugin, so it can be loaded from anywhere, and its recipe has the
# SHA-256 of the file: another version of the file is another recipe. Loading a run runs that code;
# load only runs of people whom you trust.

# %%
model = ltbench.load("runs/tail_margin/seed0")
print(type(model).__name__, [round(margin, 2) for margin in model.margins.tolist()])
print(ours.stages[0].method.plugin[:28])

# %% [markdown]
# ## From here
#
# - `stages.0.update=plot` or `=sam` trains the same method with another update;
# - mixing, a second stage, another classifier: the table in `ltbench/methods/README.md`;
# - a package announces its module in the entry-point group `ltbench.plugins`, and then needs no
#   `plugins=`.
