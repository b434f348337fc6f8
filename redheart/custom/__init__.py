"""Your own model under the same engine: planned, trained, snapshotted, resumed, and its best window per module chosen.

    learner = TensorLearner(model, record_losses, train=..., validation=...)
    plan(learner, config, vram_bytes=8 << 30)
    fit(learner, config, folder, epochs=10, learning_rate=1e-4)
    choose(learner, folder)

`docs/own-model.md` has the whole of it.
"""

from redheart.custom.choosing import Chosen, choose
from redheart.custom.learner import TensorLearner
from redheart.custom.losses import token_losses
from redheart.custom.planning import plan
from redheart.custom.training import fit

__all__ = ["Chosen", "TensorLearner", "choose", "fit", "plan", "token_losses"]
