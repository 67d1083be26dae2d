"""Data sets for training runs: embedded digits, ``.npz`` and text files, torchvision's MNIST."""

from dgm_fast.data.dataset import BINARIZE_MODES, DataError, Dataset, binarize
from dgm_fast.data.digits import load_digits
from dgm_fast.data.load import load_dataset
from dgm_fast.data.mnist import load_mnist
from dgm_fast.data.npz import load_npz
from dgm_fast.data.text import load_text

__all__ = [
    "BINARIZE_MODES",
    "DataError",
    "Dataset",
    "binarize",
    "load_dataset",
    "load_digits",
    "load_mnist",
    "load_npz",
    "load_text",
]
