"""Set an alarm on clean photographs, and count what it flags of others: small perturbations, crops and patches.

python docs/examples/alarm_on_photographs.py FOLDER WEIGHTS SET_ON OTHERS CUT [SIDE], with a folder of photographs
and labels.csv, the weights of SqueezeNet 1.0, how many photographs the alarm is set on, how many others are judged, how
many pixels the classifier cuts off at each border (below 0: how many black ones it adds), and the side of the
photographs, 224 if left out. An alarm at 5 % needs at least 19 photographs. Each judgement takes 4.5 s of a CPU core,
and there are SET_ON + 6 OTHERS of them: half an hour for 100 and 50.

The attacks know the classifier and not the defence. A patch may have any values; it covers a sixteenth of the image at
a random place. An image is lost if the defence gets it wrong and does not flag it.
"""

import sys
from functools import partial

import torch
from torch import nn

import dipdefense
from attacks import pgd, pgd_di
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson

folder, weights = sys.argv[1:3]
set_on, others, cut = map(int, sys.argv[3:6])
side = int(sys.argv[6]) if sys.argv[6:] else 224
BATCH = 10


class Patched(nn.Module):
    """A classifier of images of which only the pixels in `masks` (B, 1, H, W) come from its input."""

    def __init__(self, classifier: nn.Module, images: torch.Tensor, masks: torch.Tensor):
        super().__init__()
        self.classifier, self.images, self.masks = classifier, images, masks

    def patched(self, images: torch.Tensor) -> torch.Tensor:
        """What the classifier gets."""
        return torch.where(self.masks, images, self.images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.classifier(self.patched(images))


def patch(classifier, images, labels):
    """PGD within a square of a quarter of the side, whose values are free."""
    size = side // 4
    masks = torch.zeros(len(images), 1, side, side, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(side - size + 1, (2,), generator=places).tolist()
        mask[:, top : top + size, left : left + size] = True
    seen = Patched(classifier, images, masks).eval()
    return seen.patched(pgd(seen, images, labels, eps=1.0, alpha=0.05, steps=100))


data = load_dataset("folder", folder, size=side)
classifier = nn.Sequential(nn.ZeroPad2d(-cut), load_classifier("torchvision:squeezenet1_0", weights)).eval()
defended = dipdefense.defend(classifier).calibrate(data.batch(range(set_on)), fpr=0.05, batch_size=BATCH)
alarm = defended.alarm
assert alarm is not None
low, high = alarm.interval()
print(f"asked for 5.0 % false alarms, set on {set_on} photographs: a rate of {100 * low:.1f} to {100 * high:.1f} %")

chosen = range(set_on, set_on + others)
images, labels = data.batch(chosen), data.labels[chosen.start : chosen.stop]
places = torch.Generator().manual_seed(0)  # of the patches
attacks = {
    "clean": lambda classifier, images, labels: images,
    **{f"pgd {eps}/255": partial(pgd, eps=eps / 255) for eps in (1, 2, 4)},
    "pgd_di 4/255": partial(pgd_di, eps=4 / 255),
    "patch": patch,
}
for kind, attack in attacks.items():
    counts = dict.fromkeys(("flagged", "right", "bare right", "lost"), 0)
    for part, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        shown = attack(classifier, part, truth)
        with torch.no_grad():
            judged = defended.judge(shown)
            bare = classifier(shown).argmax(1)
        right = judged.logits.argmax(1) == truth
        found = (judged.flagged, right, bare == truth, ~right & ~judged.flagged)
        for name, which in zip(counts, found, strict=True):
            counts[name] += int(which.sum())
    shares = [
        f"{100 * count / others:5.1f} % {name} ({' to '.join(f'{100 * end:.1f}' for end in wilson(count, others))})"
        for name, count in counts.items()
    ]
    print(f"{kind:13} {'  '.join(shares)}", flush=True)
