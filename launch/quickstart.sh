#!/usr/bin/env bash
# From a fresh Debian 12 machine to a real model's answer, streamed over gRPC from a pipeline of two MPI ranks. A second run does only
# what is missing. --no-install: never touches packages.
set -euo pipefail
cd "$(dirname "$0")/.."
question=${QUESTION:-"In one sentence: what does a GPU do?"}
install=--install
for option in "$@"; do
  case $option in
    --no-install) install= ;;
    -h|--help) echo "usage: launch/quickstart.sh [--no-install]   (QUESTION='...' asks something else)"; exit 0 ;;
    *) echo "error: $option: is no option (only --no-install)" >&2; exit 2 ;;
  esac
done
step() { printf '\n== %s\n' "$*" >&2; }

step "packages: compiler, gRPC, Open MPI and small libraries from Debian"
if [ -n "$install" ]; then tools/packages.sh --install; else tools/packages.sh; fi
step "build (a few minutes the first time)"
[ -f build/cpu/build.ninja ] || cmake --preset cpu >/dev/null
cmake --build --preset cpu --target tandem | tail -n 1
step "model"
model=$(tools/fetch_smollm2.sh)
echo "$model" >&2
tandem=build/cpu/tandem
step "plan over two ranks, before anything is loaded"
"$tandem" plan "$model" --ranks 2 --context 2048 --max-batch 4
step "mpirun -n 2 tandem serve"
log=$(mktemp)
root=()
[ "$(id -u)" = 0 ] && root=(--allow-run-as-root)
setsid mpirun "${root[@]}" --oversubscribe -n 2 "$tandem" serve "$model" --context 2048 --max-batch 4 --listen 127.0.0.1:0 >/dev/null 2>"$log" </dev/null &
server=$!
finish() {
  kill -TERM -- "-$server" 2>/dev/null || true
  for _ in $(seq 50); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
  kill -KILL -- "-$server" 2>/dev/null || true
  rm -f "$log"
}
trap finish EXIT
address=
for _ in $(seq 300); do
  address=$(sed -n 's/^listening on //p' "$log" | head -n 1)
  [ -n "$address" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
[ -n "$address" ] || { echo "error: serve: did not start within 30 s" >&2; cat "$log" >&2; exit 1; }
echo "listening on $address" >&2
step "tandem client: $question"
"$tandem" client "$address" --system "You are a helpful assistant." --prompt "$question" --max-tokens 64
step "done; more: $tandem --help, README.md"
