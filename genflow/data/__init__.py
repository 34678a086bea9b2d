from genflow.data.digits import Digits
from genflow.data.latent_cache import LatentCache
