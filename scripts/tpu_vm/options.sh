# Sourced by the scripts beside it: the options they share, and how they speak.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

SHARED_OPTIONS="
  --name=NAME      the slice; also names its logs in the bucket
  --zone=ZONE      such as us-west4-a
  --project=ID     the Google Cloud project (default: that of gcloud's configuration)
  --bucket=BUCKET  a Cloud Storage bucket, best near the zone and with a hierarchical namespace; every host mounts it,
                   and its directories (runs, corpora, tasks, models and any other) are those of the checkout there
  --internal-ip, --tunnel-through-iap
                   how to reach hosts without external addresses: from their own network, or by Identity-Aware Proxy
  --poll=SECONDS   how often to ask how the slice is (default: 60)
  --dry-run        print every command, run none
  --help           this text"

name='' zone='' project='' bucket='' poll=60 dry_run='' access=''

# fail SENTENCE: for what the user can mend.
fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

# give_up SENTENCE: for what failed.
give_up() {
  echo "${0##*/}: $1" >&2
  exit 1
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
    --internal-ip | --tunnel-through-iap)
      [[ -z $access || $access == "$1" ]] || fail "give one of $access and $1"
      access=$1
      ;;
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
  # As long as this object is in the bucket the slice is wanted: run writes it, delete takes it away.
  wanted=gs://$bucket/logs/$name/wanted
  [[ $poll =~ ^[1-9][0-9]*$ ]] || fail "--poll=$poll is no number of seconds; use 1 or more"
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail "gcloud is not on PATH; install the Google Cloud CLI and run 'gcloud init'"
}
