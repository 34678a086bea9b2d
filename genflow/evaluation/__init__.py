from genflow.evaluation.digits import DigitsEvaluator
