# Sourced by the scripts beside it: the options they share, and what they ask of Google Cloud for one TPU slice.
# shellcheck shell=bash
# shellcheck disable=SC2034  # What is set here is read there.

SHARED_OPTIONS="
  --name=NAME      the slice; also names its logs in the bucket
  --zone=ZONE      such as us-west4-a
  --project=ID     the Google Cloud project (default: that of gcloud's configuration)
  --bucket=BUCKET  a Cloud Storage bucket, best near the zone and with a hierarchical namespace; every host mounts it,
                   and its runs/ and corpora/ are those of the checkout there
  --poll=SECONDS   how often to ask how the slice is (default: 60)
  --dry-run        print every command, run none
  --help           this text"

name='' zone='' project='' bucket='' poll=60 dry_run=''

# fail SENTENCE: for what the user can mend.
fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

say() {
  echo "${dry_run:+# }$1"
}

# assign --KEY=VALUE
assign() {
  local word=${1#--}
  printf -v "${word%%=*}" %s "${word#*=}"
}

# read_shared_option WORD: takes an option that all scripts have, and refuses all others.
read_shared_option() {
  case $1 in
    --name=* | --zone=* | --project=* | --bucket=* | --poll=*) assign "$1" ;;
    --dry-run) dry_run=yes ;;
    --help) usage && exit ;;
    *) fail "$1 is not understood; --help lists the options, which are given as --key=value" ;;
  esac
}

check_shared_options() {
  [[ -n $name ]] || fail "give the slice a name, --name=NAME"
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "--name=$name is no name for a slice; use small letters, digits and hyphens, a letter first"
  [[ -n $zone ]] || fail "say where the slice is to be, --zone=ZONE, such as us-west4-a"
  [[ -n $bucket ]] || fail "say where results are to go, --bucket=BUCKET"
  bucket=${bucket#gs://} bucket=${bucket%/}
  [[ $bucket =~ ^[a-z0-9][-_.a-z0-9]+$ ]] || fail "--bucket=$bucket is no name of a bucket; leave out any path"
  [[ $poll =~ ^[1-9][0-9]*$ ]] || fail "--poll=$poll is no number of seconds; use 1 or more"
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail "gcloud is not on PATH; install the Google Cloud CLI and run 'gcloud init'"
}

# call COMMAND WORD...: runs it, or in a dry run prints it as one would type it.
call() {
  local line
  printf -v line '%q ' "$@"
  if [[ -n $dry_run ]]; then echo "${line% }"; else "$@" </dev/null; fi
}

pause() {
  [[ -n $dry_run ]] || sleep "$poll"
}

# tpus COMMAND WORD...: gcloud compute tpus COMMAND, in our zone and project.
tpus() {
  call gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

# ask PRETENDED COMMAND WORD...: $answer becomes what `tpus` prints; in a dry run, what we pretend it did.
ask() {
  if [[ -n $dry_run ]]; then
    tpus "${@:2}"
    answer=$1
  else
    answer=$(tpus "${@:2}" 2>"$scratch/errors")
  fi
}

# explain: what the last command that failed said, once.
explain() {
  cat "$scratch/errors" >&2
  : >"$scratch/errors"
}

# ssh_command WORKER VERB WORD...: $ssh becomes the words that call on_vm.sh on one host or all.
ssh_command() {
  local words
  printf -v words ' %q' "${@:2}"
  # Without keep-alives ssh waits for ever for a host that is gone.
  ssh=(tpu-vm ssh "$name" --worker="$1" --ssh-flag=-oServerAliveInterval=20 --command="bash on_vm.sh$words")
}

# on_all PRETENDED VERB WORD...: $answer becomes what on_vm.sh prints on all hosts; fails if one could not be asked.
on_all() {
  ssh_command all "${@:2}"
  ask "$1" "${ssh[@]}"
}

copy_to_all() {
  ask '' tpu-vm scp "$@" "$name:" --worker=all
}

# look: $answer becomes the state in Google's words, and $state ready, waiting, lost, missing or unknown.
look() {
  describe "$expected" queued-resources 'value(state.state)'
  if [[ $answer == ACTIVE ]]; then
    describe READY tpu-vm 'value(state)'
    if [[ $answer == MISSING ]]; then answer=PREEMPTED; fi
  fi
  case $answer in
    READY) state=ready ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) state=lost ;;
    MISSING) state=missing ;;
    UNKNOWN) state=unknown ;;
    *) state=waiting ;;
  esac
}

# describe PRETENDED KIND FIELD: $answer becomes the field, MISSING, or UNKNOWN: a network that is down for an hour
# must not look like a slice that is gone.
describe() {
  ask "$1" "$2" describe "$name" --format="$3" && return
  if grep -q NOT_FOUND "$scratch/errors"; then answer=MISSING; else answer=UNKNOWN; fi
}

delete_slice() {
  say "deleting the slice $name"
  if ! ask '' queued-resources delete "$name" --force; then
    explain
    return 1
  fi
  expected=MISSING
}

# save_and_delete KEEP: completes the bucket, then deletes the slice unless it is to be kept; fails if a host could not
# save, and deletes nothing then.
save_and_delete() {
  local attempt
  say "copying the logs to gs://$bucket/logs/$name and unmounting the bucket"
  for attempt in 1 2 3; do
    if on_all '' save "$bucket" "$name"; then break; fi
    explain
    if [[ $attempt == 3 ]]; then
      say "the slice $name is not deleted, because it could not save; to lose what it has not saved:"
      dry_run=yes tpus queued-resources delete "$name" --force
      return 1
    fi
    pause
  done
  if [[ -n $1 ]]; then
    say "the slice $name is kept and goes on costing; scripts/tpu_vm/delete deletes it"
  else
    delete_slice
  fi
}

# The state that our own doing leads to; a dry run pretends that it does.
expected=MISSING
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
