"""Climb a small ladder of attacks that know more and more of the defence. Offline; about a minute on a CPU.

The row to quote is `worst case`: images that no rung wins. n is far too small here to quote anything.
"""

import dipdefense
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive

# A small, short fit, so that this is quick; leave `fit` out for the default.
fit = dipdefense.FitConfig(architecture_options={"channels": [8, 16], "skip_channels": 0}, iterations=30)
defended = dipdefense.defend(load_classifier("digits_cnn"), fit)
config = AdaptiveConfig(
    rungs=["oblivious", "bpda", "unrolled"],
    eps=0.2,
    n={"cheap": 8, "gradient": 8, "unrolled": 8, "queries": 8},  # images a rung, by what it costs
)
table = evaluate_adaptive(defended, load_dataset("digits"), config, out="runs/evaluate_honestly")
for row in table.itertuples():
    print(f"{row.attack:10}  {row.accuracy:6.1%} of {row.n}  (95 % {row.ci_low:.1%} to {row.ci_high:.1%})")
