"""Model classes, ready to train: bounds, likelihood estimates, losses and sampling."""

from dgm_fast.models._em import EMResult
from dgm_fast.models.beta_vae import BetaVAE
from dgm_fast.models.gaussian_mixture import GaussianMixture
from dgm_fast.models.gmvae import GMVAE
from dgm_fast.models.iwae import IWAE
from dgm_fast.models.vae import VAE

__all__ = ["GMVAE", "IWAE", "VAE", "BetaVAE", "EMResult", "GaussianMixture"]
