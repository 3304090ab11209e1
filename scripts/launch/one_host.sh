#!/usr/bin/env bash
# One host: all its GPUs, be it 1 or 8.
#
#   scripts/launch/one_host.sh RECIPE [OPTIONS OF distill launch]
#   scripts/launch/one_host.sh distilled --output runs/first
#   scripts/launch/one_host.sh distilled --devices 0,1       # two of the GPUs
#   scripts/launch/one_host.sh distilled --ranks 2           # without GPUs: two ranks on the CPU
#
# Started again after a crash or a reboot it goes on with the run. DRY_RUN=1 prints what would be started.
# DISTILL is the command, by default `distill`.
set -euo pipefail
if [ $# -eq 0 ]; then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
# shellcheck disable=SC2206  # may be several words
command=(${DISTILL:-distill} launch "$@" --max-restarts 3 --resume)
if [ -n "${DRY_RUN:-}" ]; then
  echo "${command[*]}"
  exit 0
fi
exec "${command[@]}"
