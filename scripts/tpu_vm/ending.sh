# Sourced by the scripts beside it: how a slice ends, and what is said at every end of a script.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

# made: the slice that there is now was asked for by this script. started: a command runs on it, or `maybe`. touched: there
# may be a slice at all. settled: what is to be said of costs is said. interrupted: by a signal.
made='' started='' touched='' settled='' interrupted=''

delete_slice() {
  say "deleting the slice $name"
  if ! ask '' tpus queued-resources delete "$name" --force; then
    explain
    return 1
  fi
  expected=MISSING made='' started=''
}

# end_slice: deletes the slice, or finds that somebody else has.
end_slice() {
  if delete_slice; then return 0; fi # In a trap, `return` alone would return what the trap found.
  look
  [[ $state == missing ]]
}

# save: completes the bucket and unmounts it on all hosts.
save() {
  local attempt
  say "copying the logs to gs://$bucket/logs/$name and unmounting the bucket"
  for attempt in 1 2 3; do
    if on_all '' save "$bucket" "$name"; then return; fi
    explain
    [[ $attempt == 3 ]] || pause
  done
  return 1
}

# save_and_delete KEEP: deletes the slice when all is in the bucket, unless it is to be kept.
save_and_delete() {
  save || give_up "the slice $name is not deleted, because it could not save"
  [[ -z $1 ]] || return 0
  end_slice
  settled=yes
}

# conclude: whatever ended this script, a slice that it made and that has begun nothing is deleted, and of any other it
# is said what it costs and how to end it.
conclude() {
  local status=$?
  trap '' INT TERM HUP PIPE
  trap - EXIT
  set +e
  if [[ -n $touched && -z $settled && -z $dry_run ]]; then
    [[ -n $interrupted ]] || look
    if [[ -n $made && $started != yes && -z $interrupted && $state != missing ]]; then
      [[ $started != maybe ]] || on_all '' save "$bucket" "$name"
      end_slice && state=missing
    fi
    say_costs 2>&1 || say_costs >&2
  fi
  rm -rf "$scratch"
  exit "$status"
}

say_costs() {
  local where="$name in $zone" ends
  ends="  $(as_typed gcloud compute tpus queued-resources delete "$name" --force --zone="$zone" \
    ${project:+"--project=$project"} --quiet)"
  case $state in
    missing) say "there is no slice $where, and nothing goes on costing" ;;
    ready)
      say "the slice $where goes on costing ($condition); this saves what it has and ends it:
  $(as_typed scripts/tpu_vm/delete --name="$name" --zone="$zone" --bucket="$bucket" ${project:+"--project=$project"} \
        ${access:+"$access"})
and this ends it without saving:
$ends"
      ;;
    waiting) say "the slice $where goes on costing, or will when it is granted ($condition); this ends it:
$ends" ;;
    lost | failed) say "what is left of the slice $where ($condition) uses up quota; this ends it:
$ends" ;;
    *) say "the slice $where may go on costing: how it is could not be asked; this ends it:
$ends" ;;
  esac
}

# interrupt STATUS
interrupt() {
  interrupted=yes
  echo
  say "no longer watching; what there is goes on, and the same line watches it again"
  exit "$1"
}

scratch=$(mktemp -d)
: >"$scratch/errors"
trap conclude EXIT
trap 'interrupt 130' INT
trap 'interrupt 143' TERM
trap 'interrupted=yes; exit 129' HUP
trap 'interrupted=yes; exit 141' PIPE
