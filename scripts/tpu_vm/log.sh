# Sourced by run: the first host's log, without loss and without repetition.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

LOG_BYTES=1000000 next_byte=1 heard=0

# read_log SECONDS: prints what is new in the log, after waiting so long for it; $heard becomes how many bytes.
# An answer is a line `@log FROM BYTES SIZE CHECKSUM BASE64`. gcloud may deliver parts of several answers one after the
# other: the last one counts, if it is whole and begins where we asked.
read_log() {
  local from bytes size sum text
  heard=0
  ssh_command 0 follow "$next_byte" "$LOG_BYTES" "$1"
  ask "@log $next_byte 0 $((next_byte - 1)) $(cksum </dev/null | cut -d ' ' -f 1)" "${ssh[@]}" || return
  read -r from bytes size sum text <<<"${answer##*@log }" || true
  if ! base64 --decode <<<"$text" >"$scratch/log" 2>/dev/null ||
    [[ $from != "$next_byte" || $(cksum <"$scratch/log") != "$sum $bytes" ]]; then
    echo "a part of the log was damaged on its way; asking for it again" >"$scratch/errors"
    return 1
  fi
  cat "$scratch/log"
  next_byte=$((next_byte + bytes)) heard=$bytes
  # A log that is shorter than what was read is another one.
  if ((size < next_byte - 1)); then next_byte=1; fi
}

# finish_log: the rest of it. It is in the bucket too.
finish_log() {
  for _ in {1..1000}; do
    read_log 0 || return 0
    ((heard)) || return 0
  done
}
