#!/usr/bin/env bash
# The whole study as one readable script: what `redheart run` does, phase by phase.
# Usage: launch/pipeline.sh RUN [OPTIONS of `redheart run`, e.g. --data FILE --preset small]
set -euo pipefail
redheart=${REDHEART:-.venv/bin/redheart}
run=${1:?usage: launch/pipeline.sh RUN [OPTIONS]}
shift

"$redheart" sweep --out "$run" "$@"   # learning rate, one process per trial
"$redheart" train --out "$run" "$@"   # the main run: snapshots per module, resumable
"$redheart" sweet-spot "$run"         # best epoch of every module group
"$redheart" crossover "$run"          # the recombined model beside the best single snapshot
"$redheart" calibrate "$run" || [ $? -eq 2 ]  # does its confidence mean what it says; 2: too few records to say
"$redheart" evaluate "$run"           # test split, beside the baselines
"$redheart" report "$run"             # report.md with figures
