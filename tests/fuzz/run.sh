#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for SECONDS (default 10). A crash, a leak, a hang over 2 s or 1 GiB ends it.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-10}
command -v clang++ >/dev/null || { echo "error: clang++: is missing (sudo apt-get install clang libclang-rt-dev)" >&2; exit 1; }
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target fuzz_targets | tail -n 1
for target in safetensors gguf config tokenizer chat_template step; do
  corpus=build/fuzz/corpus/$target
  mkdir -p "$corpus"
  build/fuzz/tests/fuzz/${target}_fuzz -max_total_time="$seconds" -timeout=2 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix="$corpus/" "$corpus" 2>&1 |
    grep -E '^Done|^==|ERROR|SUMMARY' || { echo "error: ${target}_fuzz: see $corpus" >&2; exit 1; }
done
