#!/usr/bin/env bash
# Whether instructions of every kind help where InstructLab's do not: from the adapter that ships, train on for 28 minutes on
# instructions that the model writes itself, and judge the result on the same rows of Alpaca. Nothing of it ships.
#   experiments/elastic/own.sh INSTRUCTLAB_DIR ALPACA_DIR
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/elastic-own kept=experiments/elastic/own
depthdial=${DEPTHDIAL:-.venv/bin/depthdial}

.venv/bin/python experiments/elastic/prompts.py --data "$1" --out $run/data
"$depthdial" finetune smollm2-135m --start-from elastic --elastic experiments/elastic/routes.json --layers 30,27,24,20,15,12 \
  --data $run/data --split train --max-prompt-tokens 160 --max-response-tokens 112 --batch-size 4 --routes-per-step 4 \
  --ends-every 4 --emphasis greedy-kl:24=2.5,greedy-kl:15=2,greedy-kl:20=1.2,full=0.6 --rank 32 --learning-rate 8e-4 \
  --max-minutes 28 --save-minutes 5 --trainer bf16=true --weights-dtype float16 --out $run/adapter
mkdir -p $kept
cp $run/adapter/training.json $kept
.venv/bin/python experiments/elastic/evaluate.py --data "$2" --adapter $run/adapter --out $run/judged
cp $run/judged/elastic/rows.parquet $kept
