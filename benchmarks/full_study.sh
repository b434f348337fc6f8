#!/usr/bin/env bash
# The design's whole study, held to 8 GiB of a card, in calls of less than nine minutes:
#
#   benchmarks/full_study.sh DATA OUT [sweep|train|after] [-- OPTIONS of `redheart sweep` and `redheart train`]
#
#   sweep  five learning rates, five epochs each
#   train  60 epochs, a snapshot every two
#   after  sweet spot, crossover, calibration, test split beside the baselines, report
#
# Without a part all three, one after the other. A call works for LIMIT_S seconds at most; what is running then saves
# its state and ends, and the same call goes on. Exit code 0: done; 75: there is more to do, call again; any other:
# failed, `redheart` has said why. So the whole is
#
#   until benchmarks/full_study.sh records.json.gz runs/full; do [ $? -eq 75 ] || break; done
#
# Variables, with their defaults:
#   PRESET=full  EPOCHS=60
#   CAP=8GiB         what every process may take of the card, its context included; nothing is held without a card
#   RATE=            the learning rate, in place of a sweep
#   RESULTS=OUT-results  folder that what a run tells is copied to at the end of every call, no file over 16 MiB:
#                    events, samples, sweep.json, sweet_spot.json, crossover.json, calibration.json, evaluation.json,
#                    the report, study.json (benchmarks/study.py), measured.json (planned beside measured)
#   DEVICE=auto      of the phases after training; `cuda` has them on the card, where they have not run yet
#   LIMIT_S=520      seconds of a call; of these
#   SAVE_S=90        are kept for what is running to save and end (a state of `full` is 4.1 GiB); then it is killed,
#                    and the next call goes on from the last state: one is written every three minutes
#   WRITE_S=20       and for the results
#   PYTHON=.venv/bin/python
#
# On a machine that keeps nothing: bring RESULTS along. In a new OUT `sweep` goes on after the trials that RESULTS holds
# whole, and `train` takes the rate of its sweep. States and snapshots (4.1 and 1.4 GiB) do not fit into it, so a run
# that must end within one loan of a machine has fewer EPOCHS; those are the first of 60, with the same losses, since
# the schedule's cycles do not depend on their number.
#
# What that comes to is printed at the start of every call, from the planner. For 7,086 records to train and an H100
# held to 8 GiB it says 1.24 s a step (0.79 to 1.59), validation and saving not counted: 0.95 hours for the sweep and
# 2.3 hours for 60 epochs. In 30 minutes that is two trials of the sweep, or ten epochs. For the whole to take an hour a
# step must take 0.38 s at most. `-- --train.card-share 0.7` is simulated at 0.57 s, and only `-- --train.pipeline
# --train.graphs` below; no card has run any of the three.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,10p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
data=$1 out=$2
shift 2
part=all
if [ $# -gt 0 ] && [ "$1" != -- ]; then part=$1; shift; fi
if [ $# -gt 0 ]; then [ "$1" = -- ] || usage; shift; fi
case $part in all | sweep | train | after) ;; *) usage ;; esac

python=${PYTHON:-.venv/bin/python}
PRESET=${PRESET:-full} EPOCHS=${EPOCHS:-60} CAP=${CAP:-8GiB} RATE=${RATE:-} RESULTS=${RESULTS:-$out-results}
DEVICE=${DEVICE:-auto}
LIMIT_S=${LIMIT_S:-520} SAVE_S=${SAVE_S:-90} WRITE_S=${WRITE_S:-20}
mkdir -p "$out" "$RESULTS"
export HELD_PEAKS=$RESULTS/peaks.jsonl

# What is there that another call would find: steps, states, features, evaluated models, results.
progress() {
  (cd "$out" && find . -type f ! -name '.*' ! -name '*.jsonl' -printf '%p %s\n' | sort &&
    find . -name events.jsonl -exec grep -c '^{"event": "step"' {} + || true) | cksum
}
finish() {
  code=$?
  if [ $code -eq 75 ] && [ "$before" = "$(progress)" ]; then
    echo "nothing came of this call, nor would of another one: raise LIMIT_S" >&2
    code=1
  fi
  "$python" "$here/full_study.py" results "$out" "$RESULTS" || [ $code -ne 0 ] || code=1
  echo "$part: exit code $code after $SECONDS s" >&2
  exit $code
}
before=$(progress)
trap finish EXIT

# One command of `redheart` in what is left of the call; ends the call where that is not enough.
redheart() {
  local code=0 left_s=$((LIMIT_S - SAVE_S - WRITE_S - SECONDS))
  if [ $left_s -le 0 ]; then exit 75; fi
  # To the process alone: it tells its trials, and a group would be told twice.
  timeout --foreground --preserve-status --signal=TERM --kill-after="$SAVE_S" "$left_s" \
    "$python" "$here/held.py" "$CAP" "$@" || code=$?
  # 143: it was not far enough to have anything to save.
  case $code in 75 | 143) exit 75 ;; esac
  return $code
}
is_newer() { [ "$out/$1" -nt "$out/$2" ]; }
# All epochs, and the last thing that a finished run says.
has_trained() {
  local log=$out/train/events.jsonl
  [ -e "$log" ] && [ "$(grep -c '^{"event": "epoch"' "$log")" -ge "$EPOCHS" ] && tail -n 1 "$log" | grep -q '^{"event": "end"'
}

if [ -z "$RATE" ] && [ ! -e "$out/config.json" ] && [ -e "$RESULTS/config.json" ]; then
  cp "$RESULTS/config.json" "$out/"
  [ ! -d "$RESULTS/sweep" ] || cp -r "$RESULTS/sweep" "$out/"
fi
# What is killed must not lose a whole call.
study=(--preset "$PRESET" --epochs "$EPOCHS" --train.state-every-minutes 3 "$@")
[ -z "$RATE" ] || study+=(--train.learning-rate "$RATE")
if [ $part != after ]; then
  # A call also starts Python, builds the model and reads its state.
  chosen=$("$python" "$here/full_study.py" plan "$out" "$RESULTS" "$CAP" $((LIMIT_S - SAVE_S - WRITE_S - 40)) "${study[@]}")
  # shellcheck disable=SC2206  # options without spaces
  study=(--data "$data" --out "$out" $chosen "${study[@]}")
fi

if [ $part = sweep ] || { [ $part = all ] && [ -z "$RATE" ] && [ ! -e "$out/train/events.jsonl" ]; }; then
  redheart sweep "${study[@]}"
fi
if [ $part = train ] || { [ $part = all ] && ! has_trained; }; then
  redheart train "${study[@]}"
fi
if [ $part = after ] || [ $part = all ]; then
  # What was evaluated is kept, and what is there is not made again.
  is_newer select/sweet_spot.json train/snapshots && [ -e "$out/select/maps.json" ] || redheart sweet-spot "$out" --device "$DEVICE"
  is_newer select/crossover.json select/sweet_spot.json || redheart crossover "$out" --device "$DEVICE"
  # 2: too few records to say.
  is_newer calibration/calibration.json select/crossover.json || redheart calibrate "$out" --device "$DEVICE" || [ $? -eq 2 ]
  is_newer evaluation/evaluation.json select/crossover.json || redheart evaluate "$out" --device "$DEVICE" >/dev/null
  redheart report "$out"
fi
