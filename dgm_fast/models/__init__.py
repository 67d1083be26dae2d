"""Model classes, ready to train: bounds, likelihood estimates, losses and sampling."""

from dgm_fast.models.beta_vae import BetaVAE
from dgm_fast.models.iwae import IWAE
from dgm_fast.models.vae import VAE

__all__ = ["IWAE", "VAE", "BetaVAE"]
