#!/usr/bin/env bash
# Runs on every host of a TPU slice; scripts/tpu_vm/run copies it there and calls it over ssh.
#   status WORD...          prints what became of that command: absent, running, ended STATUS, or other for another one
#   install BUCKET EXTRAS   mounts the bucket and installs the code from das_jax.bundle
#   start WORD...           runs the command detached
#   follow BYTE SECONDS     prints the log from that byte on, until the command ends or the time is over
#   save BUCKET NAME        ends the command, copies the log to the bucket and unmounts it
set -euo pipefail
shopt -s inherit_errexit

cd
mount=$HOME/bucket code=$HOME/das_jax log=$HOME/das_jax.log script=$HOME/das_jax_command.sh
unit=das-jax bucket_unit=das-jax-bucket

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
  sudo systemd-run --quiet --unit="$name" --uid="$(id -un)" --setenv=HOME="$HOME" "${properties[@]}" "$@"
}

stop_service() {
  sudo systemctl stop "$1" 2>/dev/null || true
  sudo systemctl reset-failed "$1" 2>/dev/null || true
}

install() {
  stop_service "$unit"
  mount_bucket "$1"
  install_code "$2"
}

mount_bucket() {
  if mountpoint --quiet "$mount"; then return; fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  mkdir -p "$mount"
  # Without a cache of metadata a host sees at once what another wrote. Checkpoints are directories that are renamed; the
  # limit is for buckets without a hierarchical namespace.
  as_service "$bucket_unit" After=network-online.target -- \
    "$(command -v gcsfuse)" --foreground --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=100000 "$1" "$mount"
  for _ in {1..60}; do
    if mountpoint --quiet "$mount"; then return; fi
    sleep 1
  done
  echo "$(hostname): gs://$1 cannot be mounted; may the slice's service account write to it? The reason:" >&2
  sudo journalctl --unit="$bucket_unit" --lines=5 --output=cat >&2
  return 1
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error --location https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq --option DPkg::Lock::Timeout=600 install gcsfuse >/dev/null
}

# The images have older Pythons than das_jax needs; uv brings its own.
install_code() {
  local fingerprint
  fingerprint=$({ cat das_jax.bundle && echo "$1"; } | cksum)
  if [[ $(cat "$code/.installed" 2>/dev/null) == "$fingerprint" ]]; then return; fi
  rm -rf "$code"
  git clone --quiet das_jax.bundle "$code"
  mkdir -p "$mount/runs" "$mount/corpora"
  ln -s "$mount/runs" "$mount/corpora" "$code"
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null ||
    curl --fail --silent --show-error --location https://astral.sh/uv/0.13.9/install.sh | sh >/dev/null 2>&1
  uv venv --quiet --python 3.11 "$code/.venv"
  uv pip install --quiet --python "$code/.venv/bin/python" --editable "${code}[$1]"
  echo "$fingerprint" >"$code/.installed"
}

start() {
  script_of "$@" >"$script"
  touch "$log"
  as_service "$unit" RemainAfterExit=yes "Requires=$bucket_unit.service" "After=$bucket_unit.service" \
    LimitMEMLOCK=infinity LimitNOFILE=1048576 -- bash "$script"
}

follow() {
  local pid
  pid=$(property MainPID)
  if [[ $pid == 0 ]]; then
    tail --bytes="+$1" "$log"
  else
    timeout "$2" tail --bytes="+$1" --follow --pid="$pid" "$log" || [[ $? == 124 ]]
  fi
}

save() {
  stop_service "$unit"
  mount_bucket "$1"
  mkdir -p "$mount/logs/$2"
  [[ ! -e $log ]] || cp "$log" "$mount/logs/$2/$(hostname)-$(date --utc +%Y%m%dT%H%M%SZ).log"
  fusermount -u "$mount"
}

"$@"
