from genflow.backbones.dit import DiT
from genflow.backbones.grouped_mlp import GroupedMLP
from genflow.backbones.grouped_transformer import GroupedTransformer
from genflow.backbones.jit import JiT
from genflow.backbones.lightning_dit import LightningDiT
from genflow.backbones.mlp import MLP
from genflow.backbones.pixel_transformer import PixelTransformer
