#!/usr/bin/env bash
# The elastic adapter that ships: search its routes, train it, copy it into the package, judge it. A stopped run goes on.
# (The one before, with rows in shorter/, had --layers 30,27,24,20,15, --limit 3000, --max-tokens 120000,
# --ends-every 3, --emphasis greedy-kl:24=3,greedy-kl:20=1.5,full=0.2, the default rank and float32.)
#   experiments/elastic/run.sh DATA_DIR      (a folder with train.jsonl and validation.jsonl of InstructLab's instructions)
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
run=runs/elastic
depthdial=${DEPTHDIAL:-.venv/bin/depthdial}
routes=experiments/elastic/routes.json

[ -f "$routes" ] || "$depthdial" search smollm2-135m --data "$data" --split validation --limit 32 --screen 8 --min-layers 12 \
  --answer-tokens 24 --max-prompt-tokens 160 --out "$routes"

"$depthdial" finetune smollm2-135m --elastic "$routes" --layers 30,27,24,20,15,12 \
  --data "$data" --split train --limit 3600 --max-prompt-tokens 160 --max-response-tokens 96 --answers both \
  --batch-size 4 --routes-per-step 4 --ends-every 4 --emphasis greedy-kl:24=2.5,greedy-kl:15=2,greedy-kl:20=1.2,full=0.3 \
  --rank 32 --learning-rate 1e-3 --max-tokens 1050000 --save-minutes 5 --trainer bf16=true \
  --weights-dtype float16 --out "$run"

package=src/depthdial/adapters/smollm2-135m-elastic
mkdir -p "$package"
cp "$run"/{adapter_config.json,adapter_model.safetensors,depthdial.json,README.md} "$package"
cp "$run"/{training.json,training.png} experiments/elastic
.venv/bin/python experiments/elastic/answers.py
# Then, on Alpaca: experiments/elastic/evaluate.py --data ALPACA --card "$package/README.md"
