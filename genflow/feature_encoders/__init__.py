from genflow.feature_encoders.conv_net import ConvNet
from genflow.feature_encoders.convnext_v2 import ConvNeXtV2
from genflow.feature_encoders.inception import Inception
from genflow.feature_encoders.latent_mae import LatentMAE
from genflow.feature_encoders.lpips import LPIPS
from genflow.feature_encoders.resnet50 import ResNet50
from genflow.feature_encoders.teacher_features import TeacherFeatures
from genflow.feature_encoders.timm_features import TimmFeatures
