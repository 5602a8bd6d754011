"""Seconds that the default defence takes for an image, in a batch and one by one.

python docs/examples/seconds_of_the_default.py DATA IMAGES PHOTOGRAPHS, with the folder of images and weights and the
number of each. Torch's threads are those of OMP_NUM_THREADS. Of three calls the fastest and the slowest are printed.
"""

import sys
from pathlib import Path
from time import perf_counter

import torch

import dipdefense
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

data, images, photographs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resnet = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
squeezenet = load_classifier("torchvision:squeezenet1_0", data / "weights" / "imagenet_squeezenet1_0.pt")
small = load_dataset("cifar10", data / "cifar10" / "test.npz").batch(range(1000, 1000 + images))
large = load_dataset("folder", data / "imagenet").batch(range(50, 50 + photographs))


def report(kind, classifier, parts):
    """Print the seconds of `judge` for an image of these batches, after a call that does not count."""
    defended = dipdefense.defend(classifier)
    defended.judge(parts[0][:1])
    seconds = []
    for _ in range(3):
        start = perf_counter()
        for part in parts:
            defended.judge(part)
        seconds.append((perf_counter() - start) / sum(map(len, parts)))
    print(f"{kind}: {min(seconds):.3f} to {max(seconds):.3f} s an image, {torch.get_num_threads()} threads")


report(f"CIFAR-10, {images} in a batch", resnet, [small])
report("CIFAR-10, 4 one by one", resnet, torch.split(small[:4], 1))
report(f"photographs, {photographs} in a batch", squeezenet, [large])
