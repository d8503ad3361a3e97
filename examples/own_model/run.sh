#!/usr/bin/env bash
# Train one's own network on one's own data with two workers, export it, load it in plain PyTorch, attack it.
set -euo pipefail
cd "$(dirname "$0")"
PATH="$(cd ../.. && pwd)/.venv/bin:$PATH"
hpcdat train job.yaml -np 2 --overwrite
hpcdat export runs/own-model runs/own-model.safetensors --overwrite
python load.py
hpcdat evaluate runs/own-model -np 2 --autoattack 50
