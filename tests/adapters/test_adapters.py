"""Foreign libraries run for real on the defence; small images, short fits."""

import copy
import importlib
import io
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dipdefense
from attacks.adaptive.averaged_model import Averaged
from attacks.square import Asked
from dipdefense import FitConfig, Purifier, check_classifier, defence_for, defend
from dipdefense.adapters.art import DIPPurification
from dipdefense.adapters.huggingface import Logits
from dipdefense.adapters.sklearn import NumpyClassifier
from dipdefense.adapters.torchvision import Purify
from dipdefense.defence.wrapper import Wrapper
from eval.diagnose.attack_trace import _Watched
from eval.diagnose.run import _Counted

TINY = FitConfig(architecture_options={"channels": [4, 4], "skip_channels": 0}, input_channels=4, iterations=2)
EPS = 0.1
K = 4


class Net(nn.Module):
    """A small classifier with a buffer, for 8x8 colour images; its logits are wide enough for attacks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8 * 36, K)  # a name that is also the wrapper's

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.classifier(self.features(x).flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def defended(net: Net) -> dipdefense.DefendedClassifier:
    return defend(net, TINY)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels(defended: dipdefense.DefendedClassifier, images: Tensor) -> Tensor:
    """What the defended classifier says of them, so that an attack has something to change."""
    with torch.no_grad():
        return defended(images).argmax(1)


def check_adversarial(defended: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor) -> None:
    """Within the ball and [0, 1], and the attack, which sees through the defence, got at least one image."""
    assert adversarial.shape == images.shape
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    with torch.no_grad():
        assert (defended(adversarial.clamp(0, 1)).argmax(1) != labels).any()


def test_torchattacks(net, images):
    import torchattacks

    defended = defend(net, replace(TINY, iterations=10))  # after 2 its answer hardly depends on the image
    labels = defended(images).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adversarial = torchattacks.PGD(defended, eps=EPS, alpha=EPS / 2, steps=4)(images, labels)
    check_adversarial(defended, images, labels, adversarial)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SciPy, at foolbox's import
def test_foolbox(defended, images, labels):
    import foolbox

    model = foolbox.PyTorchModel(defended.eval(), bounds=(0, 1))
    torch.testing.assert_close(model(images), defended(images))
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.5, steps=4, random_start=False)
    _, adversarial, success = attack(model, images, labels, epsilons=EPS)
    check_adversarial(defended, images, labels, adversarial)
    assert success.any()


@pytest.mark.parametrize("attack", ["apgd-ce", "square"])
def test_pyautoattack(defended, images, labels, attack):
    from pyautoattack import AutoAttack

    auto = AutoAttack(defended, norm="Linf", eps=EPS, version="custom", attacks=[attack], seed=0)
    auto.apgd.n_iter, auto.apgd.n_restarts, auto.square.n_queries = 4, 1, 10
    with torch.random.fork_rng():
        adversarial = auto.run_standard_evaluation(images, labels, batch_size=2)[0]
    check_adversarial(defended, images, labels, adversarial)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SciPy, at foolbox's import
def test_secml_torch(net, defended, images, labels):
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    purified = BasePyTorchClassifier(net, preprocessing=Purifier(TINY))
    whole = BasePyTorchClassifier(defended)
    torch.testing.assert_close(purified(images), whole(images))
    attack = PGD("linf", EPS, num_steps=4, step_size=EPS / 2, backend=Backends.NATIVE)
    for model in (purified, whole):
        ((adversarial, _),) = attack(model, DataLoader(TensorDataset(images, labels), batch_size=3))
        check_adversarial(defended, images, labels, adversarial)


def art_classifier(model: nn.Module, *preprocessors: DIPPurification):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 8, 8),
        nb_classes=K,
        clip_values=(0, 1),
        preprocessing_defences=list(preprocessors) or None,
        device_type="cpu",
    )


def test_art_predicts_and_differentiates(net, defended, images, labels):
    classifier = art_classifier(net, DIPPurification(Purifier(TINY), device_type="cpu"))
    x, y = images.numpy(), np.eye(K, dtype=np.float32)[labels.numpy()]
    np.testing.assert_allclose(classifier.predict(x), defended(images).detach(), rtol=1e-4, atol=1e-5)
    wanted = images.clone().requires_grad_()
    nn.functional.cross_entropy(defended(wanted), labels).backward()
    gradient = classifier.loss_gradient(x, y)
    np.testing.assert_allclose(gradient, wanted.grad, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 0
    assert classifier.class_gradient(x, label=1).shape == (3, 1, 3, 8, 8)
    np.testing.assert_allclose(art_classifier(defended).predict(x), classifier.predict(x), rtol=1e-4, atol=1e-5)


def test_art_pgd(net, defended, images, labels):
    from art.attacks.evasion import ProjectedGradientDescent

    classifier = art_classifier(net, DIPPurification(Purifier(TINY), device_type="cpu"))
    attack = ProjectedGradientDescent(classifier, eps=EPS, eps_step=EPS / 2, max_iter=4, verbose=False)
    adversarial = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    check_adversarial(defended, images, labels, adversarial)


def test_art_autoattack(net, defended, images, labels):
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, SquareAttack

    classifier = art_classifier(net, DIPPurification(Purifier(TINY), device_type="cpu"))
    attacks = [
        AutoProjectedGradientDescent(
            classifier, eps=EPS, eps_step=EPS / 2, max_iter=3, nb_random_init=1, verbose=False
        ),
        SquareAttack(classifier, eps=EPS, max_iter=3, nb_restarts=1, verbose=False),
    ]
    attack = AutoAttack(classifier, eps=EPS, eps_step=EPS / 2, attacks=attacks)
    adversarial = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    check_adversarial(defended, images, labels, adversarial)


def test_art_hands_over_everything_and_it_is_cut(images, monkeypatch):
    sizes = []
    purifier = Purifier(TINY)
    forward = Purifier.forward
    monkeypatch.setattr(Purifier, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x))
    purified, labels = DIPPurification(purifier, batch_size=2, device_type="cpu")(images.numpy(), np.arange(3))
    assert sizes == [2, 1]
    assert labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(purified, purifier(images), rtol=1e-4, atol=1e-5)


def test_art_in_other_units(images):
    purifier = Purifier(TINY)
    bytes_, _ = DIPPurification(purifier, clip_values=(0.0, 255.0), device_type="cpu")(images.numpy() * 255)
    np.testing.assert_allclose(bytes_ / 255, purifier(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"divide 0\.\.255 values by 255"):
        DIPPurification(purifier, device_type="cpu")(images.numpy() * 255)


def test_art_passes_the_gradient_that_the_purifier_states(images):
    blind = DIPPurification(Purifier(TINY, gradient="none"), device_type="cpu")
    x = images.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="this purification has no gradient"):
        blind.estimate_forward(x).sum().backward()
    through = DIPPurification(Purifier(TINY), device_type="cpu")
    weight = np.random.default_rng(0).random(images.shape, dtype=np.float32)
    np.testing.assert_array_equal(through.estimate_gradient(images.numpy(), weight), weight)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"purifier": nn.Identity()}, TypeError, "purifier must be a Purifier or None, got Identity"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"clip_values": (1, 0)}, ValueError, r"clip_values must rise, as in \(0.0, 255.0\), got \(1, 0\)"),
        ({"device_type": "mps"}, ValueError, "device_type must be cpu or gpu, got 'mps'"),
    ],
)
def test_art_refuses_bad_arguments(keywords, error, message):
    with pytest.raises(error, match=message):
        DIPPurification(**keywords)


def test_torchvision_pipelines(images):
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    array = (images[0] * 255).byte().permute(1, 2, 0).numpy()
    start = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    alone = v2.Compose([*start, Purifier(TINY), v2.Normalize([0.5] * 3, [0.5] * 3)])(array)
    image, label = v2.Compose([*start, Purify(Purifier(TINY)), v2.Normalize([0.5] * 3, [0.5] * 3)])(array, 7)
    torch.testing.assert_close(image.as_subclass(Tensor), alone.as_subclass(Tensor))
    assert alone.shape == (3, 8, 8)
    assert (type(image), label) == (tv_tensors.Image, 7)
    mask = tv_tensors.Mask(torch.ones(8, 8))
    assert torch.equal(Purify(Purifier(TINY))(tv_tensors.Image(images), mask)[1], mask)
    assert Purify().purifier.config is None


def test_timm(images):
    import timm

    model = timm.create_model("test_vit", pretrained=False, num_classes=K, img_size=32).eval()
    large = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = defend(model, TINY, check=(3, 32, 32))(large)
    assert logits.shape == (2, K)
    torch.testing.assert_close(logits, model(Purifier(TINY)(large)))


def vit(size: int = 8) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=size,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=K,
    )
    return ViTForImageClassification(config).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own
def test_hugging_face(images):
    from transformers import ViTImageProcessor

    model = vit()
    (fault,) = check_classifier(model, (3, 8, 8)).faults
    assert "wrap it, dipdefense.adapters.huggingface.Logits(classifier)" in fault.message
    with pytest.raises(ValueError, match="classifier must return logits"):
        defend(model, TINY)(images)
    processor = ViTImageProcessor(do_resize=False, do_rescale=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    bare, normalised = Logits(model), Logits(model, processor)
    assert check_classifier(normalised, (3, 8, 8)).faults == ()
    torch.testing.assert_close(bare(images), model(pixel_values=images).logits)
    inputs = processor(images=list(images), return_tensors="pt")
    torch.testing.assert_close(normalised(images), model(**inputs).logits)
    assert defend(normalised, TINY)(images).shape == (3, K)
    assert list(defend(normalised, TINY).state_dict()) == list(model.state_dict())
    plain = ViTImageProcessor(do_normalize=False)
    torch.testing.assert_close(Logits(model, plain)(images), bare(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own
def test_a_hugging_face_transformer_of_one_size_gets_a_view_of_that_size():
    with pytest.warns(UserWarning, match=r"which the view 'small_mirror' shows it, got ValueError: Input image size"):
        assert defence_for((3, 48, 48), Logits(vit(48))).decision.views == ("mirror",)


def test_logits_refuses(net, images):
    with pytest.raises(TypeError, match=r"classifier must return an output with .logits, got Tensor"):
        Logits(net)(images)
    with pytest.raises(TypeError, match="processor must have image_mean and image_std, got Identity"):
        Logits(net, nn.Identity())
    with pytest.raises(TypeError, match=r"classifier must be a torch.nn.Module, got builtin"):
        Logits(torch.sin)


def test_scikit_learn(net, defended, images, labels):
    from sklearn.base import clone
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.model_selection import cross_val_score

    names = np.array(["cat", "dog", "frog", "ship"])
    estimator = NumpyClassifier(defended, names, image_shape=(3, 8, 8), batch_size=2)
    X, y = images.numpy().astype(np.float64), names[labels]
    probabilities = estimator.predict_proba(X)
    np.testing.assert_allclose(probabilities, defended(images).softmax(1).detach(), atol=1e-5)
    assert accuracy_score(y, estimator.predict(X)) == 1
    assert log_loss(y, probabilities, labels=names) == pytest.approx(-np.log(probabilities.max(1)).mean())
    rows = np.concatenate([X, X]).reshape(6, -1)
    again = clone(estimator)
    assert again.fit(rows).predict(rows).tolist() == [*y, *y]
    scores = cross_val_score(
        estimator, rows, np.concatenate([y, y]), cv=[([0, 1, 2], [3, 4, 5]), ([3, 4, 5], [0, 1, 2])]
    )
    assert scores.tolist() == [1, 1]
    assert NumpyClassifier(net, range(K)).predict(X).dtype.kind == "i"
    assert NumpyClassifier(nn.Flatten(), range(192)).predict(X.astype(np.float32)).shape == (3,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: NumpyClassifier(torch.sin, range(4)), TypeError, r"classifier must be a torch.nn.Module"),
        (lambda x: NumpyClassifier(Net(), range(4), batch_size=0), ValueError, "batch_size must be .* got 0"),
        (lambda x: NumpyClassifier(Net(), range(5)).predict(x), ValueError, "classes must name the 4 logits"),
        (lambda x: NumpyClassifier(Net(), range(4)).predict(x[0]), ValueError, r"X must be .* got shape \(3, 8, 8\)"),
        (lambda x: NumpyClassifier(Net(), range(4)).predict(x[:0]), ValueError, "not empty, got shape"),
        (lambda x: NumpyClassifier(Net(), range(4)).predict((x * 9).astype(int)), TypeError, "divide 0..255 values"),
        (lambda x: NumpyClassifier(defend(Net(), TINY), range(4)).predict(x * 9), ValueError, r"within \[0, 1\]"),
    ],
)
def test_scikit_learn_refuses(call, error, message, images):
    with pytest.raises(error, match=message):
        call(images.numpy())


WRAPPERS = {
    "Wrapper": Wrapper,
    "DefendedClassifier": defend,
    "OnDevices": lambda net: dipdefense.OnDevices(defend(net), ["cpu", "cpu"]),
    "Logits": Logits,
    "defended Logits": lambda net: defend(Logits(net)),
    "a variant": lambda net: defend(net).variant(seed=1, gradient="none"),
    "Averaged": lambda net: Averaged(defend(net), samples=2),
    "Asked": lambda net: Asked(net, torch.float32),
    "Purify": lambda net: Purify(defend(net).purifier),
    "_Counted": _Counted,
    "_Watched": lambda net: _Watched(net, torch.zeros(1)),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_mode_of_a_wrapper_is_that_of_what_it_wraps(wrap, mode):
    net = Net().train(mode)
    wrapped = wrap(net)
    assert {module.training for module in wrapped.modules()} == {mode}
    assert {module.training for module in net.modules()} == {mode}
    inside = {*net.modules()} & {*wrapped.modules()}
    assert inside or isinstance(wrapped, Purify)
    wrapped.train(not mode)
    assert {module.training for module in wrapped.modules()} == {not mode}
    assert all(module.training is not mode for module in inside)


def test_an_attack_leaves_an_inner_classifier_in_eval_mode(net, images, labels):
    import torchattacks

    around = nn.Sequential(nn.Identity(), net)
    assert around.training
    torchattacks.FGSM(defend(around, TINY), eps=EPS)(images, labels)
    assert not any(module.training for module in net.modules())


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("wrap", [defend, lambda net, config: dipdefense.OnDevices(defend(net, config), ["cpu"])])
def test_functional_call_takes_the_names_of_parameters_and_buffers(wrap, net, images):
    defended, other = wrap(net, TINY), wrap(Net(), TINY).eval()
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    before = copy.deepcopy(net.state_dict())
    result = torch.func.functional_call(defended, named_tensors(other), (images,), strict=True)
    assert torch.equal(result, other(images))
    assert not torch.equal(result, defended(images))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_functional_call_takes_a_state_dict_under_the_name_of_the_classifier(net, defended, images):
    state = {f"classifier.{key}": value * 0.5 for key, value in defended.state_dict().items()}
    result = torch.func.functional_call(defended, state, (images,), strict=True)
    net.load_state_dict({key.removeprefix("classifier."): value for key, value in state.items()})
    assert torch.equal(result, defended(images))


@pytest.mark.parametrize(
    "build", [Net, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, K)), lambda: nn.Linear(8, K)]
)
def test_functional_call_with_keys_of_the_state_dict_says_which_names_it_takes(build, images):
    defended = defend(build().eval(), TINY)
    before = list(vars(defended))
    with pytest.raises(AttributeError) as caught:
        torch.func.functional_call(defended, defended.state_dict(), (images,))
    said = str(caught.value.__cause__ or caught.value)
    assert said.endswith(
        "what the classifier holds is under .classifier, and functional_call takes the names of named_parameters() and "
        "named_buffers()"
    )
    assert list(vars(defended)) == before


def test_an_unknown_attribute_raises_and_says_where_to_look(defended):
    assert not hasattr(defended, "features")
    with pytest.raises(AttributeError, match="object has no attribute 'features': what the classifier holds is under"):
        _ = defended.features
    defended.threshold = torch.tensor(0.5)  # the classifier has none
    assert defended.threshold == 0.5


def test_a_stack_of_states(net, images):
    models = [defend(net, TINY), defend(copy.deepcopy(net), TINY)]
    for parameter in models[1].parameters():
        parameter.data.mul_(0.5)
    stacked = torch.func.stack_module_state(models)
    for i, model in enumerate(models):
        named = {name: tensor[i] for part in stacked for name, tensor in part.items()}
        assert torch.equal(torch.func.functional_call(models[0], named, (images,), strict=True), model(images))


def test_wrapping_leaves_the_state_dict_as_it_was(net, defended):
    assert list(defended.state_dict()) == list(net.state_dict())
    assert "classifier.weight" in net.state_dict()  # the hard case: its own key begins like the wrapper's child
    assert defended.state_dict()._metadata == net.state_dict()._metadata
    changed = {key: value + 1 for key, value in net.state_dict().items()}
    assert str(defended.load_state_dict(changed)) == "<All keys matched successfully>"
    for key, value in net.state_dict().items():
        assert torch.equal(value, changed[key])
    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict for Net"):
        defended.load_state_dict({})


def test_state_dict_inside_another_model(net):
    inner = nn.Sequential(nn.Identity(), defend(Wrapper(net), TINY), nn.Linear(K, K))
    bare = nn.Sequential(nn.Identity(), copy.deepcopy(net), nn.Linear(K, K))
    assert list(inner.state_dict()) == list(bare.state_dict())
    assert str(inner.load_state_dict(bare.state_dict())) == "<All keys matched successfully>"
    bare.load_state_dict(inner.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        inner.load_state_dict({})


def test_saved_and_copied(defended, images):
    expected = defended(images)
    buffer = io.BytesIO()
    torch.save(defended, buffer)
    buffer.seek(0)
    copies = (torch.load(buffer, weights_only=False), copy.deepcopy(defended), pickle.loads(pickle.dumps(defended)))
    for again in copies:
        assert torch.equal(again(images), expected)
        assert list(named_tensors(again)) == list(named_tensors(defended))
        assert {module.training for module in again.modules()} == {False}
        assert str(again.load_state_dict(defended.state_dict(), strict=True)) == "<All keys matched successfully>"
    fresh = defend(Net(), TINY).eval()
    buffer = io.BytesIO()
    torch.save(defended.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(images), expected)


@pytest.mark.parametrize(("module", "library", "extra"), [("art", "art", "art"), ("sklearn", "sklearn", "sklearn")])
def test_a_missing_extra_is_named(module, library, extra, monkeypatch):
    for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"dipdefense.adapters.{module}")
    with pytest.raises(ImportError, match=rf"python -m pip install 'dipdefense\[{extra}\]'"):
        importlib.import_module(f"dipdefense.adapters.{module}")
