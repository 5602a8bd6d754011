"""Options that several commands share, and the functions that parse them."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from torch import nn

from dipdefense.arguments import did_you_mean
from dipdefense.defence.decisions import DECISIONS
from dipdefense.distributed import Cluster
from dipdefense.fitting.config import FitConfig

__all__ = [
    "Address",
    "Attacks",
    "AttackSteps",
    "BatchSize",
    "CheckpointFile",
    "ClassifierSpec",
    "ConfigFile",
    "Count",
    "CropTo",
    "Cpus",
    "DataPath",
    "DatasetName",
    "DecisionName",
    "Device",
    "Engine",
    "Eps",
    "GradientName",
    "Gpus",
    "Index",
    "Iterations",
    "MemoryGb",
    "Mirror",
    "Norm",
    "ON_DIGITS",
    "DeviceOrCluster",
    "ResizeTo",
    "RunFolder",
    "Seed",
    "Size",
    "Subject",
    "Tile",
    "Weights",
    "Workers",
    "attack_option",
    "cluster_of",
    "defence_option",
    "device_named",
    "fit_config",
    "given",
    "image_option",
    "index_range",
    "names",
    "noise_level",
    "number",
    "device_or_cluster",
    "rule_options",
    "smoothing",
    "run_option",
    "fields_as_options",
]

# groups of options in a command's help
image_option = partial(typer.Option, rich_help_panel="Images and classifier")
defence_option = partial(typer.Option, rich_help_panel="Defence")
attack_option = partial(typer.Option, rich_help_panel="Attack")
run_option = partial(typer.Option, rich_help_panel="Run")

DatasetName = Annotated[str, image_option("--dataset", help="digits, digits_train, mnist, cifar10 or folder.")]
DataPath = Annotated[Path | None, image_option("--data", help="File or folder of the data set.")]
Index = Annotated[str, image_option("--index", help="START:STOP, use only images of that range of the data set.")]
Size = Annotated[
    int | None,
    image_option("--size", help="Side in pixels of the square cut from each photograph of folder; 224 by default."),
]
ClassifierSpec = Annotated[
    str,
    image_option(
        "--classifier", help="digits_cnn, mnist_lenet, cifar_resnet20, torchvision:NAME, timm:NAME, FILE.py:FACTORY."
    ),
]
Weights = Annotated[Path | None, image_option("--weights", help="State dict, .pt or .safetensors.")]
ResizeTo = Annotated[int, typer.Option("--resize", help="Short side of the images, in pixels, by area averages.")]
CropTo = Annotated[int, typer.Option("--crop", help="Side of the centre that is cut out, in pixels.")]

ConfigFile = Annotated[Path | None, defence_option("--config", help="JSON file of FitConfig settings.")]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="File that saves the work every minute; a killed command, given again, goes on from there. It stays, and "
        "serves the same images and options only.",
    ),
]
Iterations = Annotated[int | None, typer.Option(help="Iterations of the fit; those of its config by default.")]
MemoryGb = Annotated[
    float | None,
    typer.Option(
        "--memory-gb",
        help="GiB that the fit may take; by default those of its settings, or else 1, on CUDA 60 % of the free memory.",
    ),
]
DecisionName = Annotated[
    str | None, defence_option("--decision", help=f"How reconstructions become logits: {', '.join(DECISIONS)}.")
]
Mirror = Annotated[
    bool, defence_option("--mirror/--no-mirror", help="Whether images keep their class when mirrored; text does not.")
]
Tile = Annotated[int | None, defence_option("--tile", help="Side of the tiles that larger images are cut into.")]
Smooth = Annotated[
    str | None,
    defence_option(
        "--smooth",
        help="SIGMA or SIGMA:VOTES: the defence is the smoothed classifier, the vote of noisy, purified copies (16 by "
        "default). It draws its seed at every query in `ladder`, and has its own fit and decision.",
    ),
]

Attacks = Annotated[
    str | None,
    attack_option(
        "--attacks",
        help="Comma-separated: fgsm, pgd, bim, momentum_pgd, pgd_flip, momentum_pgd_flip, pgd_di, by default all of "
        "these; random_noise; and, for evaluate, deepfool, carlini_wagner, lbfgs, which have no eps.",
    ),
]
Norm = Annotated[str, attack_option("--norm", help="linf or l2.")]
Eps = Annotated[str, attack_option("--eps", help="Radius, images in [0, 1]: 8/255 or 0.03.")]
AttackSteps = Annotated[int, attack_option("--steps", help="Steps of the iterative attacks.")]
GradientName = Annotated[
    str, attack_option("--gradient", help="Gradient of the fit in an attack: straight_through, unrolled or none.")
]

Count = Annotated[int, run_option("--n", help="Images: the first n of a seeded permutation.")]
Seed = Annotated[int, run_option(help="Seed of images, attacks and fits.")]
BatchSize = Annotated[int, run_option("--batch-size", help="Images attacked and purified together.")]
Device = Annotated[str, run_option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
DeviceOrCluster = Annotated[
    str,
    run_option(
        "--device",
        help="Where to compute: cpu, cuda, cuda:1, mps; or ray, the workers of a Ray cluster, such as "
        "ray:workers=4,cpus=1,gpus=0,address=HOST:PORT.",
    ),
]
RunFolder = Annotated[Path, run_option("--out", help="Folder of the run; a killed run is continued there.")]

Engine = Annotated[str, typer.Option("--engine", help="local, or ray: on the workers of a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="With --engine ray: HOST:PORT of a cluster, or auto; this machine by default."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="With --engine ray: as many as there is room for by default.")
]
Cpus = Annotated[int, typer.Option("--cpus", help="With --engine ray: CPUs of a worker, and its threads.")]
Gpus = Annotated[int, typer.Option("--gpus", help="With --engine ray: GPUs of a worker; 0 computes on the CPU.")]


@dataclass(frozen=True)
class Subject:
    """The options that name images and a classifier."""

    dataset: DatasetName = "digits"
    data: DataPath = None
    index: Index = ":"
    size: Size = None
    classifier: ClassifierSpec = "digits_cnn"
    weights: Weights = None

    def load(self, device: torch.device | str) -> tuple[Any, nn.Module]:
        """The `eval.datasets.ImageDataset`, and the classifier, on the device."""
        from eval.classifiers import load_classifier
        from eval.datasets import load_dataset

        images = load_dataset(self.dataset, self.data, size=self.size).between(*index_range(self.index))
        return images, load_classifier(self.classifier, self.weights).to(device)


ON_DIGITS = Subject()


def given(context: typer.Context, option: str) -> bool:
    """Is this option, by its parameter's name, given on the command line?"""
    return getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"


