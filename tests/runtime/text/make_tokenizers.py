"""Writes tests/fixtures/tokenizers: small tokenizers in each family's style, and what transformers and tokenizers make of awkward texts.

    pip install tokenizers==0.22.2 transformers==4.57.6 sentencepiece==0.2.3 protobuf
    python make_tokenizers.py            # the fixtures
    python make_tokenizers.py fuzz N DIR # N random texts a tokenizer, for comparisons that are not kept
"""
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece as spm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, LlamaTokenizerFast
from transformers.convert_slow_tokenizer import GemmaConverter, SpmConverter

HERE = pathlib.Path(__file__).parent
OUT = HERE.parent.parent / "fixtures" / "tokenizers"
SENTENCES = """The quick brown fox jumps over the lazy dog. It's 2024, isn't it?
Ein schöner Tag für Grüße aus Köln; naïve café, déjà vu, señor.
def main(argc, argv):\treturn {"key": [1, 2, 3], 'x': 4.5e-6}  # comment
Съешь же ещё этих мягких французских булок, да выпей чаю.
你好，世界！我们在说中文。今日は良い天気ですね。안녕하세요 세계
नमस्ते दुनिया, यह एक परीक्षण है। مرحبا بالعالم שלום עולם
    for (int i = 0; i < n; ++i) total += values[i] * weights[i];
Once upon a time there was a model that read tokens, one token at a time, and wrote tokens back.
<html><body class="main">Hello, world! &amp; good-bye...</body></html>
\U0001f600 \U0001f469\u200d\U0001f4bb ½ ² ﬁ Ⅷ ① ＡＢＣ ｱｲｳ""".split("\n")
TEXTS = ["", " ", "  ", "a", " a", "a ", "Hello world", "  Hello   world  ", "\n", "\n\n\n", "a\n b\r\n\tc", "tab\tx\t\ty", "It's 2024, isn't it?", "naïve café", "e\u0301 a\u0308\u0301",
         "你好世界", "안녕 세계", "नमस्ते क्षत्रिय", "مرحبا", "שָׁלוֹם", "\U0001f600\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea", "▁", "▁▁ x▁y", "a\x00b", "\u200b\u00a0\u3000x", "½²ﬁⅧ①ＡＢＣ ｱｲｳ",
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "        indented", "x" + " " * 40 + "y", "<s>", "</s> <s>x</s>", "<unk>", "a<unk>b", "<0x41><0x0A>", "<start_of_turn>user\nHi<end_of_turn>\n",
         "<|user|>\nHi <|end|>\n<|assistant|>", "<|user|>   <|end|>  x", "\ufeffBOM", "\ufffd", "\u0600a", "\r\n\u0301", "1234567 3.14 1e-9", "QQQ ¿QQ", "\U00012345\U00012345 q", "<tool>x</tool>", "xwholey whole  whole.",
         "Ⅷ.", "ﬁre", "ﬃ", "A\u030a", "\u0344", "  <s>  x", "Grüße\u00adaus", "\ue000\U0010ffff", "don't DON'T we'LL", "--- *** ###", "http://x.y/z?a=b&c=d#e", "\u1100\u1161\u11a8", "ȺȾ İ ı ſ ß ẞ"]
ALPHABETS = ["abc ", "ab▁ ", " \t\n\r", "0123456789 .", "äöüßéè e\u0301\u0308", "你好世界。 ", "안녕 하세요", "नमस्तेक्ष ", "مرحبا ", "\U0001f600\U0001f469\u200d\U0001f4bb\u2640\ufe0f", "½²ﬁⅧ①ＡＢＣ", "<>/s|unk", "\x00\x01\x7f\u200b\u00a0\u2028\ufeff"]
SPECIAL = ["<s>", "</s>", "<unk>", "<|user|>", "<|end|>", "<start_of_turn>", "\n\n", "▁▁", "<0x0A>", "<tool>", "whole"]


def random_text(rng):
    out = ""
    for _ in range(rng.randint(1, 8)):
        kind = rng.random()
        if kind < 0.5:
            alphabet = rng.choice(ALPHABETS)
            out += "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))
        elif kind < 0.65:
            out += rng.choice(SPECIAL)
        elif kind < 0.85:
            sentence = rng.choice(SENTENCES)
            at = rng.randrange(len(sentence))
            out += sentence[at:at + rng.randint(1, 30)]
        else:
            for _ in range(rng.randint(1, 6)):
                code = rng.randrange(0x110000)
                out += chr(code) if not 0xD800 <= code < 0xE000 else " "
    return out


def train(directory, name, **options):
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 3))
    spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(directory / name), hard_vocab_limit=False, character_coverage=0.99, minloglevel=2, num_threads=1, **options)
    return directory / f"{name}.model"


class Plain:  # what SpmConverter reads of a tokenizer
    def __init__(self, vocab_file, **attributes):
        self.vocab_file = str(vocab_file)
        self.__dict__.update(attributes)


