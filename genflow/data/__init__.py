from genflow.data.digits import Digits
from genflow.data.latent_cache import LatentCache
from genflow.data.toy2d import Toy2D
