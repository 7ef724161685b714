"""Writes components.json and jinja_cases.json: what tokenizers 0.23.3, Jinja2 3.1.6 and transformers 5.23.0 make of small cases.

    pip install tokenizers==0.23.3 transformers==5.23.0 jinja2==3.1.6
    python make_cases.py
"""
import json
import pathlib

from tokenizers import Regex, decoders as D, normalizers as N, pre_tokenizers as P
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ["", " ", "Hello, wörld! It's 2024.", "  a  b\t\n c ", "abab ab-cd_ef", "x½² Ⅷ٣٤ ½", "你好 世界▁x ▁", "I'M we'LL it'ſ ſ", "a\u0301e\u0301 é ﬁ İı ß ΑΣ",
         "a\u180eb\u200bc\u00a0d\u3000e\x85f", "1234567 12ab34", "--a--b--", "<<a>> \U0001f999\U0001f469\u200d\U0001f680", "\r\n\r\n x\n\ny  \n", "हिन्दी नमस्ते"]


def pre_tokenizers():
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    yield from (P.Whitespace(), P.WhitespaceSplit(), P.BertPreTokenizer(), P.Digits(True), P.Digits(False), P.CharDelimiterSplit("-"), P.FixedLength(3))
    yield from (P.Punctuation(b) for b in behaviors)
    yield from (P.Metaspace("▁", scheme, split) for scheme in ("always", "first", "never") for split in (True, False))
    yield from (P.ByteLevel(prefix, regex) for prefix in (True, False) for regex in (True, False))
    yield from (P.Split(pattern, b, invert) for pattern in ("ab", Regex(r"\w+"), Regex(r"[^\s\w]+")) for b in behaviors for invert in (False, True))
    for regex in (GPT2, LLAMA3, r"\d{1,2}+", r"\h+", r"(?m:a.b)", r"$", r"\b", r"x*", r"(?=b)", r"[\w-]+", r"\s+$", r"\p{L}++|.", r"[\u4e00-\u9fff]+"):
        yield P.Split(Regex(regex), "isolated", False)
    yield P.Sequence([P.Digits(True), P.ByteLevel(False)])
    yield P.Sequence([P.Split(Regex(LLAMA3), "isolated"), P.ByteLevel(False, use_regex=False)])


def normalizers():
    yield from (N.NFC(), N.NFD(), N.NFKC(), N.NFKD(), N.Lowercase(), N.Prepend("▁"), N.Replace(" ", "▁"), N.Replace(Regex(r"\s+"), "_"), N.Replace("ab", ""))
    yield from (N.Strip(left, right) for left in (True, False) for right in (True, False))
    yield from (N.StripAccents(), N.ByteLevel(), N.BertNormalizer(), N.BertNormalizer(False, False, False, False), N.BertNormalizer(True, True, True, False))
    yield N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])


PIECES = [["▁Hello", "▁w", "<0xE4>", "<0xBD>", "<0xA0>", "!"], ["<0xE4>", "<0xBD>", "a", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>", "<0xFF>"], ["▁▁a", "▁", "b▁"],
          ["Ġhello", "Ġw", "Ã", "¶", "r", "ld", "not mapped ▁", "ðŁ"], ["ab</w>", "c", "d</w>"], ["a", "ba", "ab", "aab"], ["  x", " y ", " "], [], ["<0x4", "1>", "<0x41>", "<0xZZ>"]]


def decoders():
    yield from (D.ByteLevel(), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0), D.Strip(" ", 0, 1), D.Strip("a", 1, 1), D.Replace("▁", " "), D.Replace("ab", "-"))
    yield from (D.Replace(Regex("[ab]+"), "."), D.BPEDecoder(), D.BPEDecoder("a"))
    yield from (D.Metaspace("▁", scheme) for scheme in ("always", "first", "never"))
    yield D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    yield D.Sequence([D.Fuse(), D.Replace("ab", "-"), D.Strip(" ", 1, 1)])
    yield D.Sequence([D.ByteFallback(), D.Metaspace(), D.Strip("b", 0, 2)])


def spec(component):
    return json.loads(component.__getstate__())


def write(name, rows):
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / name).write_text("[\n" + text + "\n]\n")
    print(name, len(rows))


def components():
    rows = []
    for p in pre_tokenizers():
        rows.append({"pre_tokenizer": spec(p), "cases": [[t, [w for w, _ in p.pre_tokenize_str(t)] if t else []] for t in TEXTS]})
    for n in normalizers():
        rows.append({"normalizer": spec(n), "cases": [[t, n.normalize_str(t)] for t in TEXTS]})
    for d in decoders():
        cases = []
        for pieces in PIECES:
            try:
                cases.append([pieces, d.decode(pieces)])
            except BaseException:  # the library panics where a piece is shorter than what is stripped
                pass
        rows.append({"decoder": spec(d), "cases": cases})
    return rows


def jinja_cases():
    context = {"d": {"a": 1, "b": {"c": [1, "x"]}}, "l": [{"n": 1}, {"n": 2}, {"n": 2}]}
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rows = [{"messages": messages, "variables": context}]
    for source in json.loads((HERE / "jinja_sources.json").read_text()):
        row = {"source": source}
        try:
            row["text"] = _compile_jinja_template(source).render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **context)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


write("components.json", components())
write("jinja_cases.json", jinja_cases())
