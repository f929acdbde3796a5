#!/usr/bin/env bash
# Hidden-state similarity of early exit and layer skipping on real test rows (Figures 1a, 4 and 5 of arXiv 2410.20022).
#
#   experiments/similarity/run.sh                       # Alpaca and CNN/DailyMail from the Hugging Face Hub
#   experiments/similarity/run.sh ALPACA_DIR CNN_DIR    # folders with a test.jsonl each
#
# Leaves rows.parquet and a report in a folder for each; started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
depthdial=.venv/bin/depthdial
here=experiments/similarity
costs="25% 50% 75%"
routes=""
for family in ee uls rls rls-wo1; do for cost in $costs; do routes+="$family:$cost,"; done; done

run() { # name, prompt tokens, response tokens, sequences, data folder or nothing
  local source=(--task "$1")
  if [ -n "${5:-}" ]; then source=(--data "$5"); fi
  $depthdial similarity smollm2-135m "${source[@]}" --split test --limit "$4" --routes "${routes%,}" \
    --max-prompt-tokens "$2" --max-response-tokens "$3" --fidelity-tokens 48 --batch-size 8 --out "$here/$1"
  $depthdial report "$here/$1"
}

run alpaca 128 64 "${LIMIT_ALPACA:-96}" "${1:-}"
run cnn_dailymail 1433 64 "${LIMIT_CNN:-48}" "${2:-}"
