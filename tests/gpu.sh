#!/usr/bin/env bash
# Runs on a machine with a GPU, within eight minutes, what is worth most first. Writes the logs, and one Markdown table
# of what was run, into a folder.
#
#     bash tests/gpu.sh OUT
#     PYTHON=python3 bash tests/gpu.sh OUT      # another interpreter
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?the folder to write to}" && cd "$1" && pwd)
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

table=$out/gpu.md
{
    echo "# $(date --utc +%F), $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1), $(git rev-parse --short HEAD 2>/dev/null || echo "no git")"
    echo
    "$python" -c 'import os, platform, numpy, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {numpy.__version__}, {os.cpu_count()} cores")'
    echo
    echo "| what | seconds | status | last line |"
    echo "| --- | --- | --- | --- |"
} > "$table"

# run NAME LIMIT COMMAND...: its output goes to NAME.log
run() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    [ $status -eq 124 ] && status="cut off after $limit s"
    echo "| \`$name\` | $((SECONDS - began)) | $status | $(grep -v '^$' "$out/$name.log" | tail -1 | cut -c1-150 | tr '|' '/') |" >> "$table"
}

bench() {
    local name=$1 limit=$2
    shift 2
    run "$name" "$limit" "$python" -m rlplay bench --device cuda --threads 4 --repeats 3 --out "$out/$name" "$@"
}

captured=(--engine same+compile --engine threaded+compile --engine threaded+groups2+compile --engine threaded+groups3+compile)

run tests 110 "$python" -m pytest -m cuda -q -rf -p no:cacheprovider -p no:benchmark -n 2 tests/engine/memory
bench pixels 110 --work pixels --learner-cost equal --n-envs 64 --n-envs 256 "${captured[@]}"
bench atari 70 --work atari-vector --learner-cost equal --n-envs 64 --n-steps 128 --engine threaded+compile --engine threaded+groups2+compile
bench alone 60 --work pixels --learner-cost none --n-envs 8 --n-envs 64 --n-envs 256 "${captured[@]}"
run sanitizer 110 env TORCH_CUDA_SANITIZER=1 "$python" -m pytest -m cuda -q -rf -p no:cacheprovider -p no:benchmark tests/engine/memory

for name in pixels atari alone; do
    printf '\n## %s\n\n```\n%s\n```\n' "$name" "$(cat "$out/$name.log")" >> "$table"
done
cat "$table"
