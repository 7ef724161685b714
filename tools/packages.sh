#!/usr/bin/env bash
# What the project needs from Debian 12, and why. Prints what is missing; with --install, installs it. A second word, fuzz, adds clang.
set -euo pipefail
packages=(
  build-essential          # C++20 compiler (gcc 12) and libc headers
  cmake ninja-build        # build system
  ccache                   # rebuilds in seconds
  pkg-config               # finds the libraries below
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev  # the wire
  libopenmpi-dev openmpi-bin                                               # ranks as processes
  libhwy-dev               # portable vector code
  nlohmann-json3-dev libcli11-dev libspdlog-dev                            # JSON, command line, log
  libpcre2-dev libicu-dev  # tokenizer expressions, Unicode normal forms
  libgtest-dev libgmock-dev iproute2                                       # tests; iproute2: two hosts on one machine
  python3 python3-pip unzip ca-certificates                                # fetches the example model; layer check
)
[ "${2:-}" = fuzz ] && packages+=(clang libclang-rt-14-dev)  # libFuzzer
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
echo "Debian packages that are missing: ${missing[*]}"
[ "${1:-}" = "--install" ] || { echo "install them: sudo apt-get install --no-install-recommends ${missing[*]}"; exit 1; }
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
