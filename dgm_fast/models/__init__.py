"""Model classes, ready to train: likelihoods and bounds, losses and sampling."""

from dgm_fast.models._em import EMResult
from dgm_fast.models.beta_vae import BetaVAE
from dgm_fast.models.dequantized import Dequantized
from dgm_fast.models.dequantizer import VariationalDequantizer
from dgm_fast.models.flow import Flow
from dgm_fast.models.flowpp import FlowPP
from dgm_fast.models.fvsbn import FVSBN
from dgm_fast.models.gan import FGAN, GAN, KLGAN, WGAN, WGANGP, ConditionalGAN, NonSaturatingGAN
from dgm_fast.models.gated_pixel_cnn import GatedPixelCNN
from dgm_fast.models.gaussian_mixture import GaussianMixture
from dgm_fast.models.glow import Glow
from dgm_fast.models.gmvae import GMVAE
from dgm_fast.models.gpt import GPT
from dgm_fast.models.iwae import IWAE
from dgm_fast.models.made import MADE
from dgm_fast.models.maf import IAF, MAF
from dgm_fast.models.nade import NADE, CategoricalNADE
from dgm_fast.models.nsf import NSF
from dgm_fast.models.pixel_cnn import PixelCNN
from dgm_fast.models.pixel_cnn_pp import PixelCNNPP
from dgm_fast.models.pixel_rnn import PixelRNN
from dgm_fast.models.realnvp import RealNVP
from dgm_fast.models.recurrent import LSTMModel, RNNModel
from dgm_fast.models.rnade import RNADE
from dgm_fast.models.vae import VAE

__all__ = [
    "FGAN",
    "FVSBN",
    "GAN",
    "GMVAE",
    "GPT",
    "IAF",
    "IWAE",
    "KLGAN",
    "MADE",
    "MAF",
    "NADE",
    "NSF",
    "RNADE",
    "VAE",
    "WGAN",
    "WGANGP",
    "BetaVAE",
    "CategoricalNADE",
    "ConditionalGAN",
    "Dequantized",
    "EMResult",
    "Flow",
    "FlowPP",
    "GatedPixelCNN",
    "GaussianMixture",
    "Glow",
    "LSTMModel",
    "NonSaturatingGAN",
    "PixelCNN",
    "PixelCNNPP",
    "PixelRNN",
    "RNNModel",
    "RealNVP",
    "VariationalDequantizer",
]
