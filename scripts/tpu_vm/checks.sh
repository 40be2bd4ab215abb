# Sourced by run: what can be found wrong before anything costs money.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # Sourced together, the files share their variables.

# say_wanted: leaves word in the bucket that the slice is wanted, which also shows that the bucket can be written to.
say_wanted() {
  printf '%q ' "${command[@]}" >"$scratch/wanted"
  ask '' storage cp "$scratch/wanted" "$wanted" && return
  explain
  fail "gs://$bucket cannot be written to, for the reason above; create it, or give yourself the right"
}

# check_key: gcloud reaches several hosts at once, and then takes the key from the agent only.
check_key() {
  local key=$HOME/.ssh/google_compute_engine print
  if [[ -n $dry_run || ${type##*-} -le 8 ]]; then return; fi
  [[ -e $key.pub ]] ||
    fail "$type has several hosts, and there is no key for them; make it with 'ssh-keygen -t rsa -f $key', then 'ssh-add $key'"
  print=$(ssh-keygen -l -f "$key.pub" | cut -d ' ' -f 2)
  ssh-add -l 2>/dev/null | grep -qF "$print" ||
    fail "$type has several hosts, and the ssh agent does not hold their key; run 'ssh-add $key' (first 'eval \$(ssh-agent)' if there is no agent)"
}

# What the command reads that is not in the bundle, with the keys that name it, and what the bucket has to have.
inputs=() keys=() directories=(runs corpora tasks models)

# check_configuration: for a command that reads one, that it is valid, and names nothing that a slice would not have.
check_configuration() {
  local root=$here/../.. status=0 kind key path
  [[ ${command[0]##*/} == das-jax && ${command[1]:-} =~ ^(prepare|pretrain)$ ]] || return 0
  (cd "$root" && [[ -x .venv/bin/python ]] || exit 3 && .venv/bin/python "$here/paths.py" "${command[@]:2}") \
    >"$scratch/paths" || status=$?
  case $status in
    0) ;;
    3) say "the configuration is not checked here, because das_jax is not installed in .venv" && return ;;
    *) exit 2 ;;
  esac
  while IFS=$'\t' read -r kind key path; do
    if [[ $kind == output ]]; then
      [[ -z $(git -C "$root" ls-files -- "${path%%/*}") ]] ||
        fail "$key: $path lies in a directory of the checkout, and would be lost with the slice; choose another, such as runs/$name"
      directories+=("${path%%/*}")
    elif [[ $path == *://* ]]; then
      inputs+=("$path") keys+=("$key")
    elif [[ -z $(git -C "$root" ls-files -- ":(glob)$path") ]]; then
      inputs+=("gs://$bucket/$path") keys+=("$key")
    fi
  done <"$scratch/paths"
}

# check_inputs: that all of them are in the bucket, in one question; which is missing is asked only when one is.
check_inputs() {
  local i
  if [[ ${#inputs[@]} == 0 ]] || ask '' storage ls "${inputs[@]}"; then return; fi
  for i in "${!inputs[@]}"; do
    ask '' storage ls "${inputs[i]}" && continue
    grep -q "matched no objects" "$scratch/errors" || break
    # Here `**/` may mean no directory at all; there it means one at least.
    [[ ${inputs[i]} != *'**/'* ]] || ! ask '' storage ls "${inputs[i]//'**/'/}" || continue
    fail "${keys[i]}: there is no ${inputs[i]}; copy what it means there, with 'gcloud storage cp --recursive'"
  done
  explain
  fail "gs://$bucket cannot be read, for the reason above"
}
