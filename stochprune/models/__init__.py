"""Networks for the experiments, initialised from a seed."""

from stochprune.models.catalogue import HELP, build
from stochprune.models.cnn import small_cnn
from stochprune.models.gpt import gpt
from stochprune.models.mlp import lenet_300_100, mlp
from stochprune.models.mobilenet import mobilenet_v2
from stochprune.models.pbb import pbb_cnn, pbb_fc
from stochprune.models.resnet import resnet18, resnet20
from stochprune.models.vgg import vgg6, vgg16
from stochprune.models.vit import vit

__all__ = [
    "HELP",
    "build",
    "gpt",
    "lenet_300_100",
    "mlp",
    "mobilenet_v2",
    "pbb_cnn",
    "pbb_fc",
    "resnet18",
    "resnet20",
    "small_cnn",
    "vgg6",
    "vgg16",
    "vit",
]
