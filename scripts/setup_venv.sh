# Sourced by the scripts beside it: makes .venv next to pyproject.toml, once, and activates it.
# shellcheck shell=bash

fail() {
  echo "$1" >&2
  exit 1
}

# The first interpreter that is new enough; `python3` first, because that is the one the user chose.
find_python() {
  local candidate
  for candidate in python3 python3.11 python3.12 python3.13 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "No Python 3.11 or newer was found on PATH; install one, for example with 'apt install python3 python3-venv' or 'uv python install 3.11'."
}

# quietly MESSAGE COMMAND...: one line while all goes well, the command's own output when it fails.
quietly() {
  local message=$1 log
  shift
  echo "==> $message"
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    fail "This step failed: $message. What it printed is above."
  fi
  rm -f "$log"
}

# setup_venv EXTRA: installs the project, with that extra or (when empty) none, unless it already stands there.
setup_venv() {
  local requirement=.${1:+[$1]} stamp=.venv/installed-${1:-project} python fingerprint
  if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    "$python" -c 'import ensurepip' 2>/dev/null ||
      fail "$python cannot make virtual environments with pip; install its venv package, for example with 'apt install python3-venv'."
    quietly "Making the virtual environment .venv with $("$python" --version)" \
      "$python" -m venv --clear .venv
  fi
  # The path belongs to the fingerprint: an editable install breaks when the checkout is moved.
  fingerprint=$({ pwd; cat pyproject.toml; } | cksum)
  if [[ $(cat "$stamp" 2>/dev/null) != "$fingerprint" ]]; then
    quietly "Installing das_jax and what it needs into .venv (some minutes the first time)" \
      .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$requirement"
    echo "$fingerprint" >"$stamp"
  fi
  PATH="$PWD/.venv/bin:$PATH"
}
