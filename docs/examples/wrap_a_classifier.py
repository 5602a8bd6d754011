"""Wrap a classifier, and read logits and detection scores, clean and attacked. Offline; about a minute on a CPU.

The attack knows the classifier and not the defence. What this prints says nothing about an attacker who knows both:
see evaluate_honestly.py.
"""

import torch

import dipdefense
from attacks import pgd
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

EPS, N = 0.2, 24

digits = load_dataset("digits")  # scikit-learn's, as 1x32x32 images in [0, 1]
images, labels = digits.batch(range(N)), digits.labels[:N]
classifier = load_classifier("digits_cnn")  # yours: any module, images in [0, 1] -> logits
defended = dipdefense.defend(classifier, check=(1, 32, 32))

adversarial = pgd(classifier, images, labels, eps=EPS, steps=10)
for name, seen in {"clean": images, "PGD": adversarial}.items():
    with torch.no_grad():
        bare = classifier(seen)
        judged = defended.judge(seen)  # logits, scores and reconstructions of one fit
    for who, logits in {"bare": bare, "defended": judged.logits}.items():
        right = (logits.argmax(1) == labels).sum()
        print(f"{name:5}  {who:8}  {right} of {N} right")
    print(f"{name:5}  detection score, mean {judged.scores.mean():.3f}")
