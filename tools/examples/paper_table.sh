#!/usr/bin/env bash
# A table for a paper: three methods, three seeds, their table as .csv, .md and .tex, and paired
# differences to a baseline with a picture. One minute on two cores, no network:
#
#   tools/examples/paper_table.sh            EPOCHS=30 tools/examples/paper_table.sh
#
# It runs in the current folder and can be killed and given again: finished runs are not repeated.
set -euo pipefail

# 1. The grid. Recipes and seeds with commas between make one run each; every other word holds for
# all of them. These recipes are made for a folder of images; `data=digits_lt` takes scikit-learn's
# digits instead, 114 images of `zero` down to 5 of `nine`. For a real table: recipes of a benchmark,
# e.g. recipe=ce_cifar100,balanced_softmax_cifar100 data.root=DIR, and their full schedules.
# jobs=2 runs two at a time; the same command in a second terminal would take its share.
ltbench run recipe=ce,balanced_softmax,balanced_softmax_plot seed=0,1,2 \
  data=digits_lt data.image_size=8 backbone=resnet20_cifar 'backbone.args.widths=[8,16,32]' \
  epochs="${EPOCHS:-15}" run.threads=1 jobs=2 out=runs/table

# 2. The table. Mean and standard deviation over seeds in percent, the best of each column bold, ties
# marked with ≈. results.tex is a tabular for booktabs: \input{results.tex}; results.csv has all digits.
cat runs/table/results.md
cat runs/table/results.tex

# 3. Is it more than noise? Seeds are paired, each difference has a 95 % interval and a p value, and
# the last lines say in words what three seeds resolve. The same as files, with a picture, in
# comparison/: compare.csv, .md, .tex, .json and .png.
ltbench compare runs/table baseline=ce out=comparison

# 4. What to write beside it. Each run's record.json has the versions, hardware, threads and the hash
# of the images; the digest names the recipe, and this prints all of it:
ltbench show recipe=balanced_softmax changed=true
