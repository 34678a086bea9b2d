from genflow.evaluation.digits import DigitsEvaluator
from genflow.evaluation.generation import GenerationEvaluator
