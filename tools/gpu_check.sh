#!/bin/bash
# Is Tandem right and fast on this machine's GPUs? Needs a bundle (tools/bundle.sh) with tandem, serve_bench and, for the kernel tests,
# kernels_cuda_test and sharding_comm_test; Python 3; the fixtures of this checkout. Never stops at the first failure; a table comes last.
#   tools/gpu_check.sh BUNDLE [--quick] [--correctness] [--bench] [--two] [--only REGEX] [--device cuda] [--logs FOLDER]
#     --correctness  kernel tests; tiny checkpoints against transformers, larger ones against the CPU, batches, chunks, repeats
#     --bench        speeds of large models with synthetic weights
#     --two          the same over two GPUs: NCCL, pp, tp and ep, threads and processes
#     --four         over four GPUs: splits both ways at once, processes, a lost rank, speeds
#     --quick        of each a few minutes' worth; without any of the four above: correctness and bench
#     --only REGEX   of these, the parts whose names match
#     --device cpu   for trying this script
# Exit code: 0 all passed, 1 something failed, 2 wrong usage.
set -u

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bundle= quick= correctness= bench= two= four= only= device=cuda logs=
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=1 ;;
    --correctness) correctness=1 ;;
    --bench) bench=1 ;;
    --two) two=1 ;;
    --four) four=1 ;;
    --only) only=${2-}; shift ;;
    --device) device=${2-}; shift ;;
    --logs) logs=${2-}; shift ;;
    -*) usage ;;
    *) [ -z "$bundle" ] || usage; bundle=$1 ;;
  esac
  shift
done
[ -n "$bundle" ] && [ -x "$bundle/run" ] || usage
[ -n "$correctness$bench$two$four" ] || correctness=1 bench=1
fixtures=$(cd "$(dirname "$0")/../tests/fixtures" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
logs=${logs:-$work/logs}
mkdir -p "$logs"
run=$(cd "$bundle" && pwd)/run
both=$device
[ "$device" = cpu ] || both=$device:0,1
export run fixtures work device both

# ---- parts: each with a name, a time limit and a log; what it prints last is its note in the table

failed=0
rows=()
row() { rows+=("$(printf '%-6s %-44s %6s  %s' "$@")"); echo "${rows[-1]}"; }
part() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 log started=$SECONDS code result=ok
  [[ -z $only || $name =~ $only ]] || return 0
  shift 2
  log=$logs/$(echo "$name" | tr -c 'A-Za-z0-9.\n' _).log
  timeout -k 5 "$limit" bash -c '"$@"' part "$@" >"$log" 2>&1
  code=$?
  note=$(grep -v '^$' "$log" | tail -1 | cut -c1-100)
  case $code in
    0) ;;
    124 | 137) result=FAILED note="over $limit s; $note" ;;
    *) result=FAILED ;;
  esac
  [ $result = ok ] || failed=1
  row $result "$name" "$((SECONDS - started)) s" "$note"
  [ $result = ok ] || { echo "---- $log:"; tail -15 "$log" | cut -c1-300; echo "----"; }
  return 0
}

# ---- what parts are made of (in a shell of their own)

tandem() { "$run" tandem "$@"; }
mpi() { "$run" mpirun --allow-run-as-root --oversubscribe --bind-to none "$@"; }

gtest() {  # PROGRAM ARGUMENT...: passed, skipped and failed tests counted; all skipped is a failure
  "$run" "$@" 2>&1 | sed 's/\x1b\[[0-9;]*m//g' | tee "$work/gtest.$$"
  local code=${PIPESTATUS[0]}
  awk '/^\[  PASSED  \]/ {p = $4} /^\[  SKIPPED \] [0-9]/ {s = $4} /^\[  FAILED  \] [0-9]/ {f = $4}
       END {printf "%d passed, %d skipped, %d failed\n", p, s, f; exit p == 0}' "$work/gtest.$$" || code=1
  return "$code"
}

ids() {  # COUNT SEED VOCABULARY: token ids, 1,2,3
  python3 -c 'import random, sys; n, s, v = map(int, sys.argv[1:]); r = random.Random(s); print(",".join(str(r.randrange(v)) for _ in range(n)))' "$@"
}
known() {  # FIXTURE KEY: ids of its expected.json
  python3 -c 'import json, sys; print(",".join(map(str, json.load(open(sys.argv[1] + "/expected.json"))[sys.argv[2]])))' "$fixtures/$1" "$2"
}

