#!/usr/bin/env bash
# Sets up a worker of a Cloud TPU, checks the workers against each other and
# starts a module on them. Run it on every worker at once, as often as you like:
#
#   gcloud compute tpus tpu-vm ssh $NAME --zone=$ZONE --worker=all --command \
#     "cd opsd_jax && bash tpu_setup.sh experiments.train \
#        --config=configs/opsd.py --workdir=gs://$BUCKET/opsd"
#
# Without a module it sets up and checks. With --dry_run as its first argument
# it looks at what is there, prints the commands and runs none. It asks nothing,
# uses no sudo, and works in the folder that it lies in. From the environment:
#
#   PYTHON       the only Python to try     (python3.12, python3.11, python3)
#   VENV         the virtual environment    (.venv)
#   MIN_FREE_GB  free disk wanted           (10)
#   TRIES        for the downloads          (5)
#   PAUSE        seconds between them       (10)
#   TIMEOUT      seconds to wait for the other workers (300)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=${VENV:-.venv}
gcsfs=gcsfs==2026.10.1  # reads and writes gs:// paths
dry_run=false
if [[ ${1-} == --dry_run ]]; then dry_run=true && shift; fi

say() { echo "$(hostname): $*" >&2; }
fail() { say "error: $*" && exit 1; }

run() {  # shows a command as one could type it, then runs it
  printf '+' && printf ' %q' "$@" && printf '\n'
  $dry_run || "$@" </dev/null  # what asks a question ends instead of hanging
}

retry() {  # one lost download should not stop a pod
  local try tries=${TRIES:-5}
  for ((try = 1; try <= tries; try++)); do
    if run "$@"; then return; fi
    say "try $try of $tries failed" && sleep "${PAUSE:-10}"
  done
  fail "gave up after $tries tries; does this worker reach pypi.org?"
}

# 1. A Python that the pins allow and that can make virtual environments
python=
for name in ${PYTHON:-python3.12 python3.11 python3}; do
  can='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
  if "$name" -c "$can" 2>/dev/null; then python=$name && break; fi
done
[[ $python ]] || fail "none of ${PYTHON:-python3.12 python3.11 python3} is" \
  "Python 3.11 or newer with its venv module. The pins:
$(grep '^jax==' requirements.txt)
On Ubuntu 22.04, whose own is 3.10, do this on every worker:
  sudo add-apt-repository -y ppa:deadsnakes/ppa
  sudo DEBIAN_FRONTEND=noninteractive apt-get install -y python3.12-venv"

# 2. The pin of jax for that Python: `jax==1.2; python_version >= "3.12"`
minor=$("$python" -c 'import sys; print(sys.version_info.minor)')
jax=$(awk -F '[=; "]+' -v minor="$minor" '/^jax==/ {
  split($5, bound, ".")
  if (($4 == "<") == (minor < bound[2])) print $2
}' requirements.txt)
[[ $jax =~ ^[0-9.]+$ ]] || fail "got '$jax' from requirements.txt," \
  "expected one pin of jax for Python 3.$minor"

# 3. Room for it
free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') * 1024 / 10**9))
wanted=${MIN_FREE_GB:-10}
$dry_run || ((free >= wanted)) || fail "$free GB free in $PWD, expected" \
  "$wanted; clear the disk (~/.cache?) or set MIN_FREE_GB"

# 4. The virtual environment and what is pinned
version='import sys; print(sys.version)'
theirs=$("$venv/bin/python" -c "import pip; $version" 2>/dev/null) || theirs=
if [[ $theirs != "$("$python" -c "$version")" ]]; then
  [[ ! -e $venv || -e $venv/pyvenv.cfg ]] ||
    fail "$venv is there and is no virtual environment; set VENV"
  run "$python" -m venv --clear "$venv"
fi
retry "$venv/bin/python" -m pip install --quiet --no-input \
  --disable-pip-version-check -r requirements.txt "jax[tpu]==$jax" "$gcsfs"

# 5. All workers alike, their TPUs free, the workdir theirs to write
workdir=() last=
for word in "$@"; do
  if [[ $word == --workdir=* ]]; then workdir=("$word"); fi
  if [[ $last == --workdir ]]; then workdir=("--workdir=$word"); fi
  last=$word
done
run export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"  # no TPU is an error
run "$venv/bin/python" -m experiments.check_workers \
  --timeout="${TIMEOUT:-300}" "${workdir[@]}" ||
  fail "a check failed, on this worker or another; nothing was started"

# 6. The module, in place of this script
if (($#)); then run exec "$venv/bin/python" -m "$@"; fi
