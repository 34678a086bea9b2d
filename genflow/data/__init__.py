from genflow.data.digits import Digits
from genflow.data.image_folder import ImageFolder
from genflow.data.latent_cache import LatentCache
from genflow.data.packed_images import PackedImages
from genflow.data.toy2d import Toy2D
