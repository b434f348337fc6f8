"""What the server of `forked` imports; nothing of it is run, so that no thread is there when a process is forked."""

import logging
import os

from redheart.cli import set_environment

# OpenMP reads what is set here when torch loads it.
set_environment()

import torch  # noqa: E402

if not torch.cuda.is_available():
    # As the engine does: DeepSpeed asks when it is imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
for library in ("DeepSpeed", "bitsandbytes"):
    logging.getLogger(library).setLevel(logging.ERROR)

import accelerate  # noqa: E402, F401
import bitsandbytes  # noqa: E402, F401
import deepspeed  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import sklearn.linear_model  # noqa: E402, F401

import redheart.cli.prediction  # noqa: E402
import redheart.cli.study  # noqa: E402
import redheart.study.pipeline  # noqa: E402
import redheart.train.engine  # noqa: E402, F401
