from genflow.methods.biflow import BiFlow
from genflow.methods.classification import Classification
from genflow.methods.drifting import Drifting
from genflow.methods.flow_matching import FlowMatching
from genflow.methods.masked_autoencoding import MaskedAutoencoding
from genflow.methods.maximum_likelihood import MaximumLikelihood
from genflow.methods.mean_flow import MeanFlow
from genflow.methods.post_training import PostTraining
