#!/usr/bin/env bash
# The runs of the README's first table and of its two arms, one after the other, into outputs/readme/<name>; a finished one is skipped, an interrupted one resumes.
# Afterwards: python benchmarks/results.py
set -u
cd "$(dirname "$0")/.."
run() {
  name=$1; shift
  echo "== $name: $*"
  python -m provla.train "hydra.run.dir=outputs/readme/$name" study=readme logger=csv "$@"
}
run default-seed0
run default-seed1 seed=1
run default-seed2 seed=2
run text-none text=none
for seed in 0 1 2; do # each task's sentence is its twin's
  told=outputs/readme/default-seed$seed-swapped
  [ -f "$told/result.json" ] || python -m provla.evaluate checkpoint=outputs/readme/default-seed$seed "env.perturb={opposite:1}" "hydra.run.dir=$told"
done
run task_embedding text=task_embedding
run aloha-seed0 experiments=aloha_sim
run aloha-seed1 experiments=aloha_sim seed=1
told=outputs/readme/aloha-seed0-16
[ -f "$told/result.json" ] || python -m provla.evaluate checkpoint=outputs/readme/aloha-seed0 n_action_steps=16 "hydra.run.dir=$told"
