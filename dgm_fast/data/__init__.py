"""Data sets for training runs: digits, densities in the plane, arrays, text, images, MNIST."""

from dgm_fast.data.dataset import BINARIZE_MODES, DataError, Dataset, binarize
from dgm_fast.data.digits import load_digits
from dgm_fast.data.image_folder import load_image_folder
from dgm_fast.data.known_entropy import SineChain
from dgm_fast.data.load import load_dataset
from dgm_fast.data.mnist import load_mnist
from dgm_fast.data.npz import load_npz
from dgm_fast.data.text import load_text
from dgm_fast.data.toy import load_toy

__all__ = [
    "BINARIZE_MODES",
    "DataError",
    "Dataset",
    "SineChain",
    "binarize",
    "load_dataset",
    "load_digits",
    "load_image_folder",
    "load_mnist",
    "load_npz",
    "load_text",
    "load_toy",
]
