"""Set an alarm on clean images, and count what it flags on others. Offline; about a minute on a CPU.

The attack knows the classifier and not the defence; one that knows the score need not raise an alarm. Arguments replace
the digits by CIFAR-10: its file, the name and the weights of a classifier, and how many images of each kind to use, as
docs/defence.md says.
"""

import sys

import torch

import dipdefense
from attacks import pgd
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson

if sys.argv[1:]:
    file, name, weights, count = sys.argv[1:]
    data, classifier, N, radii = load_dataset("cifar10", file), load_classifier(name, weights), int(count), (4, 8)
    calibration, others = range(N), range(1000, 1000 + N)
else:
    data, classifier, N, radii = load_dataset("digits"), load_classifier("digits_cnn"), 59, (25, 51)
    calibration, others = range(N), range(N, 2 * N)

defended = dipdefense.defend(classifier).calibrate(data.batch(calibration), fpr=0.05)
alarm = defended.alarm
assert alarm is not None
low, high = alarm.interval()
print(f"asked for 5.0 % false alarms, set on {N} images: a rate of {100 * low:.1f} to {100 * high:.1f} %")

images, labels = data.batch(others), data.labels[others.start : others.stop]
seen = {"clean": images} | {f"PGD {eps}/255": pgd(classifier, images, labels, eps=eps / 255) for eps in radii}
for kind, shown in seen.items():
    with torch.no_grad():
        flagged = torch.cat([defended.judge(part).flagged for part in torch.split(shown, 64)])
    low, high = wilson(int(flagged.sum()), N)
    print(f"{kind:10} {100 * flagged.double().mean():5.1f} % flagged ({100 * low:.1f} to {100 * high:.1f}, n = {N})")
