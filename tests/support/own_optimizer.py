"""An optimiser of a user's own: `train.optimizer = "support.own_optimizer:MOMENTUM"`."""

from functools import partial

import torch

from aipo.training.optimizers import OptimizerEntry

MOMENTUM = OptimizerEntry(make=partial(torch.optim.SGD, momentum=0.9), state_bytes=lambda size: 1.0 * size)
