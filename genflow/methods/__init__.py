from genflow.methods.biflow import BiFlow
from genflow.methods.classification import Classification
from genflow.methods.maximum_likelihood import MaximumLikelihood