# Two .npy files of float32: the largest difference, relative to the largest value of the second.
compare() {  # FILE REFERENCE TOLERANCE
  python3 - "$@" <<'PYTHON'
import array, ast, math, sys
def read(path):
    data = open(path, "rb").read()
    length = int.from_bytes(data[8:10], "little")
    head = ast.literal_eval(data[10:10 + length].decode())
    assert head["descr"] == "<f4" and not head["fortran_order"], path
    values = array.array("f")
    values.frombytes(data[10 + length:])
    return head["shape"], values
(shape, a), (wanted, b) = read(sys.argv[1]), read(sys.argv[2])
if shape != wanted:
    sys.exit(f"shape {shape}, not {wanted}")
if not all(map(math.isfinite, a)):
    sys.exit("holds NaN or infinity")
largest = max(map(abs, b))
worst = max(map(abs, map(float.__sub__, map(float, a), map(float, b)))) / largest
at = max(range(len(a)), key=lambda i: abs(a[i] - b[i]))
cols = shape[1]
same = sum(max(range(r, r + cols), key=a.__getitem__) == max(range(r, r + cols), key=b.__getitem__) for r in range(0, len(a), cols))
print(f"off by {worst:.1e} of the largest (at most {float(sys.argv[3]):.0e}), worst at row {at // cols}; likeliest equal in {same} of {shape[0]} rows")
sys.exit(worst > float(sys.argv[3]))
PYTHON
}

# A tiny checkpoint with float32 arithmetic against what transformers computed: logits, then greedy ids.
against_transformers() {  # MODEL EXPECTED OPTION...
  local model=$1 expected=$2 prompt
  shift 2
  prompt=$(known "$expected" prompt_ids)
  tandem logits "$fixtures/$model" --compute fp32 --prompt-ids "$prompt" -o "$work/$$.npy" "$@" || return 1
  local verdict
  verdict=$(compare "$work/$$.npy" "$fixtures/$expected/expected_logits.npy" 1e-4) || { echo "$verdict"; return 1; }
  greedy "$fixtures/$model" "$prompt" "$(known "$expected" greedy_ids)" --compute fp32 "$@" && echo "$verdict"
}

greedy() {  # MODEL PROMPT WANTED OPTION...
  local model=$1 prompt=$2 wanted=$3 got
  shift 3
  tandem generate "$model" --prompt-ids "$prompt" --max-tokens "$(echo "$wanted" | tr ',' '\n' | wc -l)" --ignore-eos --temperature 0 --json "$@" >"$work/greedy.$$" || return 1
  got=$(python3 -c 'import json, sys; print(",".join(map(str, json.load(open(sys.argv[1]))["token_ids"])))' "$work/greedy.$$")
  [ "$got" = "$wanted" ] && echo "ids equal" || { echo "ids $got, not $wanted"; return 1; }
}

# Any model against this machine's CPU.
against_cpu() {  # MODEL TOLERANCE COMPUTE TOKENS OPTION...
  local model=$1 tolerance=$2 compute=$3 tokens=$4 prompt
  shift 4
  prompt=$(ids "$tokens" 17 500)
  tandem logits $model --device cpu --compute fp32 --prompt-ids "$prompt" -o "$work/cpu.$$.npy" ${format:+--format $format} &&
    tandem logits $model --compute "$compute" --prompt-ids "$prompt" -o "$work/gpu.$$.npy" ${format:+--format $format} "$@" &&
    compare "$work/gpu.$$.npy" "$work/cpu.$$.npy" "$tolerance"
}

# The same prompts twice, and each of them alone: ids equal (float32, so that what differs in the order of sums does not choose).
batches() {  # MODEL OPTION...
  local model=$1
  shift
  rm -f "$work"/answers.*
  python3 -c '
import json, random
r = random.Random(3)
for n in (1, 5, 33, 64, 65, 7, 130, 2, 17, 3): print(json.dumps({"prompt_ids": [r.randrange(500) for _ in range(n)], "max_tokens": 12, "ignore_eos": True, "temperature": 0}))' >"$work/prompts.jsonl"
  for batch in 8 8 1; do
    tandem generate $model --compute fp32 --context 256 --prompts "$work/prompts.jsonl" --max-batch $batch "$@" >"$work/answers.$batch.$((++count))" || return 1
  done
  python3 - "$work"/answers.* <<'PYTHON'
import json, sys
runs = [[json.loads(line)["token_ids"] for line in open(path)] for path in sys.argv[1:]]
bad = [i for i in range(len(runs[0])) if any(run[i] != runs[0][i] for run in runs)]
print(f"{len(runs[0])} prompts, three runs: " + (f"ids differ for {bad}" if bad else "ids equal"))
sys.exit(bool(bad) or len(runs[0]) != 10)
PYTHON
}

