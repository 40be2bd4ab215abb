# Sourced by run: how a slice is asked for, and what is done when it is refused, or lost.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

# creations: since a command was last seen to run. failures: since a slice was last granted.
creations=0 failures=0 checked=''

create() {
  local why wait
  if [[ -z $checked ]]; then
    check_key
    check_inputs
    checked=yes
  fi
  if ((creations)); then
    wait=$((poll << (creations > 6 ? 5 : creations - 1)))
    say "waiting $wait seconds before the next request"
    pause "$wait"
    check_wanted || return
  fi
  creations=$((creations + 1))
  say "asking for the ${spot:+spot }slice $name, $type in $zone"
  made=yes started='' begun='' verdict='' next_byte=1
  if ask '' tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot:+--spot} "${passed_on[@]}"; then
    expected=ACTIVE
    return
  fi
  why=$(reason)
  if [[ ${why,,} == *already_exists* || ${why,,} == *"already exists"* ]]; then
    # Ours, if the answer to an earlier request was lost on its way.
    ((failures)) || made=''
    return
  fi
  not_granted "$why"
}

# request_failed: the service took the request, and could not fulfil it.
request_failed() {
  local why
  why=$(failure)
  if [[ -n $made ]]; then not_granted "$why"; else say "an earlier request for $name failed: $why"; fi
  delete_slice
}

# not_granted REASON: a zone that is full may have room later; a request that is refused, once it was granted, may be so
# again, as quota is freed late; all else is tried a few times.
not_granted() {
  local tries=5
  failures=$((failures + 1))
  cause_of "$1"
  case $cause in
    capacity) tries=50 ;;
    refused) [[ -n $ever_begun ]] || tries=1 ;;
  esac
  ((failures < tries)) || give_up "the slice $name was not granted$( ((failures == 1)) || echo ", $failures times"): $1"
  echo "the slice $name was not granted: $1" >&2
}

# replace: clears away a slice that was lost, so that the next look finds none.
replace() {
  if [[ -n $ever_begun && $initiator == USER ]]; then
    fail "somebody ended the slice $name; the same line creates it again and goes on"
  fi
  begun=''
  check_wanted || return
  delete_slice
}
