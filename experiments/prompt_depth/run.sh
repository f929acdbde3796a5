#!/usr/bin/env bash
# Routes of 24 layers, searched for prompts at full depth and for prompts on the route, each measured both ways on rows that no
# search saw. A stopped run goes on.
#   experiments/prompt_depth/run.sh
set -euo pipefail
cd "$(dirname "$0")"
depthdial=${DEPTHDIAL:-../../.venv/bin/depthdial}

for prompts in full route; do
  [ -f "for-$prompts.json" ] || "$depthdial" search smollm2-135m --task builtin --limit 16 --min-layers 24 --screen 5 \
    --answer-tokens 16 --prompt-depth "$prompts" --out "for-$prompts.json"
done
for prompts in full route; do
  "$depthdial" sweep smollm2-135m --task builtin --split test --limit 64 --depth full,for-full.json:24,for-route.json:24 \
    --prompt-depth "$prompts" --max-new-tokens 64 --fidelity-tokens 64 --out "prompts-$prompts"
done