twice() {  # MODEL OPTION...: the same bytes
  local model=$1 prompt
  shift
  prompt=$(ids 70 5 500)
  for i in 1 2; do tandem logits $model --prompt-ids "$prompt" -o "$work/twice.$i.npy" "$@" || return 1; done
  cmp "$work/twice.1.npy" "$work/twice.2.npy" && echo "same bytes"
}

# A server in the background: sets pid and address. What it says goes to $work/serve.log.
start_server() {  # MODEL OPTION...
  "$run" tandem serve "$@" --listen 127.0.0.1:0 2>"$work/serve.log" &
  pid=$! address=
  for _ in $(seq 600); do
    address=$(sed -n 's/^listening on //p' "$work/serve.log")
    [ -n "$address" ] && return 0
    kill -0 $pid 2>/dev/null || break
    sleep 0.1
  done
  cat "$work/serve.log"
  return 1
}
stop_server() {
  kill -TERM $pid 2>/dev/null
  wait $pid || { cat "$work/serve.log"; return 1; }
}
asked() {  # WANTED: the client's answer is that, once the model is loaded
  local got
  for _ in $(seq 300); do
    tandem client "$address" --prompt-ids 1,2,3,4,5 --max-tokens 8 --ignore-eos --temperature 0 --json >"$work/client.json" 2>"$work/client.err" && break
    grep -q "is loading" "$work/client.err" || { cat "$work/client.err"; return 1; }
    sleep 0.2
  done
  got=$(python3 -c 'import json, sys; print(",".join(map(str, json.load(open(sys.argv[1]))["token_ids"])))' "$work/client.json")
  [ "$got" = "$1" ] || { echo "ids $got, not $1"; return 1; }
}
alone() { tandem generate "$@" --device "$device" --prompt-ids 1,2,3,4,5 --max-tokens 8 --ignore-eos --temperature 0; }
descendants() { local child; for child in $(pgrep -P "$1"); do echo "$child"; descendants "$child"; done; }
gpu_memory() {  # MiB of all GPUs; 0 without any
  command -v nvidia-smi >/dev/null || { echo 0; return; }
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum + 0 }'
}

# A server, asked by the client: the answer is that of generate.
served() {  # MODEL OPTION...
  local model=$1 wanted code
  shift
  wanted=$(alone $model --compute fp32) && start_server $model --compute fp32 "$@" || return 1
  asked "$wanted"
  code=$?
  stop_server && [ $code = 0 ] && echo "ids equal"
}

# A rank's process is killed (or stopped): the server starts its ranks again and answers as before; in the end no GPU memory is held.
survived() {  # SIGNAL MODEL OPTION...
  local signal=$1 model=$2 wanted worker code=1 before after began
  shift 2
  before=$(gpu_memory)
  wanted=$(alone $model --compute fp32) && start_server $model --compute fp32 "$@" && asked "$wanted" || return 1
  worker=$(for p in $(descendants $pid); do grep -qa worker /proc/$p/cmdline 2>/dev/null && echo $p; done | tail -1)
  [ -n "$worker" ] || { echo "no rank to kill"; stop_server; return 1; }
  began=$(date +%s%N)
  kill -"$signal" "$worker"
  for _ in $(seq 300); do asked "$wanted" >/dev/null 2>&1 && { code=0; break; }; sleep 0.2; done
  [ $code = 0 ] && echo "answers again after $((($(date +%s%N) - began) / 1000000)) ms" || cat "$work/serve.log"
  stop_server || code=1
  after=$(gpu_memory)
  [ "$after" -le "$((before + 64))" ] || { echo "GPU memory: $before MiB before, $after after"; code=1; }
  return $code
}

# 64 clients at once, and a long prompt while they are answered.
crowd() {  # MODEL OPTION...
  local code
  start_server "$@" || return 1
  "$run" serve_bench "$address" 64 64 20 300
  code=$?
  stop_server || code=1
  return $code
}