def llama_like(directory, **options):
    defaults = dict(model_type="bpe", vocab_size=560, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True)
    return train(directory, "m", **{**defaults, **options})


def with_model(name, model, config, fast):
    """tokenizer.model + tokenizer_config.json, and the tokenizer.json that transformers makes of them."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("tokenizer.model").write_bytes(model.read_bytes())
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False) + "\n")
    save(name, fast)


def converted(converter):
    """With the unknown token as the tokenizer classes add it."""
    tokenizer = converter.converted()
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tokenizer


def save(name, fast):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    backend = fast if isinstance(fast, Tokenizer) else fast._tokenizer
    compact = json.loads(backend.to_str())
    folder.joinpath("tokenizer.json").write_text(json.dumps(compact, ensure_ascii=False, separators=(",", ":")) + "\n")
    MADE[name] = backend


MADE = {}


def make():
    root = pathlib.Path(tempfile.mkdtemp())
    (root / "a").mkdir()
    model = llama_like(root / "a")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    with_model("llama2", model, config, LlamaTokenizerFast(str(model), add_prefix_space=True))
    with_model("llama2-first", model, {**config, "legacy": False}, LlamaTokenizerFast(str(model), legacy=False, add_prefix_space=True))

    fast = LlamaTokenizerFast(str(model), legacy=False, add_prefix_space=True)
    fast.add_tokens([AddedToken(t, rstrip=True, special=True, normalized=False) for t in ("<|user|>", "<|assistant|>", "<|end|>")], special_tokens=True)
    fast.add_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)], special_tokens=True)
    fast.add_tokens([AddedToken("whole", single_word=True, lstrip=True), AddedToken("<tool>", normalized=True)])
    save("phi3", fast)

    (root / "g").mkdir()
    model = llama_like(root / "g", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>", user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<b>"])
    gemma = converted(GemmaConverter(Plain(model, add_prefix_space=False, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")))
    with_model("gemma", model, {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": False, "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}, gemma)

    (root / "u").mkdir()
    rules = root / "u" / "rules.tsv"  # a table of a few replacements: the published ones are too large to keep here
    pairs = {"ﬁ": "fi", "Ⅷ": "VIII", "½": "1⁄2", "²": "2", "①": "1", "\u3000": " ", "\u00a0": " ", "\t": " ", "\n": " ", "\r": " ", "e\u0301": "é", "A\u030a": "Å", "\u200b": "", "\u00ad": "", "ﬃ": "ffi", "ｱ": "ア"}
    pairs.update({chr(0xFF21 + i): chr(0x41 + i) for i in range(26)})
    rules.write_text("".join(" ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n" for source, target in sorted(pairs.items())))
    model = train(root / "u", "m", model_type="unigram", vocab_size=420, normalization_rule_tsv=str(rules), user_defined_symbols=["<tool>", "</tool>"])
    with_model("unigram", model, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, converted(SpmConverter(Plain(model))))
    (root / "b").mkdir()
    model = train(root / "b", "m", model_type="bpe", vocab_size=420, normalization_rule_tsv=str(rules), user_defined_symbols=["<tool>", "</tool>"])
    with_model("spm-bpe", model, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False}, converted(SpmConverter(Plain(model))))

    pieces = [(p, s) for p, s in json.loads((OUT / "unigram" / "tokenizer.json").read_text())["model"]["vocab"] if not p.startswith("<")]
    vocabulary = [("<unk>", 0.0)] + [(f"<0x{b:02X}>", -20.0 - b / 256) for b in range(256)] + pieces
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()])
    save("unigram-bytes", tokenizer)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    folder = OUT / "opt"  # vocab.json and merges.txt, without tokenizer.json
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    folder.joinpath("vocab.json").write_text(json.dumps(json.loads(folder.joinpath("vocab.json").read_text()), ensure_ascii=False, separators=(",", ":")) + "\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True, "add_prefix_space": False}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config) + "\n")
    MADE["opt"] = GPT2TokenizerFast.from_pretrained(str(folder))._tokenizer


def rows(backend, texts):
    out = []
    for text in texts:
        ids = backend.encode(text).ids
        row = {"text": text, "ids": ids, "decoded": backend.decode(ids, skip_special_tokens=False), "decoded_skip": backend.decode(ids, skip_special_tokens=True)}
        plain = backend.encode(text, add_special_tokens=False).ids
        if plain != ids:
            row["ids_no_special"] = plain
        out.append(row)
    return out


make()
fuzz = sys.argv[1:2] == ["fuzz"]
rng = random.Random(20261127 if fuzz else 7)
for name, backend in MADE.items():
    texts = [random_text(rng) for _ in range(int(sys.argv[2]) if fuzz else 40)]
    target = pathlib.Path(sys.argv[3]) / f"{name}.jsonl" if fuzz else OUT / name / "cases.jsonl"
    if fuzz:
        target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n" for row in rows(backend, texts if fuzz else TEXTS + texts)))
    print(name, len(texts), backend.get_vocab_size())
