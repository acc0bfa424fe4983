"""The ops of the suite. To add one, write a class with the attributes and methods of :class:`..case.Op`.

:class:`.layer.LayerOp` has what the ops of one layer share.
"""

from functools import partial

from stochprune import functional, models

from ..case import Op
from .attention import Attention
from .certificate import Certificate
from .conv2d import Conv2d
from .draws import Draws
from .embedding import Embedding
from .gaussian_linear import GaussianLinear
from .kl import BernoulliKL, GaussianKL
from .linear import Linear
from .linear_nm import LinearNM
from .linear_scaled import LinearScaled
from .mask import MaskedWeight
from .network import Network, images
from .training_step import TrainingStep

OPS: dict[str, Op] = {
    "linear": Linear(),
    "linear_nm": LinearNM(),
    "gaussian_linear": GaussianLinear(),
    "linear_scaled": LinearScaled(),
    "conv2d": Conv2d(),
    "embedding": Embedding(),
    "attention": Attention(),
    "linear_draws": Draws(Linear(), functional.masked_linear),
    "conv2d_draws": Draws(Conv2d(), partial(functional.masked_conv2d, padding=1)),
    "mask": MaskedWeight(),
    "bernoulli_kl": BernoulliKL(),
    "gaussian_kl": GaussianKL(),
    **{name: Network(partial(getattr(models, name), seed=0), images) for name in ("resnet20", "resnet18", "vgg16")},
    "vit": Network(partial(models.vit, seed=0), images),
    **{name: Certificate(partial(getattr(models, name), seed=0)) for name in ("lenet_300_100", "pbb_fc", "pbb_cnn")},
    **{f"mlp_{width**2 >> 18}m": TrainingStep(width) for width in (512, 1024, 2048)},
}