def cluster_of(
    context: typer.Context, engine: str, address: str | None, workers: int | None, cpus: int, gpus: int, *others: str
) -> Cluster | None:
    """The cluster if the engine is ray, None if it is local; `others` are further options that only ray has."""
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be one of local, ray, got {engine!r}")
    if engine == "ray":
        if given(context, "device"):
            raise ValueError("--device must be left out with --engine ray, which has --gpus instead")
        return Cluster(address=address, workers=workers, cpus=cpus, gpus=gpus)
    for name in ("address", "workers", "cpus", "gpus", *others):
        if given(context, name):
            raise ValueError(f"--{name.replace('_', '-')} must come with --engine ray")
    return None


def smoothing(text: str) -> tuple[float, int]:
    """Sigma and votes of a smoothed classifier, from SIGMA or SIGMA:VOTES."""
    sigma, colon, votes = text.partition(":")
    if colon and not votes.isdecimal():
        raise ValueError(f"smooth must be SIGMA or SIGMA:VOTES, such as 0.12:16, got {text!r}")
    return number("smooth", sigma), int(votes) if colon else 16


def device_or_cluster(text: str) -> tuple[torch.device, Cluster | None]:
    """A device of this machine, and the Ray cluster if the text is `ray:KEY=VALUE,...`."""
    kind, _, rest = text.partition(":")
    if kind != "ray":
        return device_named(text), None
    shape: dict[str, Any] = {}
    for part in names(rest):
        key, _, value = part.partition("=")
        if key not in ("address", "workers", "cpus", "gpus") or (key != "address" and not value.isdecimal()):
            raise ValueError(f"device must be such as ray:workers=4,cpus=1,gpus=0,address=HOST:PORT, got {text!r}")
        shape[key] = value if key == "address" else int(value)
    return torch.device("cpu"), Cluster(**shape)


