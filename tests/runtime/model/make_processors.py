"""Writes processors.jsonl: what transformers' logits processors leave of random logits, in its order.

    pip install torch==2.15.0 transformers==4.57.6
    python make_processors.py
"""
import json
import pathlib

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as P

VOCAB = 61
PROMPT, GENERATED = [3, 9, 9, 4, 3, 9, 17, 60, 5], [3, 9, 4, 3, 9]
CASES = [
    {}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}, {"repetition_penalty": 1.7}, {"repetition_penalty": 0.6},
    {"no_repeat_ngram": 1}, {"no_repeat_ngram": 2}, {"no_repeat_ngram": 3}, {"no_repeat_ngram": 4}, {"no_repeat_ngram": 20},
    {"bias": {"4": 5.0, "11": -3.5, "60": 8.0}}, {"bias": {"9": -20.0, "3": 2.0}, "repetition_penalty": 1.9}, {"allowed": [1, 3, 9, 33, 60]}, {"allowed": [59, 60], "temperature": 3.0},
    {"allowed": [3, 9, 17, 33, 40], "no_repeat_ngram": 2, "top_p": 0.9}, {"min_tokens": 9, "stop_ids": [60, 17]}, {"min_tokens": 3, "stop_ids": [60, 17]},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram": 3, "bias": {"4": 1.5, "8": -1.0}, "allowed": list(range(2, 55)), "min_tokens": 9, "stop_ids": [4]},
    {"temperature": 0.3, "top_k": 5, "typical_p": 0.5}, {"top_k": 20, "min_p": 0.3}, {"temperature": 2.0, "top_p": 0.3},
]


def processors(case):
    """In the order of GenerationMixin._get_logits_processor."""
    out = LogitsProcessorList()
    if "bias" in case:
        out.append(P.SequenceBiasLogitsProcessor([[[int(i)], v] for i, v in case["bias"].items()]))
    if "repetition_penalty" in case:
        out.append(P.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "no_repeat_ngram" in case:
        out.append(P.NoRepeatNGramLogitsProcessor(case["no_repeat_ngram"]))
    if "min_tokens" in case:
        out.append(P.MinNewTokensLengthLogitsProcessor(len(PROMPT), case["min_tokens"], case["stop_ids"]))
    if "allowed" in case:
        out.append(P.PrefixConstrainedLogitsProcessor(lambda batch, ids: case["allowed"], 1))
    if "temperature" in case:
        out.append(P.TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        out.append(P.TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        out.append(P.TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        out.append(P.MinPLogitsWarper(case["min_p"]))
    if "typical_p" in case:
        out.append(P.TypicalLogitsWarper(case["typical_p"]))
    return out


torch.manual_seed(11)
lines = [json.dumps({"prompt": PROMPT, "generated": GENERATED, "vocab": VOCAB})]
for case in CASES:
    for _ in range(2):
        logits = (torch.randn(VOCAB) * 2.5).round(decimals=4)
        scores = processors(case)(torch.tensor([PROMPT + GENERATED]), logits[None].clone())
        probabilities = torch.softmax(scores[0].double(), -1)
        lines.append(json.dumps({"case": case, "logits": [round(v, 4) for v in logits.tolist()], "probabilities": [float(f"{p:.7g}") for p in probabilities.tolist()]}))
pathlib.Path(__file__).with_name("processors.jsonl").write_text("\n".join(lines) + "\n")
