#!/usr/bin/env bash
# Several hosts that ssh reaches.
#
#   scripts/launch/ssh.sh HOSTS RECIPE [OPTIONS OF distill launch]
#   scripts/launch/ssh.sh gpu0,gpu1,gpu2,gpu3 recipes/imagenet1k/ResNet50_vd_ssld.yaml
#   scripts/launch/ssh.sh hosts.txt distilled --ranks 2
#
# HOSTS is a list with commas, or a file with a host a line. The first is host 0: it keeps the run, shows what rank 0 says
# and gives the exit status. Needed on every host: a login without a password, this project with its environment, the recipe
# and the images, at the same paths as here.
#
# Ctrl-C, SIGTERM, or the end of this script in whatever way: the ranks save, and end. DRY_RUN=1 prints what would be started.
#   DISTILL  the command on the hosts               default: .venv/bin/distill
#   FOLDER   where it is started                    default: the folder here
#   MASTER   name or address of host 0 for the others   default: the first of HOSTS
#   PORT     where they meet, free on host 0        default: 29500
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi
if [ -f "$1" ]; then
  mapfile -t hosts < <(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$1")
else
  IFS=, read -r -a hosts <<< "$1"
fi
shift
first=${hosts[0]#*@}
master=${MASTER:-$first}:${PORT:-29500}

quoted() { # for a POSIX shell
  local word
  for word in "$@"; do
    printf "'%s' " "${word//\'/\'\\\'\'}"
  done
}

# What a host runs: distill launch, which is asked to end as soon as nobody holds the other end of the connection.
remote() {
  local launch=(launch "$@")
  [ "${#hosts[@]}" -eq 1 ] || launch+=(--nnodes "${#hosts[@]}" --master "$master" --node-rank "$number")
  cat << END
cd $(quoted "${FOLDER:-$PWD}") || exit
exec 3<&0
${DISTILL:-.venv/bin/distill} $(quoted "${launch[@]}") < /dev/null 3<&- &
job=\$!
{ cat <&3; kill -TERM \$job; } > /dev/null 2>&1 &
wait \$job
END
}

if [ -n "${DRY_RUN:-}" ]; then
  for number in "${!hosts[@]}"; do
    echo "ssh ${hosts[$number]}: $(remote "$@" | sed -n 's/ < .dev.null.*//p')"
  done
  exit 0
fi

lease=$(mktemp -u)
mkfifo -m 600 "$lease"
exec 9<> "$lease"
rm_lease() { rm -f "$lease"; }
trap rm_lease EXIT
trap 'exec 9>&-' INT TERM # everybody reads the end of the file; so they do when this script is killed
processes=()
for number in "${!hosts[@]}"; do
  host=${hosts[$number]}
  if [ "$number" -eq 0 ]; then
    ssh -o BatchMode=yes "$host" "sh -c $(quoted "$(remote "$@")")" < "$lease" 9>&- &
  else
    ssh -o BatchMode=yes "$host" "sh -c $(quoted "$(remote "$@")")" < "$lease" 9>&- > >(sed -u "s/^/$host: /" 9>&-) 2>&1 &
  fi
  processes+=($!)
done

status_of() { # a signal that is trapped ends `wait`, not the process
  local status
  while true; do
    status=0
    wait "$1" || status=$?
    kill -0 "$1" 2> /dev/null || return "$status"
  done
}
status=0
status_of "${processes[0]}" || status=$?
for process in "${processes[@]:1}"; do
  status_of "$process" || true
done
exit "$status"
