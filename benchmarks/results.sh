#!/usr/bin/env bash
# The runs of the README's first tables, one after the other, into outputs/readme/<name>; a finished one is skipped, an interrupted one resumes.
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
run untrained trainer.max_steps=0
run task_embedding text=task_embedding
run perceiver fusion=perceiver
run film fusion=film
run siglip_tiny vision=siglip_tiny
run quant-4bit quant=4bit
