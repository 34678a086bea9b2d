from genflow.feature_encoders.conv_net import ConvNet
from genflow.feature_encoders.convnext_v2 import ConvNeXtV2
from genflow.feature_encoders.lpips import LPIPS