export -f tandem mpi gtest ids known compare against_transformers greedy against_cpu batches twice
export -f start_server stop_server asked alone descendants gpu_memory served survived crowd

# ---- speeds: a part whose JSON lines become rows of their own

speed() {  # NAME SECONDS OPTION... (of bench)
  local name=$1 limit=$2 log code started=$SECONDS
  [[ -z $only || $name =~ $only ]] || return 0
  shift 2
  log=$logs/bench_$(echo "$name" | tr -c 'A-Za-z0-9.\n' _).log
  timeout -k 5 "$limit" "$run" tandem bench --device "$device" --json "$@" >"$log" 2>"$log.err"
  code=$?
  while IFS= read -r line; do row ok "$name" "" "$line"; done < <(python3 - "$log" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    if not line.startswith("{"): continue
    f = json.loads(line)
    of = f" {100 * f['fraction']:.0f} % of {f['ceiling']:.0f} ({f['ceiling_of']})" if f["ceiling"] else ""
    print(f"{f['case']:<16} {f['value']:10.2f} {f['unit']:<5} [{f['min']:.2f}, {f['max']:.2f}]{of}  {f['compute']}, {f['read_gb_per_second']:.0f} GB/s")
PYTHON
  )
  if [ $code != 0 ]; then
    failed=1
    [ $code = 124 ] || [ $code = 137 ] && echo "over $limit s" >>"$log.err"
    row FAILED "$name" "$((SECONDS - started)) s" "$(grep -v '^$' "$log.err" | tail -1 | cut -c1-100)"
  fi
}

# ---- the parts

check_correctness() {
  local on=(--device "$device") tiny
  [ "$device" = cpu ] || part "kernels" 300 gtest kernels_cuda_test --gtest_brief=1
  part "llama-tiny" 60 against_transformers llama-tiny llama-tiny "${on[@]}"
  part "llama-tiny nf4" 60 against_transformers llama-tiny nf4/llama-tiny-nf4 --format nf4 "${on[@]}"
  part "llama-tiny nf4 double" 60 against_transformers llama-tiny nf4/llama-tiny-nf4-double --format nf4 --double-quant "${on[@]}"
  part "mixtral-tiny" 60 against_transformers mixtral-tiny mixtral-tiny "${on[@]}"
  part "mixtral-tiny nf4" 60 against_transformers mixtral-tiny nf4/mixtral-tiny-nf4 --format nf4 "${on[@]}"
  part "phi3-tiny" 60 against_transformers phi3-tiny phi3-tiny --context 48 "${on[@]}"
  for tiny in mistral qwen2 qwen3 qwen3-moe qwen2-moe gemma2 gpt2 opt; do part "$tiny-tiny" 60 against_transformers $tiny-tiny $tiny-tiny "${on[@]}"; done
  for tiny in gptq/llama-4bit-v1 awq/llama-gemm fp8/llama-blocks int8/llama-int8 bnb/mixed; do part "$tiny" 60 against_transformers $tiny $tiny "${on[@]}"; done
  part "gguf/llama-q4" 60 against_transformers gguf/llama-q4.gguf gguf/llama-q4 "${on[@]}"
  part "gguf/llama-k" 60 against_transformers gguf/llama-k.gguf gguf/llama-k "${on[@]}"
  if [ -z "$quick" ]; then
    for tiny in llama-tied mixtral-top3 opt-after rope/linear rope/yarn rope/llama3; do part "$tiny" 60 against_transformers $tiny $tiny "${on[@]}"; done
    part rope/default 60 against_transformers rope/default rope/default --context 64 "${on[@]}"
    for tiny in llama-tiny mixtral-tiny; do part "gguf/$tiny" 60 against_transformers gguf/$tiny.gguf gguf/$tiny "${on[@]}"; done
    part "llama-tiny in chunks of 7" 60 against_transformers llama-tiny llama-tiny --chunk 7 "${on[@]}"
  fi

  # Real widths, made-up weights: few rows a step, and enough for the products of many rows.
  local small="preset:smollm2-135m --weights synthetic:7"
  format=nf4 part "smollm2-135m nf4, chunk 16" 120 against_cpu "$small" 1e-3 fp32 40 --chunk 16 "${on[@]}"
  format=nf4 part "smollm2-135m nf4, chunk 256" 120 against_cpu "$small" 1e-3 fp32 200 --chunk 256 "${on[@]}"
  format=nf4 part "smollm2-135m nf4, bf16" 120 against_cpu "$small" 5e-2 bf16 200 --chunk 256 "${on[@]}"
  if [ -z "$quick" ]; then
    for f in bf16 q4_0 q8_0; do format=$f part "smollm2-135m $f, bf16" 120 against_cpu "$small" 5e-2 bf16 200 --chunk 256 "${on[@]}"; done
    format=nf4 part "tinyllama-1.1b nf4" 240 against_cpu "preset:tinyllama-1.1b --weights synthetic:7" 1e-3 fp32 100 --chunk 256 "${on[@]}"
    format=q4_k part "tinyllama-1.1b q4_k" 240 against_cpu "preset:tinyllama-1.1b --weights synthetic:7" 1e-3 fp32 100 --chunk 16 "${on[@]}"
  fi
  part "batches" 120 batches "$small --format nf4" "${on[@]}"
  part "twice" 60 twice "$small --format nf4" "${on[@]}"
  part "served" 120 served "$small --format nf4" "${on[@]}"
  part "64 clients" 180 crowd $small --format nf4 --max-batch 32 --context 512 "${on[@]}"
}

