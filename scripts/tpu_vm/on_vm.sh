#!/usr/bin/env bash
# Runs on every host of a TPU slice; scripts/tpu_vm/run copies it there and calls it over ssh.
#   status WORD...                       prints `@status` and what became of that command: absent, running, ended STATUS,
#                                        or other for another one
#   install ATTEMPT BUCKET NAME EXTRAS DIRECTORY...
#                                        mounts the bucket, which gets these directories, and installs the code from
#                                        das_jax.bundle
#   start ATTEMPT NAME WORD...           runs the command detached
#   follow BYTE BYTES SECONDS            prints so many bytes of the log from that byte on, as log.sh reads them; waits
#                                        for them, until the command ends or the time is over
#   save BUCKET NAME                     ends the command, copies the log to the bucket and unmounts it
# Each may be asked again while the first is still at work, because gcloud repeats what a broken connection cut off: those
# that change something take turns, and find what is done already.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd
mount=$HOME/bucket code=$HOME/das_jax log=$HOME/das_jax.log script=$HOME/das_jax_command.sh
unit=das-jax bucket_unit=das-jax-bucket log_unit=das-jax-log

property() {
  systemctl show "$unit" --property="$1" --value
}

# script_of WORD...: what the unit executes. The words are quoted here, because systemd would expand $ and % in them.
# The hosts of a slice find each other by its metadata.
script_of() {
  local words
  printf -v words '%q ' "$@"
  echo "cd $code && PATH=$code/.venv/bin:\$PATH && export JAX_NUM_PROCESSES=auto && exec $words>>$log 2>&1"
}

status() {
  echo "@status $(command_status "$@")"
}

command_status() {
  local exit_status
  case $(property ActiveState) in
    active)
      if [[ $(property SubState) == exited ]]; then
        echo 'ended 0'
      elif [[ $(script_of "$@") == "$(cat "$script")" ]]; then
        echo running
      else
        echo other
      fi
      ;;
    activating | deactivating) echo running ;;
    failed)
      exit_status=$(property ExecMainStatus)
      echo "ended $((exit_status ? exit_status : 1))"
      ;;
    *) echo absent ;; # Never started here, or stopped: das-jax ends with 0 when a shutdown stops it, and is not done.
  esac
}

# as_service UNIT [PROPERTY...] -- WORD...: starts a service that outlives the ssh connection. A shutdown stops services
# in the reverse order of After=, each with SIGTERM first.
as_service() {
  local name=$1 properties=()
  shift
  while [[ $1 != -- ]]; do properties+=("--property=$1") && shift; done
  shift
  stop_service "$name"
  # Without the lock, which a service that kept it open would keep.
  sudo systemd-run --quiet --unit="$name" --uid="$(id -un)" --setenv=HOME="$HOME" "${properties[@]}" "$@" 9>&-
}

stop_service() {
  sudo systemctl stop "$1" 2>/dev/null || true
  sudo systemctl reset-failed "$1" 2>/dev/null || true
}

# is_past ATTEMPT: whether this attempt to start the command, or a later one, was made here.
is_past() {
  (($1 <= $(cat "$HOME/das_jax_attempt" 2>/dev/null || echo 0)))
}

install() {
  if is_past "$1"; then return; fi
  stop_service "$unit"
  mount_bucket "$2"
  try_bucket "$2" "$3"
  install_code "$4"
  link_bucket "${@:5}"
}

start() {
  if is_past "$1"; then return; fi
  [[ -e $HOME/das_jax_since ]] || date --utc +%Y%m%dT%H%M%SZ >"$HOME/das_jax_since"
  stop_service "$unit"
  script_of "${@:3}" >"$script"
  touch "$log"
  # A preemption gives a host half a minute: the command stops first, then its log is copied, then the bucket unmounted.
  as_service "$log_unit" "Requires=$bucket_unit.service" "After=$bucket_unit.service" -- \
    bash "$here/on_vm.sh" mirror "$2"
  as_service "$unit" RemainAfterExit=yes "Requires=$bucket_unit.service" "After=$bucket_unit.service" \
    "After=$log_unit.service" LimitMEMLOCK=infinity LimitNOFILE=1048576 -- bash "$script"
  echo "$1" >"$HOME/das_jax_attempt"
}

# mirror NAME: keeps the copy of the log in the bucket a minute behind. The bucket gets a file when it is closed.
mirror() {
  trap 'copy_log "$name" || true; exit 0' TERM
  local name=$1
  while true; do
    copy_log "$name" || true # The bucket may be out of reach for a while.
    sleep 60 &
    wait $!
  done
}

# copy_log NAME: one file for each host and its life.
copy_log() {
  local target
  [[ -e $log ]] || return 0
  target=$mount/logs/$1/$(hostname)-$(cat "$HOME/das_jax_since").log
  if [[ $(stat --format=%s "$target" 2>/dev/null) == "$(stat --format=%s "$log")" ]]; then return 0; fi
  mkdir -p "$mount/logs/$1"
  cp "$log" "$target"
}

follow() {
  local waited=0 size sum
  until [[ $(property MainPID) == 0 ]] || (($(log_size) >= $1 + $2 - 1 || waited >= $3)); do
    sleep 1
    waited=$((waited + 1))
  done
  size=$(log_size)
  # What is written from here on is for the next time: the pieces join.
  size=$((size < $1 + $2 - 1 ? size : $1 + $2 - 1))
  read -r sum _ < <(part "$1" "$size" | cksum)
  echo "@log $1 $((size < $1 ? 0 : size - $1 + 1)) $(log_size) $sum $(part "$1" "$size" | base64 --wrap=0)"
}

log_size() {
  stat --format=%s "$log" 2>/dev/null || echo 0
}

# part FROM TO: these bytes of the log.
part() {
  if (($2 >= $1)); then tail --bytes="+$1" "$log" | head --bytes="$(($2 - $1 + 1))"; fi
}

save() {
  stop_service "$unit"
  stop_service "$log_unit"
  mount_bucket "$1"
  copy_log "$2"
  fusermount -u "$mount"
}

# shellcheck source=scripts/tpu_vm/on_vm_install.sh
source "$here/on_vm_install.sh"
case $1 in
  install | start | save)
    exec 9>"$HOME/das_jax.lock"
    flock --wait 1800 9 || { echo "$(hostname): an earlier '$1' has not ended in half an hour" >&2 && exit 1; }
    ;;
esac
"$@"
