from genflow.codecs.identity import Identity
from genflow.codecs.sd_vae import SDVAE
