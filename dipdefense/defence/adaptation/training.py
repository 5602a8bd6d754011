"""Training by distillation: the student's answer to an input comes close to a given answer, also under attack."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.defence.adaptation.progress_file import ProgressFile

__all__ = ["TrainingPlan", "divergence", "perturb", "train"]


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers of a training."""

    epochs: int  # passes over all inputs
    lr: float  # step size of Adam at the start; it falls to 0 by a cosine
    batch: int  # inputs of a step
    mirror: bool  # whether half of the inputs, drawn anew for each step, are mirrored
    eps: float  # radius of the Linf ball in which inputs are perturbed, images in [0, 1]; 0: not at all
    attack_steps: int  # sign steps of a perturbation


def train(
    student: nn.Module,
    trained: Sequence[nn.Parameter],
    inputs: Tensor,
    targets: Tensor,
    plan: TrainingPlan,
    *,
    generator: torch.Generator,
    file: ProgressFile,
    callback: Callable[[int, float], None] | None = None,
) -> None:
    """Minimise the mean of KL(target || softmax of the student) over inputs, in place.

    Args:
        student: in eval mode, in which it stays.
        trained: its parameters that change; they alone require gradients.
        inputs: images (M, C, H, W) in [0, 1].
        targets: probabilities (M, K).
        plan: the numbers.
        generator: on the CPU; of order, mirroring and perturbations.
        file: keeps the state after each epoch; training goes on from what it holds.
        callback: called after each epoch with its number, counted from 1, and the mean loss of its steps.

    Raises:
        RuntimeError: a loss that is not finite.
    """
    optimizer = torch.optim.Adam(trained, lr=plan.lr)
    losses = _resume(student, optimizer, generator, file)
    steps = math.ceil(len(inputs) / plan.batch)
    for epoch in range(plan.epochs):
        if epoch == len(losses):
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            total = torch.zeros((), device=inputs.device)
            for step, chosen in enumerate(torch.split(order, plan.batch)):
                seen = _shown(student, inputs[chosen], targets[chosen], plan, generator)
                loss = divergence(student(seen), targets[chosen])
                for group in optimizer.param_groups:
                    group["lr"] = plan.lr * (1 + math.cos(math.pi * (epoch + step / steps) / plan.epochs)) / 2
                optimizer.zero_grad()
                torch.autograd.backward(loss, inputs=list(trained))
                optimizer.step()
                total += loss.detach() * len(chosen)
            losses.append((total / len(inputs)).item())
            if not math.isfinite(losses[-1]):
                raise RuntimeError(f"the loss of an adaptation must stay finite: lower lr, got {plan.lr}")
            file.training = {
                "student": dict(student.state_dict()),
                "adam": optimizer.state_dict(),
                "generator": generator.get_state(),
                "losses": losses,
            }
            file.keep(last=epoch == plan.epochs - 1)
        if callback is not None:
            callback(epoch + 1, losses[epoch])
    optimizer.zero_grad()


def divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of KL(target || softmax): logits (B, K), probabilities (B, K) -> scalar."""
    return F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")


def perturb(
    student: nn.Module, images: Tensor, targets: Tensor, *, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Images (B, C, H, W) in the Linf ball of radius eps and in [0, 1] whose divergence from the targets is larger.

    From a random start in the ball, sign steps of 2.5 eps / steps along the gradient.

    Source: Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", section 2.1 (PGD).
    Differs: the loss is the divergence from a given answer, as in Zhang et al. (2019), "Theoretically principled
    trade-off between robustness and accuracy" (TRADES), and not the cross-entropy with a label.
    """
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    start = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    moved = low + start * (high - low)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(student(moved), targets), moved)
        moved = torch.minimum(torch.maximum(moved + 2.5 * eps / steps * gradient.sign(), low), high)
    return moved.detach()


def _shown(
    student: nn.Module, images: Tensor, targets: Tensor, plan: TrainingPlan, generator: torch.Generator
) -> Tensor:
    if plan.mirror:
        mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if plan.eps == 0:
        return images
    return perturb(student, images, targets, eps=plan.eps, steps=plan.attack_steps, generator=generator)


def _resume(
    student: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, file: ProgressFile
) -> list[float]:
    """The losses of the epochs that the file holds; student, optimizer and generator are set to its state."""
    saved = file.training
    if saved is None:
        return []
    student.load_state_dict(saved["student"])
    optimizer.load_state_dict(saved["adam"])
    generator.set_state(saved["generator"])
    return list(saved["losses"])
