#!/usr/bin/env bash
# The study of docs/qwen.md: Qwen2.5-Coder-1.5B beside SmolLM2-135M on code tasks and MT-bench questions. A stopped run goes on.
#   experiments/qwen/run.sh MT_BENCH_QUESTIONS      (questions.jsonl of MT-bench, whose texts stay where they are)
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/qwen
python=${PYTHON:-.venv/bin/python}
depthdial="$python -m depthdial"
$python -m experiments.qwen.prepare "$1" $run/data

family() { echo "$run/families/$1.json"; }
search() { # model, fewest layers
  [ -f "$(family "$1")" ] || $depthdial search "$1" --data $run/data/mix --split train --template chat --max-prompt-tokens 160 \
    --limit 20 --screen 6 --answer-tokens 24 --batch-size 20 --min-layers "$2" --out "$(family "$1")"
}
sweep() { # model, data, depths, more
  $depthdial sweep "$1" --data "$run/data/$2" --split test --template chat --depth "$3" --fidelity-tokens 40 --batch-size 24 "${@:5}" \
    --out "$run/$4-$2"
}
depths() { # model, searched layers, layers of ULS
  local one list=full
  for one in $2; do list=$list,$(family "$1"):$one; done
  for one in $3; do list=$list,uls:$one; done
  echo "$list"
}

qwen=qwen2.5-coder-1.5b small=smollm2-135m
search $qwen 14
search $small 15
for text in code ordinary; do
  if [ $text = code ]; then more="--metrics rouge_l,kl,agreement --max-new-tokens 72 --keep-text"
  else more="--metrics kl,agreement --max-new-tokens 40 --max-prompt-tokens 160"; fi
  # shellcheck disable=SC2086
  sweep $qwen $text "$(depths $qwen '25 22 20 17 27 14' '25 22 20')" qwen $more
  # shellcheck disable=SC2086
  sweep $small $text "$(depths $small '29 27 24 21 18 15' '27 24 21')" smollm2 $more
done
certify() { # data, name, more
  $depthdial certify $qwen --data "$run/data/$1" --split calibration --template chat --metric agreement --epsilon 0.1,0.15,0.2 \
    --depth searched:25,searched:22,searched:20 --max-new-tokens 40 --batch-size 24 "${@:3}" --out "$run/certificate-$2"
}
certify code agreement
certify ordinary agreement-ordinary --max-prompt-tokens 160
$python -m experiments.qwen.certify $run/data/code $run/certificate-passing
$depthdial bench $qwen --out $run/bench

# What is kept: scores, ids and hashes; no texts.
kept=experiments/qwen
for model in qwen smollm2; do
  for text in code ordinary; do $python -m experiments.qwen.passing $run/$model-$text $kept/rows/$model-$text; done
done
cp "$(family $small)" $kept/smollm2-135m.json
for metric in agreement agreement-ordinary passing; do cp $run/certificate-$metric/certificates.json $kept/certificate-$metric.json; done
cp $run/bench/bench.json $kept
$python -m experiments.qwen.results
