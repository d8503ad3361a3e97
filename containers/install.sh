#!/bin/bash
# Install hpcdat into a new environment from the folder that collect-wheels.sh fills, without a network:
#   install.sh WHEELS ENVIRONMENT
# Both images are built by it.
set -euo pipefail
wheels=$1 environment=$2
python3 -m venv "$environment"
# No configuration of pip may name an index.
export PIP_CONFIG_FILE=/dev/null
"$environment/bin/python" -m pip --isolated --no-cache-dir --disable-pip-version-check install --no-index \
    --find-links "$wheels" --constraint "$wheels/constraints.txt" --requirement "$wheels/packages.txt"
"$environment/bin/python" -m pip check