check_bench() {
  local name=8B eight="preset:llama-3.1-8b --weights synthetic" cases=load,decode/b1/c128,decode/b8/c128,decode/b32/c128,prefill/2048
  [ "$device" = cpu ] && name=135M eight="preset:smollm2-135m --weights synthetic" cases=load,decode/b1/c32,prefill/64
  if [ -n "$quick" ]; then
    speed "$name nf4 double" 120 $eight --format nf4 --double-quant --cases $cases --tokens 64 --repeat 2
    return
  fi
  speed "$name nf4 double" 200 $eight --format nf4 --double-quant --cases $cases,ttft,decode/b1/c4096 --context 4352
  speed "$name nf4" 150 $eight --format nf4 --cases $cases
  speed "$name bf16" 150 $eight --cases $cases
  [ "$device" = cpu ] && return
  speed "8B q4_0" 150 $eight --format q4_0 --cases $cases
  speed "8x7B nf4 double" 240 preset:mixtral-8x7b --weights synthetic --format nf4 --double-quant --cases $cases
  speed "70B nf4 double" 300 preset:llama-3.1-70b --weights synthetic --format nf4 --double-quant --cases $cases
}

check_two() {
  local on=(--device "$both") split tiny
  if [ "$device" != cpu ]; then
    part "nccl, threads" 180 gtest sharding_comm_test --gtest_brief=1 --gtest_filter='*Nccl*threads*'
    part "nccl, processes" 180 gtest mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 sharding_comm_test --gtest_brief=1 --gtest_filter='*Nccl*mpi*'
    part "peers" 180 gtest kernels_cuda_test --gtest_brief=1 --gtest_filter='*Peers*'
  fi
  part "llama-tiny pp 2" 90 against_transformers llama-tiny llama-tiny --pp 2 "${on[@]}"
  for split in tp ep pp; do part "mixtral-tiny $split 2" 90 against_transformers mixtral-tiny mixtral-tiny --$split 2 "${on[@]}"; done
  for tiny in qwen3 gemma2 qwen2-moe; do part "$tiny-tiny tp 2" 90 against_transformers $tiny-tiny $tiny-tiny --tp 2 "${on[@]}"; done
  part "qwen2-moe-tiny ep 2" 90 against_transformers qwen2-moe-tiny qwen2-moe-tiny --ep 2 "${on[@]}"
  for tiny in gpt2-tiny opt-after gemma2-tiny; do part "$tiny pp 2" 90 against_transformers $tiny $tiny --pp 2 "${on[@]}"; done
  local large="preset:tinyllama-1.1b --weights synthetic:7"
  for split in "--pp 2" "--tp 2"; do
    format=nf4 part "tinyllama-1.1b nf4 $split" 240 against_cpu "$large" 1e-3 fp32 100 --chunk 256 $split "${on[@]}"
  done
  part "served, 2 processes, pp" 180 served "preset:smollm2-135m --weights synthetic:7 --format nf4" --ranks 2 --pp 2 "${on[@]}"
  part "served, 2 processes, tp" 180 served "$large --format nf4" --ranks 2 --tp 2 "${on[@]}"
  for signal in KILL STOP; do
    part "served, a rank's SIG$signal, pp" 120 survived $signal "preset:smollm2-135m --weights synthetic:7 --format nf4" --ranks 2 --pp 2 "${on[@]}"
    part "served, a rank's SIG$signal, tp" 120 survived $signal "$large --format nf4" --ranks 2 --tp 2 "${on[@]}"
  done
  part "64 clients, 2 processes" 180 crowd $large --format nf4 --ranks 2 --pp 2 --max-batch 32 --context 512 "${on[@]}"
  part "mpirun -n 2 generate" 120 mpi -n 2 tandem generate $large --format nf4 --tp 2 --prompt-ids 1,2,3 --max-tokens 8 --ignore-eos "${on[@]}"
  [ "$device" = cpu ] && return
  local cases=load,decode/b1/c128,decode/b8/c128,decode/b32/c128,prefill/2048 nf4="--weights synthetic --format nf4 --double-quant" save=$device
  device=$both
  speed "8B nf4 double tp 2" 150 preset:llama-3.1-8b $nf4 --tp 2 --cases $cases
  speed "8B nf4 double pp 2" 150 preset:llama-3.1-8b $nf4 --pp 2 --cases $cases
  if [ -z "$quick" ]; then
    speed "70B nf4 double tp 2" 300 preset:llama-3.1-70b $nf4 --tp 2 --cases $cases
    speed "70B nf4 double pp 2" 300 preset:llama-3.1-70b $nf4 --pp 2 --cases $cases
    speed "8x7B nf4 double ep 2" 240 preset:mixtral-8x7b $nf4 --ep 2 --cases $cases
  fi
  device=$save
}

