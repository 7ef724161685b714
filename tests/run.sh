#!/usr/bin/env bash
# Installs what is missing, builds preset cpu and runs every test; ends with CTest's own line. PRESET=asan and so on for the others.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${PRESET:-cpu}
tools/packages.sh --install
python3 tools/check_layers.py
cmake --preset "$preset" >build-configure.log 2>&1 || { cat build-configure.log; exit 1; }
rm -f build-configure.log
cmake --build --preset "$preset" | tail -n 3
tools/fetch_smollm2.sh >/dev/null || echo "tests that need SmolLM2 will be skipped: it could not be fetched"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ctest --test-dir "build/$preset" --output-on-failure --timeout 300 "$@"
