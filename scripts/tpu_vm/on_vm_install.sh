# Sourced by on_vm.sh: the bucket and the code on a host. Every version is pinned, so that a slice that is made anew runs
# the same.
# shellcheck shell=bash
# shellcheck disable=SC2154  # What is set there is read here.

GCSFUSE=3.11.1
UV=0.13.9
UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
uv=$HOME/uv-$UV/bin/uv

mount_bucket() {
  if mountpoint --quiet "$mount"; then return; fi
  [[ $(dpkg-query --show --showformat='${Version}' gcsfuse 2>/dev/null) == "$GCSFUSE" ]] || install_gcsfuse
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

# try_bucket BUCKET NAME: a bucket that can only be read is mounted as well.
try_bucket() {
  local file
  file=$mount/logs/$2/.$(hostname)
  if mkdir -p "$mount/logs/$2" && date >"$file" && rm "$file"; then return; fi
  echo "$(hostname): gs://$1 cannot be written to; give the slice's service account the right" >&2
  return 1
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error --location https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq --option DPkg::Lock::Timeout=600 update
  sudo apt-get -qq --option DPkg::Lock::Timeout=600 --allow-downgrades install "gcsfuse=$GCSFUSE" >/dev/null
}

# install_code EXTRAS. The images have older Pythons than das_jax needs; uv brings its own.
install_code() {
  local fingerprint locked=$code/scripts/tpu_vm/requirements.txt
  fingerprint=$({ cat das_jax.bundle && echo "$1"; } | cksum)
  if [[ $(cat "$code/.installed" 2>/dev/null) == "$fingerprint" ]]; then return; fi
  rm -rf "$code"
  git clone --quiet das_jax.bundle "$code"
  [[ -x $uv ]] || install_uv
  "$uv" venv --quiet --managed-python --python 3.11 "$code/.venv"
  # Hashes are checked wherever a file has them, and it has them for all that these extras need.
  "$uv" pip install --quiet --python "$code/.venv/bin/python" --constraint "$locked" --build-constraint "$locked" \
    --verify-hashes --editable "${code}[$1]"
  echo /.installed >>"$code/.git/info/exclude"
  echo "$fingerprint" >"$code/.installed"
}

install_uv() {
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --target "${uv%/bin/uv}" --requirement /dev/stdin <<<"uv==$UV --hash=sha256:$UV_SHA256"
}

# link_bucket DIRECTORY...: every directory of the bucket stands in the checkout, so that a path means the same here as
# there; those that a run writes to or may ask for are made. What the commit itself has stays as it is.
link_bucket() {
  local directory
  mkdir -p "${@/#/$mount/}"
  for directory in "$mount"/*/; do
    directory=$(basename "$directory")
    if [[ -e $code/$directory ]]; then continue; fi
    ln -sfn "$mount/$directory" "$code/$directory"
    echo "/$directory" >>"$code/.git/info/exclude"
  done
}
