#!/usr/bin/env bash
# Submits a job to the cluster at RAY_ADDRESS (http://host:8265) and follows it: score, or what JOB names (see jobs/).
#   cluster/submit.sh configs/score/weibo-gpu.yaml [--set key=value ...]
#   JOB=estimate cluster/submit.sh configs/score/weibo-gpu.yaml --price-per-gpu-hour 2.5
#   JOB=explain cluster/submit.sh s3://bucket/scored --set explain=positive
set -euo pipefail
: "${RAY_ADDRESS:?set RAY_ADDRESS to the address of the dashboard, such as http://127.0.0.1:8265}"
cd "$(dirname "$0")/.."
exec ray job submit --working-dir . --runtime-env cluster/runtime-env.yaml -- python -m "jobs.${JOB:-score}" "$@"
