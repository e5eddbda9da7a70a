#!/usr/bin/env bash
# The runs of the README's first table and of its two arms, one after the other, into outputs/readme/<name>; a finished
# one is skipped, an interrupted one resumes.
# Afterwards: python benchmarks/results.py
set -u
cd "$(dirname "$0")/.."
run() {
  name=$1; shift
  echo "== $name: $*"
  python -m provla.train "hydra.run.dir=outputs/readme/$name" study=readme logger=csv "$@"
}
judge() { # judge <name> <run> <changes>
  name=$1; run=$2; shift 2
  echo "== $name: $run $*"
  [ -f "outputs/readme/$name/result.json" ] ||
    python -m provla.evaluate "checkpoint=outputs/readme/$run" "hydra.run.dir=outputs/readme/$name" "$@"
}
run default-seed0
run default-seed1 seed=1
run default-seed2 seed=2
run text-none text=none
for seed in 0 1 2; do # each task's sentence is its twin's
  judge default-seed$seed-swapped default-seed$seed "env.perturb={opposite:1}"
done
run task_embedding text=task_embedding
run aloha-seed0 experiments=aloha_sim
run aloha-seed1 experiments=aloha_sim seed=1
judge aloha-seed0-16 aloha-seed0 n_action_steps=16
