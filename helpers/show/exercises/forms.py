"""Forms of answers that exercises of several notebooks ask for."""

from PIL import Image
from torch import nn

from helpers.graphs.presets import Weights
from helpers.shapes.world import Scene
from helpers.show.answers import instance

WEIGHTS = instance(Weights, "weights, Weights(...)")
SCENE = instance(Scene, "a scene, world.Scene(...)")
MODULE = instance(nn.Module, "a module of PyTorch")
PICTURE = instance(Image.Image, "a picture, Image.new(...)")

OTHER_SIZES = {  # of `trials.size_between`
    "too small": "The scales and zero points have to become more: make the groups smaller.",
    "too large": "That takes 8 bits a weight or more: use a mode of 4 bits, larger groups or a "
    "larger ratio.",
}
