#!/usr/bin/env bash
# The whole study over three seeds, its results and its tables. Killed, it goes on where it stopped.
# Usage: benchmarks/three_seeds.sh DATA [OPTIONS of `redheart run`, e.g. --preset small]; OUT: folder of the runs
set -euo pipefail
data=${1:?usage: benchmarks/three_seeds.sh DATA [OPTIONS]}
shift
bin=${BIN:-.venv/bin}
out=${OUT:-runs/seeds}

"$bin/redheart" run --data "$data" --out "$out/seed_0" --seed 0 "$@"
# The first seed's sweep speaks for all: a rate that depends on the seed would mix two effects.
rate=$("$bin/python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["best_rate"])' "$out/seed_0/sweep/sweep.json")
for seed in 1 2; do
  # The same texts have the same states; only what is fitted on a seed's training records is made anew.
  mkdir -p "$out/seed_$seed/features"
  cp -rn "$out"/seed_0/features/*/ "$out/seed_$seed/features/"
  "$bin/redheart" run --data "$data" --out "$out/seed_$seed" --seed "$seed" --train.learning-rate "$rate" "$@"
done
"$bin/python" benchmarks/study.py "$out"/seed_{0,1,2} --write
"$bin/python" benchmarks/study_tables.py --write
"$bin/python" benchmarks/readme_tables.py --write
