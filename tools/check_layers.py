#!/usr/bin/env python3
"""Every #include of the project against the table of layers: prints each that breaks it and exits 1."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "sharding", "runtime", "rpc", "launch", "tests", "bench", "tools")

# A folder (the longest that matches) may include itself and what is listed, with everything below it; "*" is all.
BASE, FORMATS, PROGRAM = "kernels/base", "kernels/formats", "kernels/program"
TEXT, MODEL, SERVING = "runtime/text", "runtime/model", "runtime/serving"
SOURCE, MODELS, COMM = "runtime/model/checkpoint", "runtime/model/models", "sharding/comm"
MAY = {
    BASE: (),
    FORMATS: (BASE,),
    PROGRAM: (FORMATS, BASE),
    "kernels": (PROGRAM, FORMATS, BASE),  # cpu, cuda, absent: backends do not see one another
    "kernels/absent": ("kernels/cuda/plan", PROGRAM, FORMATS, BASE),
    "sharding": (PROGRAM, FORMATS, BASE),
    COMM: ("sharding", PROGRAM, FORMATS, BASE),
    TEXT: (BASE,),
    SOURCE: (FORMATS, BASE),
    MODELS: (SOURCE, "sharding", PROGRAM, FORMATS, BASE),
    MODEL: (MODELS, SOURCE, TEXT, "sharding", PROGRAM, FORMATS, BASE),
    # Values and interfaces of the model only: never a device.
    SERVING: (MODEL + "/step.h", MODEL + "/worker.h", TEXT, "sharding", PROGRAM, FORMATS, BASE),
    "rpc": ("runtime", "sharding", BASE),
    "launch": ("kernels", "sharding", "runtime", "rpc"),
    "tests": ("*",),
    "bench": ("*",),
    "tools": ("*",),
}
# Headers of libraries, and the files that may include them (prefixes).
EXTERNAL = [
    (re.compile(r"mpi\.h$"), ("sharding/comm/mpi.", "tests/", "bench/", "launch/")),
    (re.compile(r"nccl\.h$"), ("sharding/comm/nccl.", "tests/", "bench/", "launch/")),
    (re.compile(r"(grpc|grpc\+\+|grpcpp|google/protobuf)/|\.pb\.h$"), ("rpc/", "tests/", "bench/", "tools/", "launch/")),
    (re.compile(r"cuda[a-z_]*\.h$|cub/|cublas|cudnn"), ("kernels/cuda/", "kernels/base/cuda/", "sharding/comm/nccl.", "tests/", "bench/", "launch/")),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def below(path, prefix):
    return prefix == "*" or path == prefix or path.startswith(prefix + "/")


def layer_of(path):
    parts = path.split("/")[:-1]
    while parts and "/".join(parts) not in MAY:
        parts.pop()
    return "/".join(parts)


def wrong(file, header, quoted):
    project = quoted and header.split("/")[0] in FOLDERS
    for pattern, prefixes in EXTERNAL:
        if (not project or ".pb." in header) and pattern.search(header) and not file.startswith(prefixes):
            return "only " + ", ".join(p + ("*" if not p.endswith("/") else "") for p in prefixes) + " may"
    if not project:
        return None
    layer, target = layer_of(file), layer_of(header)
    own = file.rsplit("/", 1)[0] if layer == "kernels" else layer  # backends stay apart
    if (target == own or below(header, own) and layer == "kernels") or any(below(header, allowed) for allowed in MAY[layer]):
        return None
    return f"{own} may include " + (", ".join(MAY[layer]) or "nothing of the project") + " and itself"



def main():
    count, bad = 0, 0
    for folder in FOLDERS:
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cc", ".cu", ".cuh", ".inc")):
            file = path.relative_to(ROOT).as_posix()
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                count += 1
                why = wrong(file, match[2], match[1] == '"')
                if why:
                    bad += 1
                    print(f"{file}:{number}: {line.strip()}  ({why})")
    if bad:
        return 1
    print(f"ok: {count} includes hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
