"""A generator, data and an extractor whose figures are known, for tests of evaluators."""

import torch
from torch import nn

from genflow.codecs.identity import Identity
from genflow.data.base import Dataset
from genflow.evaluation.generation import GenerationEvaluator
from genflow.feature_encoders.base import FeatureEncoder
from genflow.generators.base import Generator

SIDE, CLASSES = 3, 4


class Pixels(FeatureEncoder):
    """The pixels themselves, and logits that know the class of a shade."""

    feature_names = ("pooled",)
    num_classes = CLASSES

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return {"pooled": self.scale * images.flatten(1).unsqueeze(1)}

    def classify(self, images):
        shade = (images.mean(dim=(1, 2, 3)).unsqueeze(1) * 10 - torch.arange(CLASSES)) ** 2
        return -shade


class Network(nn.Module):
    image_shape = (1, SIDE, SIDE)
    num_classes = CLASSES


class Shades(Generator):
    """Noise around the shade of a class."""

    def __init__(self):
        super().__init__(Network(), Identity(SIDE, 1))

    def forward(self, noise, condition):
        return 0.1 * condition.labels.view(-1, 1, 1, 1) + 0.05 * noise


class Made(Dataset):
    """Noise around shades, a little off."""

    num_classes = CLASSES
    image_shape = (1, SIDE, SIDE)

    def __init__(self, count=60, seed=0, shape=(1, SIDE, SIDE), classes=CLASSES):
        self.image_shape, self.num_classes = shape, classes
        self.labels = torch.arange(count) % max(classes, 1)
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
        self.images = 0.1 * self.labels.view(-1, 1, 1, 1) + 0.06 * noise

    def __len__(self):
        return len(self.images)

    def batch(self, indices, draws):
        return {"images": self.images[indices], "labels": self.labels[indices]}


def evaluator(**options):
    settings = {"extractors": {"pixels": Pixels()}, "reference": Made(), "num_samples": 90, "batch_size": 16}
    return GenerationEvaluator(**{**settings, **options})
