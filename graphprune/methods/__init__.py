"""Methods: pruning with training in between, each built of passes, plans and a training loop.

    result = graphprune.methods.adaptive(model, example_inputs, train=train, evaluate=evaluate, data=batches, epochs=60)

``train(model, epochs, state) -> state`` and ``evaluate(model) -> float`` are the user's own, or those of
:class:`graphprune.training.Trainer`. Every method is an entry of :data:`METHODS`.
"""

from graphprune.methods.adaptive import adaptive
from graphprune.methods.class_aware import class_aware
from graphprune.methods.growing import growing
from graphprune.methods.iterative import iterative
from graphprune.methods.laasp import laasp
from graphprune.methods.method import METHODS, Method, MethodResult, Options
from graphprune.methods.sp_lamp import sp_lamp

__all__ = ["METHODS", "Method", "MethodResult", "Options", "adaptive", "class_aware", "growing", "iterative", "laasp", "sp_lamp"]
