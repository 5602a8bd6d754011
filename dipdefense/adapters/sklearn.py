"""A classifier of tensors as a scikit-learn estimator: numpy in, numpy out (extra `sklearn`)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dipdefense.arguments import check_integer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError as error:
    raise ImportError(
        "dipdefense.adapters.sklearn needs scikit-learn: python -m pip install 'dipdefense[sklearn]'"
    ) from error

__all__ = ["NumpyClassifier"]


class NumpyClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """A trained classifier, defended or not, as a scikit-learn estimator.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), such as `defend(model)`.
        classes: labels of the K logits, in their order, such as `range(10)`.
        image_shape: (C, H, W) of the images if they are given as rows, (N, C*H*W).
        batch_size: images classified at once.

    Raises:
        TypeError: the classifier is not a module.
        ValueError: batch_size below 1.
    """

    def __init__(
        self,
        classifier: nn.Module,
        classes: ArrayLike,
        *,
        image_shape: tuple[int, int, int] | None = None,
        batch_size: int = 64,
    ):
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
        check_integer("batch_size", batch_size, 1)
        self.classifier = classifier
        self.classes = classes
        self.image_shape = image_shape
        self.batch_size = batch_size

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "NumpyClassifier":
        """Do nothing, since the classifier is trained already; scikit-learn's cross-validation calls this."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels of the logits, (K,)."""
        labels: NDArray[Any] = np.asarray(self.classes)
        return labels

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Images (N, C, H, W) in [0, 1], or rows (N, C*H*W) -> labels (N,).

        Raises:
            TypeError, ValueError: images that are not floating, outside [0, 1], or of another shape; not one class for
                each logit.
        """
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return labels

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Softmax of the logits, (N, K). Arguments and errors as in `predict`."""
        images = self._images(X)
        with torch.no_grad():
            logits = torch.cat([self.classifier(part) for part in torch.split(images, self.batch_size)])
        if self.classes_.shape != logits.shape[1:]:
            rule = f"name the {logits.shape[1]} logits in their order"
            raise ValueError(f"classes must {rule}, got shape {self.classes_.shape}")
        probabilities: NDArray[np.float64] = logits.double().softmax(1).cpu().numpy()
        return probabilities

    def _images(self, X: ArrayLike) -> Tensor:
        """The images as a tensor, in the dtype and on the device of the classifier's weights."""
        array = np.asarray(X)
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"X must be float32 or float64 in [0, 1], got {array.dtype}: divide 0..255 values by 255")
        if self.image_shape is not None and array.ndim == 2 and array.shape[1] == np.prod(self.image_shape):
            array = array.reshape(-1, *self.image_shape)
        if array.ndim != 4 or len(array) == 0:
            wanted = "(N, C, H, W), or rows with image_shape named, and not empty"
            raise ValueError(f"X must be {wanted}, got shape {array.shape}")
        weight = next((p for p in self.classifier.parameters() if p.is_floating_point()), None)
        images = torch.tensor(array)
        return images if weight is None else images.to(weight)