check_four() {
  local all=$device split signal large="preset:tinyllama-1.1b --weights synthetic:7" nf4="--weights synthetic --format nf4 --double-quant"
  [ "$device" = cpu ] || all=$device:0,1,2,3
  local on=(--device "$all") cases=load,decode/b1/c128,decode/b32/c128,prefill/2048
  [ "$device" = cpu ] || part "peers of 4" 180 gtest kernels_cuda_test --gtest_brief=1 --gtest_filter='*Peers*'
  for split in "--pp 2 --tp 2" "--pp 2 --ep 2" "--tp 2 --ep 2"; do part "mixtral-tiny $split" 90 against_transformers mixtral-tiny mixtral-tiny $split "${on[@]}"; done
  for split in "--tp 4" "--pp 4" "--pp 2 --tp 2"; do
    format=nf4 part "tinyllama-1.1b nf4 $split" 240 against_cpu "$large" 1e-3 fp32 100 --chunk 256 $split "${on[@]}"
  done
  for split in "--tp 4" "--pp 4" "--pp 2 --tp 2"; do part "served, 4 processes, $split" 180 served "$large --format nf4" --ranks 4 $split "${on[@]}"; done
  for signal in KILL STOP; do part "served, a rank's SIG$signal, --pp 2 --tp 2" 120 survived $signal "$large --format nf4" --ranks 4 --pp 2 --tp 2 "${on[@]}"; done
  part "64 clients, 4 processes" 180 crowd $large --format nf4 --ranks 4 --pp 4 --max-batch 32 --context 512 "${on[@]}"
  [ "$device" = cpu ] && return
  local save=$device
  device=$all
  speed "8B nf4 double tp 4" 150 preset:llama-3.1-8b $nf4 --tp 4 --cases $cases
  speed "8x7B nf4 double tp 4" 150 preset:mixtral-8x7b $nf4 --tp 4 --cases $cases
  speed "70B nf4 double tp 4" 200 preset:llama-3.1-70b $nf4 --tp 4 --cases $cases
  speed "70B nf4 double pp 4" 200 preset:llama-3.1-70b $nf4 --pp 4 --cases load,decode/b1/c128,decode/b128/c128 --max-batch 128
  device=$save
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
[ -n "$correctness" ] && check_correctness
[ -n "$two" ] && check_two
[ -n "$four" ] && check_four
[ -n "$bench" ] && check_bench

echo
echo "==== $("$run" tandem --version 2>/dev/null | head -1), $device"
printf '%s\n' "${rows[@]}"
[ $failed = 0 ] && echo "all passed" || echo "FAILED: $(printf '%s\n' "${rows[@]}" | grep -c '^FAILED')"
exit $failed
