"""Adapt a classifier to reconstructions: what it says of an image, it learns to say of the image's reconstructions.

The bare classifier f answers to the clean images, and its answers are the targets of a copy g of it, the student. No
labels are needed. The student sees the reconstructions r of noisy copies, and the images themselves:

    min_g  mean over inputs u of  KL( softmax f(x) || softmax g(u) ),    u = x, or r(clip(x + sigma e)), e ~ N(0, I)

With eps > 0 the inputs are first perturbed to increase the divergence. The gradient at a reconstruction stands for the
gradient at the image (BPDA, Athalye et al. 2018), so this needs no further fits.

Source: Goldblum, Fowl, Feizi and Goldstein (2020), "Adversarially robust distillation".
Differs: the teacher is the bare classifier, which need not be robust; the student's inputs are reconstructions.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dipdefense.arguments import check_finite, check_integer, check_positive
from dipdefense.defence.adaptation.progress_file import ProgressFile
from dipdefense.defence.adaptation.trained_layers import find_trained, reestimate_batch_norm
from dipdefense.defence.adaptation.training import TrainingPlan, train
from dipdefense.defence.adaptation.training_inputs import NoisyCopies, reconstruct_copies
from dipdefense.defence.certify import check_subject
from dipdefense.defence.check_logits import check_logits
from dipdefense.defence.classifier import check_mode
from dipdefense.defence.smoothing import DIP, Purify
from dipdefense.defence.wrapper import Wrapper
from dipdefense.digest import describe
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointLike, code_and_device
from dipdefense.fitting.fit import fit_context
from dipdefense.image_tensors import check_images

__all__ = ["AdaptationCallback", "adapt", "noise_levels"]

AdaptationCallback = Callable[[str, int, int, float | None], None]  # stage, done, total, loss of the epoch


def adapt(
    classifier: nn.Module,
    images: Tensor,
    *,
    sigma: float | Sequence[float] = 0.12,
    layers: str = "all",
    epochs: int = 20,
    lr: float = 3e-4,
    batch: int = 64,
    copies: int = 1,
    eps: float = 0.0,
    attack_steps: int = 7,
    purify: str | Purify | None = DIP,
    mirror: bool = True,
    seed: int = 0,
    callback: AdaptationCallback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> nn.Module:
    """A copy of a classifier that reads reconstructions as the classifier reads the images; it learns without labels.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode; it is not changed.
        images: (N, C, H, W) in [0, 1], N at least 2, on the classifier's device; report results on others.
        sigma: standard deviation of the noise, images in [0, 1], or several that the copies take in turn. 0 gives
            reconstructions of the images without noise, by fit and filters for the smallest noise.
        layers: what is trained, a key of `LAYERS`, from cheap to dear. `batch_norm`: nothing; the running statistics of
            batch normalisation are re-estimated on the inputs. `last`: these, then the linear or convolutional layer
            that runs last. `all`: these, then all parameters. Meanwhile every layer is in eval mode: batch
            normalisation uses the new statistics and dropout passes everything. `requires_grad` does not matter.
        epochs: passes over all inputs.
        lr: step size of Adam at the start; it falls to 0 by a cosine.
        batch: inputs of a step, at least 2.
        copies: noisy copies of each image; each is purified once.
        eps: radius of the Linf ball in which inputs are perturbed, images in [0, 1]; 0 for none.
        attack_steps: sign steps of a perturbation, each as dear as a step of training.
        purify: as in `smooth`. Of the fit, every reconstruction that is classified is an input.
        mirror: whether an image keeps its class when mirrored; inputs are then mirrored at random.
        seed: of noise, order, mirroring and perturbations.
        callback: called with the stage, `reconstructions` or `epochs`, how many noisy copies or epochs are done, of how
            many, and the mean loss of the epoch or None; also for what a checkpoint holds.
        checkpoint: file, or a `Checkpoint`, that saves reconstructions and epochs every minute. The same call goes on
            from there after a kill, and comes to the same bits on the same machine.

    Returns:
        A module of the classifier's class, in eval mode.

    Raises:
        TypeError, ValueError: not a floating image batch, or outside [0, 1]; fewer than two images; a number out of its
            range; unknown layers, or a classifier that has none of them; a classifier that is a defence, is in training
            mode, or does not return finite logits (B, K); a purifier that changes the shape or leaves [0, 1]; a
            checkpoint of other images, another classifier or other settings.
        OSError: the checkpoint cannot be read or written.
        RuntimeError: the loss is not finite.
    """
    _check_classifier_and_images(classifier, images)
    sigmas = noise_levels(sigma)
    for name, value, least in (("epochs", epochs, 1), ("batch", batch, 2), ("copies", copies, 1)):
        check_integer(name, value, least)
    for name, value, least in (("attack_steps", attack_steps, 1), ("seed", seed, 0)):
        check_integer(name, value, least)
    check_positive("lr", lr)
    check_finite("eps", eps)
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], got {eps!r}")
    if not (purify is None or purify == DIP or callable(purify)):
        raise TypeError(f"purify must be {DIP!r}, None or a function of images, got {purify!r}")
    noisy = NoisyCopies(sigmas, copies, seed, purify)
    plan = TrainingPlan(epochs, lr, batch, mirror, eps, attack_steps)
    with fit_context(images.device, "full"):
        images = images.detach().clone()  # of an inference tensor, one that gradients may pass
        student = copy.deepcopy(classifier).eval()
        trained = find_trained(layers, student, images[0])
        targets = _answers(student, images, batch)
        identity = _identity(classifier, images, targets, noisy, plan, layers)
        file = ProgressFile(None if checkpoint is None else Checkpoint.at(checkpoint), identity)
        report = callback or (lambda stage, done, total, loss: None)
        made, owners = reconstruct_copies(
            images, noisy, file, lambda done, total: report("reconstructions", done, total, None)
        )
        inputs = torch.cat([images, made])
        if file.training is None:
            reestimate_batch_norm(student, inputs, batch)
        if trained:
            student.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_()
            train(
                student,
                trained,
                inputs,
                torch.cat([targets, targets[owners]]),
                plan,
                generator=torch.Generator().manual_seed(seed),
                file=file,
                callback=lambda done, loss: report("epochs", done, epochs, loss),
            )
    for learnt, given in zip(student.parameters(), classifier.parameters(), strict=True):
        learnt.requires_grad_(given.requires_grad)
    return student


def noise_levels(sigma: float | Sequence[float]) -> tuple[float, ...]:
    """One or more noise levels as a tuple.

    Raises:
        ValueError: none, or one that is negative or not finite.
    """
    sigmas = tuple(sigma) if isinstance(sigma, Sequence) else (sigma,)
    if not sigmas:
        raise ValueError("sigma must be a number or one or more numbers, got an empty sequence")
    for level in sigmas:
        check_finite("sigma", level)
        if level < 0:
            raise ValueError(f"sigma must not be negative, got {level!r}")
    return sigmas


def _check_classifier_and_images(classifier: nn.Module, images: Tensor) -> None:
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
    if isinstance(classifier, Wrapper):
        raise TypeError(f"classifier must be the one inside the {type(classifier).__name__}: give its .classifier")
    check_images(images)
    if len(images) < 2:
        raise ValueError(f"images must be at least 2, got {len(images)}: a classifier is adapted on hundreds")
    check_mode(classifier)
    check_subject(classifier, images)


@torch.no_grad()
def _answers(classifier: nn.Module, images: Tensor, batch: int) -> Tensor:
    """The classifier's probabilities (N, K)."""
    answers = []
    for part in torch.split(images, batch):
        logits = classifier(part)
        check_logits(logits, len(part))
        answers.append(logits.softmax(1))
    return torch.cat(answers)


def _identity(
    classifier: nn.Module, images: Tensor, targets: Tensor, noisy: NoisyCopies, plan: TrainingPlan, layers: str
) -> dict[str, str]:
    """Everything that the result depends on, by name."""
    return {
        "classifier": describe(classifier),
        "images": describe("", images),
        "answers": describe("", targets.argmax(1)),  # the digits of the classifier miss closures and attributes
        "sigma": repr(noisy.sigmas),
        "copies": repr(noisy.copies),
        "seed": repr(noisy.seed),
        "purify": describe(noisy.purify),
        "layers": layers,
        **{name: repr(value) for name, value in dataclasses.asdict(plan).items()},
        **code_and_device(images),
    }
