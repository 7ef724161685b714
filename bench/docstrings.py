#!/usr/bin/env python3
"""Prints the longer docstrings of Python's own modules: an English text that every machine with this Python has.

    bench/docstrings.py --bytes 100000 >text.txt && build/cpu/tandem perplexity MODEL text.txt --context 512 --kv-dtype fp32
"""
import argparse
import ast
import os
import pathlib
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--bytes", type=int, default=100000)
size = parser.parse_args().bytes
parts = []
for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
    tree = ast.parse(path.read_text())
    nodes = [(tree, 400)] + [(n, 700) for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    docs = [(ast.get_docstring(node), least) for node, least in nodes]
    parts += [doc for doc, least in docs if doc and len(doc) > least]
text = "\n\n".join(parts).encode()[:size]
sys.stdout.buffer.write(text.decode(errors="ignore").encode())
