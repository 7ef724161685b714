"""Writes beams.json: what transformers' beam search makes of gpt2-tiny.

    pip install torch==2.15.0 transformers==4.57.6 safetensors accelerate
    python make_beams.py
"""
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parent / "fixtures" / "gpt2-tiny"
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
expected = json.loads((MODEL / "expected.json").read_text())
whole = json.loads((MODEL / "expected.json").read_text())["prompt_ids"]
greedy = model.generate(torch.tensor([whole]), do_sample=False, max_new_tokens=12, eos_token_id=-1, pad_token_id=0)[0, len(whole):].tolist()
assert greedy == expected["greedy_ids"][:12], "not the model that the fixtures are of"
stops_of_greedy = [[greedy[5]], [greedy[3], greedy[8]]]
rows = []
for stops in ([1], *stops_of_greedy):
    for prompt in (whole, whole[:5]):
        for beams in (2, 4):
            for penalty in (1.0, 0.0, 2.0):
                made = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), num_beams=beams, do_sample=False, max_new_tokens=12, length_penalty=penalty, early_stopping=False, temperature=None,
                                      top_p=None, top_k=None, repetition_penalty=1.0, eos_token_id=stops, pad_token_id=0, output_scores=True, return_dict_in_generate=True)
                ids = made.sequences[0, len(prompt):].tolist()
                ends = [i for i, t in enumerate(ids) if t in stops]
                rows.append({"stops": stops, "prompt_ids": prompt, "beams": beams, "length_penalty": penalty, "ids": ids[:ends[0] + 1] if ends else ids, "score": round(float(made.sequences_scores[0]), 5)})
(HERE / "beams.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
print(len(rows), sum(row["ids"][-1] in row["stops"] for row in rows))
