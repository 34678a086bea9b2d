"""A generator and a codec of which tests know what comes out."""

import torch
from torch import nn

from genflow.codecs.base import Codec
from genflow.codecs.identity import Identity
from genflow.generators.base import Generator
from genflow.inference.sampling import sample_images


class Network(nn.Module):
    """What a generator asks of its network."""

    image_shape = (1, 2, 2)

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.zeros(()))


class Tinted(Generator):
    """Noise, brighter with the class and the scale."""

    def __init__(self, num_classes=3, broken=False):
        super().__init__(Network(num_classes), Identity(2, 1), default_guidance=0.5)
        self.broken = broken

    def forward(self, noise, condition):
        shade = condition.labels.float() / 10 + condition.guidance
        return noise * (float("nan") if self.broken else 0.01) + shade.view(-1, 1, 1, 1)


class Recording(Codec):
    """Images are half the samples; remembers how many were decoded at once, and in which dtype."""

    latent_shape = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.seen = []

    def decode(self, samples):
        self.seen.append((len(samples), samples.dtype))
        return samples * self.factor


def whole(*arguments, **options):
    return torch.cat(list(sample_images(*arguments, **options)))
