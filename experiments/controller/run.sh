#!/usr/bin/env bash
# The controller of docs/controllers.md: the elastic adapter on SmolLM2, fitted and judged on a random sample of Alpaca, and then
# judged on Dolly, which it has not seen. A stopped run goes on.
#   experiments/controller/run.sh ALPACA_DIR DOLLY_DIR      (folders of splits)
set -euo pipefail
cd "$(dirname "$0")/../.."
alpaca=$1 dolly=$2
run=runs/controller
depthdial=${DEPTHDIAL:-.venv/bin/depthdial}
model="smollm2-135m --adapter ${ADAPTER:-elastic} --max-prompt-tokens 256 --batch-size 32"

$depthdial controller fit $model --data "$alpaca" --limit 960 --response-tokens 48 --out $run/fit
$depthdial controller evaluate $run/fit $model --data "$alpaca" --limit 320 --calibration-limit 448 --samples 4 --rouge \
  --out $run/alpaca
$depthdial controller evaluate $run/fit $model --data "$dolly" --split test --limit 192 --samples 0 --rivals "" --out $run/dolly

# What is kept: scores, tables, figures, the page, and rows (ids, hashes, numbers; no text, no features).
for name in alpaca dolly; do
  kept=experiments/controller/$name
  mkdir -p "$kept/rows"
  cp -r $run/$name/{controller_scores.json,evaluation.json,predictions.parquet,report.html,tables,figures} "$kept"
  for part in test/scores test/known test/answers calibration/scores; do
    [ ! -f "$run/$name/$part/rows.parquet" ] || cp "$run/$name/$part/rows.parquet" "$kept/rows/${part//\//-}.parquet"
  done
done
mkdir -p experiments/controller/fit
cp $run/fit/controller.{json,safetensors} experiments/controller/fit
cp $run/fit/measured/scores/rows.parquet experiments/controller/fit/scores.parquet
.venv/bin/python experiments/controller/online.py
