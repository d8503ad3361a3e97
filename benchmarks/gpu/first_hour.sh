#!/usr/bin/env bash
# What to measure first on a machine with one GPU that is lent for a short time: at most nine minutes, in order of worth.
#
#   benchmarks/gpu/first_hour.sh [--cifar ROOT] [--out FOLDER] [--tiny]
#
#   --cifar ROOT   folder that holds cifar-10-batches-py; without it the user's cache
#   --out FOLDER   results (default: first-hour): NAME.json and NAME.log of each part, NAME.state with how it ended
#   --tiny         everything at a tiny size on the CPU: a rehearsal, which measures nothing
#
# Each part has a limit of its own; one that fails or is stopped does not stop the next. A second call does what is not
# done yet, in nine minutes more: training and evaluations resume, and code that was compiled is not compiled again. The
# exit code is 0 once all parts are done, else 1. PYTHON names the interpreter (default: python3); wheels.txt lists what
# it needs besides torch.
set -u -o pipefail

usage() { sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "$0"; }

refuse() {
    echo "first_hour.sh: $1; see --help" >&2
    exit 2
}

out=first-hour tiny=no device=cuda rounds=5 summary=17
cifar=()
while [ $# -gt 0 ]; do
    case $1 in
        --help) usage; exit 0 ;;
        --tiny) tiny=yes device=cpu rounds=1 summary=120; shift ;;
        --cifar | --out)
            [ $# -ge 2 ] || refuse "$1: expected a folder"
            if [ "$1" = --out ]; then out=$2; else cifar=(--cifar "$(realpath "$2")"); fi
            shift 2 ;;
        *) refuse "$1: unknown argument" ;;
    esac
done
python=${PYTHON:-python3}
mkdir -p "$out" || refuse "--out $out: cannot be made"
out=$(realpath "$out")
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TORCHINDUCTOR_CACHE_DIR=$out/compiled TRITON_CACHE_DIR=$out/triton
flags=(--device "$device" --rounds "$rounds" --work "$out/work" "${cifar[@]}")
if [ "$tiny" = yes ]; then
    # Threads that wait for one another take longer than what is tiny.
    export OMP_NUM_THREADS=1
    flags+=(--tiny)
fi

# The last seconds of the nine minutes are for the summary.
TOTAL=520
SECONDS=0
missing=0

# part NAME LIMIT ARGUMENT...: measure a section in at most LIMIT seconds.
part() {
    local name=$1 limit=$2 left=$((TOTAL - SECONDS)) began=$SECONDS code state
    shift 2
    if [ "$(cat "$out/$name.state" 2> /dev/null)" = "done" ]; then
        echo "$name: done before"
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 10 ]; then
        state="not started: the nine minutes are over"
    else
        timeout --kill-after=3 "$limit" "$python" benchmarks/gpu "$name" --json "$out/$name.json" "${flags[@]}" "$@" \
            < /dev/null > "$out/$name.log" 2>&1
        code=$?
        case $code in
            0) state="done" ;;
            75 | 124 | 137) state="stopped after $((SECONDS - began)) s: call this again to go on" ;;
            *) state="failed with exit code $code: $(tail -n 1 "$out/$name.log")" ;;
        esac
    fi
    [ "$state" = "done" ] || missing=$((missing + 1))
    echo "$state" > "$out/$name.state"
    echo "$name: $state ($((SECONDS - began)) s)"
}

part tests 100
part step 60
part resnet50 90
part codec 30
part concurrent 80
# Ends by itself before its limit, with a checkpoint to resume from.
part speedrun 150 --seeds 0 --limit 135
part horovod 30

parts=()
for json in "$out"/*.json; do
    if [ -e "$json" ] && [ "$json" != "$out/all.json" ]; then parts+=("$json"); fi
done
if [ ${#parts[@]} = 0 ]; then
    echo "nothing was measured: see the logs in $out" >&2
    exit 1
fi
timeout "$summary" "$python" benchmarks/gpu page --merge "${parts[@]}" --json "$out/all.json" | tee "$out/summary.txt" ||
    missing=$((missing + 1))
[ "$missing" = 0 ]
