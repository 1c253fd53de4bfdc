#!/usr/bin/env bash
# Runs on a machine with a GPU what is worth most first, in about eight minutes or as many seconds as it is given.
# Writes the logs, one Markdown table of what was run, and the pictures into a folder.
#
#     bash tests/gpu.sh OUT [SECONDS]
#     PYTHON=python3 bash tests/gpu.sh OUT      # another interpreter
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?the folder to write to}" && cd "$1" && pwd)
seconds=${2:-480}
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

# run NAME SHARE COMMAND...: it may take SHARE percent of all seconds; its output goes to NAME.log
run() {
    local name=$1 limit=$((seconds * $2 / 100)) began=$SECONDS status
    shift 2
    timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    [ $status -eq 124 ] && status="cut off after $limit s"
    echo "| \`$name\` | $((SECONDS - began)) | $status | $(grep -v '^$' "$out/$name.log" | tail -1 | cut -c1-150 | tr '|' '/') |" >> "$table"
}

bench() {
    local name=$1 share=$2
    shift 2
    run "$name" "$share" "$python" -m rlplay bench --device cuda --threads 4 --repeats 2 --turn 0.4 --out "$out/$name" --work pixels "$@"
}

tests=("$python" -m pytest -m cuda -q -rf -p no:cacheprovider -p no:benchmark tests/engine/memory
    tests/engine/tensors/test_cuda.py tests/engine/feed/test_saved_on_cuda.py)

run tests 18 "${tests[@]}" -n 6
run torch_envs 6 "$python" -m tests.bench.torch_envs --device cuda --rounds 2 --threads 4
bench pixels 26 --learner-cost equal --n-envs 64 --n-envs 256 --engine same+compile --engine threaded+compile \
    --engine threaded+groups3+compile --engine threaded+workers8+groups2+compile
run atari_ppo 18 "$python" -m tests.bench.atari_ppo --device cuda --out "$out"
bench alone 10 --n-envs 8 --engine same+compile --engine threaded+compile
run sanitizer 22 env TORCH_CUDA_SANITIZER=1 "${tests[@]}" -n 4

for name in torch_envs pixels atari_ppo alone; do
    printf '\n## %s\n\n```\n%s\n```\n' "$name" "$(cat "$out/$name.log")" >> "$table"
done
cat "$table"
