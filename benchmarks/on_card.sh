#!/bin/bash
# What a card has to say, in parts of under nine minutes: bash benchmarks/on_card.sh PART [DATA]
#
#   1  steps and memory of `full`, 64 x 128, held to 8 GiB: the planner's point, today's default before it, 64 at once
#   2  the same without a cap, beside `gpu_adam8bit`
#   3  DeepSpeed's own ZeRO-2 offload with DeepSpeedCPUAdam in the raw loop, and ours, in one call
#   4  100 real steps of `full` at the planner's point, twice: the same bits, the loss curve, memory
#   5  100 steps of today's step and of the pipeline on streams, each twice: seconds, memory, bits, loss, the five lanes
#   6  the same of the passes as graphs, without the pipeline and with it
#   7  today's step with checkpointing, the pipeline and the graphs with it, and `gpu_adam8bit` without
#   8  the plain-loop optimizer with and without overlap
#   9  every phase after training of `full`, 5 snapshots, 886 records to choose and confirm on: aimed at under 90 s
#
# Parts 5 to 9 have not run on a card. Every part writes its results as they come: benchmarks/results/on_card_*.json,
# with the card's name in them.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${2:-}
RECORDS=${DATA:+--data "$DATA"}
FULL="--preset full --effective-batch 64 --seq-len-tokens 128 $RECORDS --write"
OFFLOAD="--strategies zero2_offload_adam8bit"
STEPS="benchmarks/card_steps.py --preset full --effective-batch 64 --micro-batch 64 --steps 100 --rounds 2 --write"

case "${1:-}" in
1)
  timeout 180 $PYTHON benchmarks/vram.py $FULL $OFFLOAD --cap 8GiB --name on_card_planned
  timeout 180 $PYTHON benchmarks/vram.py $FULL $OFFLOAD --cap 8GiB --micro-batches 16 32 --name on_card_accumulated
  timeout 170 $PYTHON benchmarks/vram.py $FULL $OFFLOAD --cap 8GiB --micro-batches 64 --checkpointing --name on_card_64
  ;;
2)
  timeout 260 $PYTHON benchmarks/vram.py $FULL $OFFLOAD --micro-batches 64 --name on_card_uncapped
  timeout 260 $PYTHON benchmarks/vram.py $FULL --strategies gpu_adam8bit --micro-batches 64 --name on_card_gpu
  ;;
3)
  : "${DATA:?part 3 needs a file of records}"
  timeout 530 $PYTHON benchmarks/train_step.py --data "$DATA" --preset full --effective-batch 64 --micro-batch 64 \
    --steps 10 --rounds 1 --strategies zero2_offload_adam8bit zero2_offload_adam32 --write --name on_card_train_step
  ;;
4)
  for number in 1 2; do
    timeout 260 $PYTHON -m redheart train --data "${DATA:-generated}" --preset full --epochs 1 \
      --train.learning-rate 1e-4 --out "runs/on_card_$number"
  done
  cmp <(cd runs/on_card_1/train/snapshots && find . -type f -name '*.safetensors' -exec sha256sum {} + | sort) \
      <(cd runs/on_card_2/train/snapshots && find . -type f -name '*.safetensors' -exec sha256sum {} + | sort)
  cp runs/on_card_1/train/events.jsonl benchmarks/results/on_card_events.jsonl
  ;;
5)
  : "${DATA:?part 5 needs a file of records}"
  timeout 530 $PYTHON $STEPS --data "$DATA" --variants today pipeline --name on_card_pipeline
  ;;
6)
  : "${DATA:?part 6 needs a file of records}"
  timeout 530 $PYTHON $STEPS --data "$DATA" --variants graphs both --name on_card_graphs
  ;;
7)
  : "${DATA:?part 7 needs a file of records}"
  timeout 400 $PYTHON $STEPS --data "$DATA" --variants today pipeline both --checkpointing --rounds 1 --name on_card_recomputed
  timeout 130 $PYTHON $STEPS --data "$DATA" --variants gpu_adam8bit --rounds 1 --name on_card_gpu_adam8bit
  ;;
8)
  timeout 500 $PYTHON benchmarks/plain_loop.py --preset full --write --name on_card_plain_loop
  ;;
9)
  # What is made up before anything is timed, features and 7 GB of snapshots, is within the nine minutes too.
  timeout 530 $PYTHON benchmarks/after_training.py --preset full --snapshots 5 $RECORDS --device cuda --write \
    --name on_card_after_training
  ;;
*)
  sed -n '2,15p' "$0"
  exit 2
  ;;
esac
