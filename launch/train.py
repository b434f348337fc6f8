"""Train: `python`, `accelerate launch --config_file launch/accelerate.yaml` or `deepspeed --num_gpus 1` this file."""

import sys

from redheart.cli import main

main(["train", *sys.argv[1:]])
