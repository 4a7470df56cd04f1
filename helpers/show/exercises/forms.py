"""Forms of answers that exercises of several notebooks ask for."""

from torch import nn

from helpers.graphs.presets import Weights
from helpers.shapes.world import Scene
from helpers.show.answers import instance

WEIGHTS = instance(Weights, "weights, Weights(...)")
SCENE = instance(Scene, "a scene, world.Scene(...)")
MODULE = instance(nn.Module, "a module of PyTorch")
