#!/usr/bin/env bash
# The certificates of docs/certified.md: on each data set a controller for ROUGE-L, fitted, judged and certified, and the
# certificates of static depths, all of one adapter. A stopped run goes on.
#   experiments/certified/run.sh ALPACA_DIR DOLLY_DIR CNN_DAILYMAIL_DIR      (folders of splits)
#   ADAPTER=FOLDER RUN=runs/certified-2 NAMES="alpaca dolly" DEPTHS=searched:24,searched:20 experiments/certified/run.sh ..
set -euo pipefail
cd "$(dirname "$0")/../.."
adapter=${ADAPTER:-elastic} run=${RUN:-runs/certified}
python=${PYTHON:-.venv/bin/python}
depths=${DEPTHS:-searched:24,searched:20,searched:15}  # in the order of the tests

[ -d "$run/data" ] || $python experiments/certified/prepare.py "$1" "$2" "$3" "$run/data"
for name in ${NAMES:-alpaca dolly cnn_dailymail}; do
  data=$run/data/$name fit=$run/$name/fit
  case $name in
    # 300 rows cannot certify one point: guarantee.p_values.rows_needed.
    cnn_dailymail) size="--max-prompt-tokens 512 --batch-size 8" tokens=64 epsilons=0.02,0.05 test=64 ;;
    dolly) size="--max-prompt-tokens 256 --batch-size 32" tokens=48 epsilons=0.01,0.02,0.05 test=160 ;;
    *) size="--max-prompt-tokens 256 --batch-size 32" tokens=48 epsilons=0.01,0.02,0.05 test=192 ;;
  esac
  model="smollm2-135m --adapter $adapter $size"
  [ -f "$fit/controller.json" ] || $python -m depthdial controller fit $model --data "$data/fit.jsonl" --metric rouge_l \
    --depth "$depths,full" --response-tokens $tokens --out "$fit"
  # Both plans are written before a calibration row is run.
  $python experiments/certified/controllers.py plan "$fit" "$run/$name/prices" --epsilons $epsilons
  $python -m depthdial certify $model --data "$data/calibration.jsonl" --depth "$depths" --metric rouge_l \
    --epsilon $epsilons --delta 0.05 --max-new-tokens $tokens --out "$run/$name/static"
  $python experiments/certified/controllers.py certify "$fit" "$run/$name/prices" --static "$run/$name/static" \
    --data "$data/calibration.jsonl" --adapter "$adapter" --epsilons $epsilons --batch-size "${size##* }"
  $python experiments/certified/controllers.py test "$fit" "$run/$name/test" --data "$data/test.jsonl" --limit $test \
    --adapter "$adapter" --batch-size "${size##* }"
done
$python experiments/certified/results.py "$run"
