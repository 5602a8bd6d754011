"""Learn the detection score of a fit of one's own, and try it on other images. Offline; about a minute on a CPU.

The attacks know the classifier and not the defence. Arguments replace the digits by CIFAR-10: its file, the name and
the weights of a classifier, and how many images to learn on, as docs/defence.md says. The defence is then the default,
whose own settings were learnt like this.
"""

import sys
from dataclasses import replace
from functools import partial

import torch
from sklearn.metrics import roc_auc_score

import dipdefense
from attacks import deepfool, fgsm, momentum_pgd, momentum_pgd_flip, pgd, pgd_di
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

if sys.argv[1:]:
    file, name, weights, count = sys.argv[1:]
    data, classifier, N, eps = load_dataset("cifar10", file), load_classifier(name, weights), int(count), 8 / 255
    learnt_on, tried_on = range(N), range(1000, 1000 + N)
    config, decision = None, dipdefense.defence_for((3, 32, 32)).decision
else:
    data, classifier, N, eps = load_dataset("digits"), load_classifier("digits_cnn"), 32, 12 / 255
    learnt_on, tried_on = range(N), range(N, 2 * N)
    small = {"channels": [8, 16], "skip_channels": 0, "upsampling": "nearest"}
    config = dipdefense.FitConfig(architecture_options=small, iterations=20)
    decision = dipdefense.MeanSoftmax(iterations=(10, 15, 20))

learnt = {
    "pgd": partial(pgd, eps=eps),
    "momentum_pgd": partial(momentum_pgd, eps=eps),
    "fgsm": partial(fgsm, eps=eps),
    "pgd, half as strong": partial(pgd, eps=eps / 2),
    "pgd, a quarter": partial(pgd, eps=eps / 4),
    "deepfool": deepfool,
}
others = {"momentum_pgd_flip": partial(momentum_pgd_flip, eps=eps), "pgd_di": partial(pgd_di, eps=eps)}


def adversarial(attack, positions):
    """What the attack makes of the images at these positions."""
    labels = data.labels[positions.start : positions.stop]
    return attack(classifier, data.batch(positions), labels, seed=3)


defended = dipdefense.defend(classifier, config, decision=decision)
detector = dipdefense.learn_detector(
    defended, data.batch(learnt_on), [adversarial(attack, learnt_on) for attack in learnt.values()]
)
print(detector)
scored = dipdefense.defend(classifier, config, decision=replace(decision, detector=detector))


@torch.no_grad()
def scores(images):
    """Detection scores, (n,)."""
    return torch.cat([scored.detect(part) for part in torch.split(images, 64)])


clean = scores(data.batch(tried_on))
for name, attack in (learnt | others).items():
    attacked = scores(adversarial(attack, tried_on))
    area = roc_auc_score([0] * N + [1] * N, torch.cat([clean, attacked]))
    print(f"{name:20} AUROC {area:.3f} (n = {N} of each kind)")
