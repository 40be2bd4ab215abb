# Sourced by the scripts beside it: what they ask of Google Cloud.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

# The state that our own doing leads to; a dry run pretends that it does.
expected=MISSING
answer='' state='' condition='' initiator=''

# call COMMAND WORD...: runs it, or in a dry run prints it as one would type it.
call() {
  if [[ -n $dry_run ]]; then as_typed "$@"; else "$@" </dev/null; fi
}

as_typed() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

pause() {
  [[ -n $dry_run ]] || sleep "${1:-$poll}"
}

# tpus COMMAND WORD...: gcloud compute tpus COMMAND, in our zone and project. Only the alpha one knows the proxy.
tpus() {
  local track=()
  [[ " $* " != *" --tunnel-through-iap "* ]] || track=(alpha)
  call gcloud "${track[@]}" compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

storage() {
  call gcloud storage "$@" ${project:+"--project=$project"} --quiet
}

# ask PRETENDED COMMAND WORD...: $answer becomes what the command prints; in a dry run, what we pretend it did.
ask() {
  if [[ -n $dry_run ]]; then
    "${@:2}"
    answer=$1
  else
    answer=$("${@:2}" 2>"$scratch/errors")
  fi
}

# explain: what the last command that failed said, once.
explain() {
  cat "$scratch/errors" >&2
  : >"$scratch/errors"
}

# reason: the same, on one line.
reason() {
  tr -s '[:space:]' ' ' <"$scratch/errors"
}

# cause_of TEXT: $cause becomes `capacity`, which comes back; `refused`, which comes to the same request again; or
# `passing`. Google has one status, RESOURCE_EXHAUSTED, for a zone that is full and for a quota that is used up.
cause_of() {
  case ${1,,} in
    *"per minute"* | *"rate limit"*) cause=passing ;;
    *capacity* | *stockout* | *pool_exhausted* | *"enough resources"* | *"high demand"*) cause=capacity ;;
    *quota* | *permission* | *forbidden* | *unauthenticated* | *reauthentication* | *"active account"* | \
      *invalid* | *"bad request"* | *failed_precondition* | *out_of_range* | *unimplemented* | *not_found* | \
      *"not found"* | *unrecognized* | *billing* | *disabled* | *"not supported"*) cause=refused ;;
    *resource_exhausted*) cause=capacity ;;
    *) cause=passing ;;
  esac
}

# ssh_command WORKER VERB WORD...: $ssh becomes the words that call on_vm.sh on one host or all.
ssh_command() {
  local words
  printf -v words ' %q' "${@:2}"
  # Without keep-alives ssh waits for ever for a host that is gone.
  ssh=(tpus tpu-vm ssh "$name" --worker="$1" ${access:+"$access"} --ssh-flag=-oServerAliveInterval=20
    --command="bash on_vm.sh$words")
}

# on_all PRETENDED VERB WORD...: $answer becomes what on_vm.sh prints on all hosts; fails if one could not be asked.
# gcloud repeats a command whose connection broke, up to ten times, while the first may still run: every verb bears it.
on_all() {
  ssh_command all "${@:2}"
  ask "$1" "${ssh[@]}"
}

copy_to_all() {
  ask '' tpus tpu-vm scp "$@" "$name:" --worker=all ${access:+"$access"}
}

# look: $condition becomes the state in Google's words, $initiator who led to it, and $state ready, waiting, lost, failed,
# missing or unknown.
look() {
  describe "$expected" queued-resources 'value(state.state,state.stateInitiator)'
  initiator=${answer#"${answer%%$'\t'*}"} initiator=${initiator#$'\t'} answer=${answer%%$'\t'*}
  if [[ $answer == ACTIVE ]]; then
    describe READY tpu-vm 'value(state)'
    if [[ $answer == MISSING ]]; then answer=VANISHED; fi
  fi
  condition=$answer
  case $condition in
    READY) state=ready ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | VANISHED) state=lost ;;
    FAILED) state=failed ;;
    MISSING) state=missing ;;
    UNKNOWN) state=unknown ;;
    *) state=waiting ;;
  esac
}

# describe PRETENDED KIND FIELDS: $answer becomes the fields, MISSING, or UNKNOWN: a network that is down for an hour
# must not look like a slice that is gone.
describe() {
  if ask "$1" tpus "$2" describe "$name" --format="$3"; then return 0; fi
  if grep -q NOT_FOUND "$scratch/errors"; then answer=MISSING; else answer=UNKNOWN; fi
}

# failure: why the request failed, in the service's words, with the name of google.rpc's code in front.
failure() {
  local code text names=(OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS
    PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE
    DATA_LOSS UNAUTHENTICATED)
  IFS=$'\t' read -r code text < <(tpus queued-resources describe "$name" \
    --format='value(state.failedData.error.code,state.failedData.error.message)' 2>/dev/null) || true
  [[ $code =~ ^[0-9]+$ && -n ${names[code]:-} ]] && code=${names[code]}
  if [[ -n $code$text ]]; then echo "${code:+$code: }$text"; else echo "FAILED, and no reason is given"; fi
}

# check_wanted: ends this script if scripts/tpu_vm/delete ended the slice; fails if that could not be asked.
check_wanted() {
  ask '' storage ls "$wanted" && return
  grep -q "matched no objects" "$scratch/errors" || return 1
  fail "scripts/tpu_vm/delete has ended the slice $name; the same line creates it again and goes on"
}