def fit_config(file: Path | None) -> FitConfig | None:
    """The settings in a JSON file; None without a file."""
    if file is None:
        return None
    settings = _json_object(file, "FitConfig settings")
    unknown = settings.keys() - FitConfig.__dataclass_fields__.keys()
    if unknown:
        known, first = FitConfig.__dataclass_fields__, sorted(unknown)[0]
        hint = did_you_mean(first, known)
        raise ValueError(f"{file}: settings must be among {', '.join(known)}, got {first!r}{hint}")
    if not {"architecture_options", "iterations"} <= settings.keys():
        raise ValueError(
            f"{file}: must state architecture_options and iterations, so that nobody takes the published 5x128 "
            "network and 3000 iterations by accident"
        )
    return FitConfig(**settings)


def rule_options(file: Path | None, rules: list[str]) -> dict[str, dict[str, Any]]:
    """Rules with their options, from a JSON file of rule -> options; other rules have no options."""
    if file is None:
        return {rule: {} for rule in rules}
    options = _json_object(file, "rule names and objects of their options")
    if not all(isinstance(value, dict) for value in options.values()):
        raise ValueError(f"{file}: must be a JSON object of rule names and objects of their options")
    unused = options.keys() - set(rules)
    if unused:
        raise ValueError(f"{file}: rules must be among {', '.join(rules)}, got {sorted(unused)[0]!r}")
    return {rule: options.get(rule, {}) for rule in rules}


def _json_object(file: Path, content: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON, {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must be a JSON object of {content}, got {type(value).__name__}")
    return value


def number(name: str, text: str) -> float:
    """A decimal or a fraction such as 8/255."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name} must be a number such as 0.03 or 8/255, got {text!r}") from None


def noise_level(text: str) -> float:
    """A standard deviation in [0, 1] units, from 8-bit grey levels such as 25, or a fraction of the range: 25/255."""
    value = number("sigma", text) / (1 if "/" in text else 255)
    if not 0 < value <= 1 or ("/" not in text and value < 1 / 255):
        raise ValueError(f"sigma must be 1 to 255 grey levels such as 25, or a fraction such as 25/255, got {text!r}")
    return value


def names(text: str) -> list[str]:
    """Comma-separated names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def index_range(text: str) -> tuple[int | None, int | None]:
    """START:STOP, either of them optional."""
    start, colon, stop = text.partition(":")
    try:
        if not colon or "-" in text:
            raise ValueError
        return (int(start) if start else None), (int(stop) if stop else None)
    except ValueError:
        raise ValueError(f"index must be START:STOP, such as 1000: or :1000, got {text!r}") from None


def device_named(name: str) -> torch.device:
    """A device that this machine has."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device must be one that this machine has, such as cpu, got {name!r}: {first}") from None
    return device


def fields_as_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: each field of a parameter that is a dataclass becomes an option of its own."""
    given: list[tuple[str, Any, Any]] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = get_type_hints(command, include_extras=True)[name]
        if is_dataclass(kind):
            groups[name], kinds = kind, get_type_hints(kind, include_extras=True)
            given += [(field.name, kinds[field.name], getattr(parameter.default, field.name)) for field in fields(kind)]
        else:
            given.append((name, kind, parameter.default))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, default=value, annotation=kind) for name, kind, value in given]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {name: kind for name, kind, _ in given}
    return run
