"""One trial of a learning-rate sweep, as `wandb agent` starts it: see sweep.yaml beside this file."""

import sys

from redheart.cli import main

main(["trial", *sys.argv[1:]])
