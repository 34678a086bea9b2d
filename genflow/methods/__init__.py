from genflow.methods.biflow import BiFlow
from genflow.methods.maximum_likelihood import MaximumLikelihood
