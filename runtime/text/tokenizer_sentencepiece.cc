// Builds a Tokenizer from tokenizer.model, SentencePiece's own file: a protobuf message of pieces and settings, of which only what is
// needed is read. It becomes what transformers makes of it: BPE with the merges that the scores imply, or Unigram, behind the file's
// normalization; of tokenizer_config.json add_prefix_space and legacy count too.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/text/precompiled.h"
#include "runtime/text/tokenizer_config.h"
#include "runtime/text/tokenizer_parts.h"
#include "runtime/text/unigram.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

constexpr const char* kSpace = "\xE2\x96\x81";
constexpr size_t kMostBytes = size_t{1} << 30;

struct Field {
  uint32_t number = 0, wire = 0;
  uint64_t value = 0;      // of a number
  std::string_view bytes;  // of everything else
};

// The fields of one protobuf message, in their order.
class Message {
 public:
  Message(std::string_view bytes, const std::string& where) : rest_(bytes), where_(where) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7), 0, {}};
    switch (field.wire) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.bytes = take(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.bytes = take(4);
        return true;
      default:
        refuse();
    }
  }

 private:
  [[noreturn]] void refuse() const { bad_input(where_, "is not a SentencePiece model (a whole file as its trainer writes it)"); }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    refuse();
  }
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) refuse();
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  std::string_view rest_;
  const std::string& where_;
};

enum class PieceType : uint64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
enum class ModelType : uint64_t { unigram = 1, bpe = 2, word = 3, character = 4 };

struct Piece {
  std::string_view text;
  float score = 0;
  PieceType type = PieceType::normal;
};

struct Model {  // defaults as the format's description has them
  std::vector<Piece> pieces;
  ModelType type = ModelType::unigram;
  bool byte_fallback = false, add_dummy_prefix = true;
  std::string_view charsmap;
  int64_t unknown = 0, bos = 1, eos = 2, padding = -1;
};

Piece read_piece(std::string_view bytes, const std::string& where) {
  Piece piece;
  Message message(bytes, where);
  for (Field f; message.next(f);) {
    if (f.number == 1) piece.text = f.bytes;
    if (f.number == 2 && f.wire == 5) std::memcpy(&piece.score, f.bytes.data(), 4);
    if (f.number == 3) piece.type = static_cast<PieceType>(f.value);
  }
  return piece;
}

Model read_model(std::string_view bytes, const std::string& where) {
  Model model;
  Message message(bytes, where);
  for (Field f; message.next(f);) {
    if (f.wire != 2) continue;
    if (f.number == 1) model.pieces.push_back(read_piece(f.bytes, where));
    Message inner(f.bytes, where);
    if (f.number == 2) {
      for (Field g; inner.next(g);) {
        const auto id = static_cast<int64_t>(static_cast<int32_t>(g.value));
        if (g.number == 3) model.type = static_cast<ModelType>(g.value);
        if (g.number == 35) model.byte_fallback = g.value != 0;
        if (g.number == 40) model.unknown = id;
        if (g.number == 41) model.bos = id;
        if (g.number == 42) model.eos = id;
        if (g.number == 43) model.padding = id;
      }
    }
    if (f.number == 3) {
      for (Field g; inner.next(g);) {
        if (g.number == 2) model.charsmap = g.bytes;
        if (g.number == 3) model.add_dummy_prefix = g.value != 0;
      }
    }
  }
  if (model.pieces.empty()) bad_input(where, "is not a SentencePiece model (a whole file as its trainer writes it)");
  if (model.type != ModelType::unigram && model.type != ModelType::bpe) {
    bad_input(where, "trainer_spec.model_type is " + std::to_string(static_cast<uint64_t>(model.type)) + " (1, unigram, or 2, BPE)");
  }
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const std::string name = "pieces[" + std::to_string(i) + "]";
    if (model.pieces[i].text.size() > Unigram::kLongest) bad_input(where, name + " has more than " + std::to_string(Unigram::kLongest) + " bytes (less)");
    if (!is_valid_utf8(model.pieces[i].text)) bad_input(where, name + " is not UTF-8");
    if (std::isnan(model.pieces[i].score)) bad_input(where, name + " has a score that is no number");
  }
  return model;
}

struct Split {
  int32_t left, right;
  float score;
  size_t left_chars, right_chars;
};

// Every way to put a piece together from two others, the highest score first, then the longest left part: transformers' order.
std::unique_ptr<Bpe> make_bpe(const Model& model, const Vocabulary& vocabulary, const std::string& where) {
  std::vector<Split> splits;
  std::vector<Split> local;
  for (const Piece& piece : model.pieces) {
    local.clear();
    const size_t chars = count_utf8(piece.text);
    size_t left_chars = 0;
    for (size_t at = 0; at < piece.text.size();) {
      at += decode_utf8(piece.text, at).length;
      ++left_chars;
      if (at == piece.text.size()) break;
      const auto left = vocabulary.find(piece.text.substr(0, at)), right = vocabulary.find(piece.text.substr(at));
      if (left && right) local.push_back({*left, *right, piece.score, left_chars, chars - left_chars});
    }
    std::stable_sort(local.begin(), local.end(), [](const Split& a, const Split& b) { return a.left != b.left ? a.left < b.left : a.right < b.right; });
    splits.insert(splits.end(), local.begin(), local.end());
  }
  std::stable_sort(splits.begin(), splits.end(), [](const Split& a, const Split& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left_chars != b.left_chars ? a.left_chars > b.left_chars : a.right_chars > b.right_chars;
  });
  BpeOptions options;
  options.byte_fallback = model.byte_fallback;
  options.fuse_unknown = true;
  if (model.unknown >= 0) options.unknown = model.pieces[static_cast<size_t>(model.unknown)].text;
  auto bpe = std::make_unique<Bpe>(vocabulary, std::move(options), splits.size(), where);
  for (const Split& split : splits) bpe->add_merge(vocabulary.piece(split.left), vocabulary.piece(split.right));
  return bpe;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_sentencepiece(std::string_view file, std::string_view config_json, const std::string& where) {
  if (file.size() > kMostBytes) bad_input(where, "has more than 1 GiB (less)");
  const Model model = read_model(file, where);
  const auto count = static_cast<int64_t>(model.pieces.size());
  auto parts = std::make_unique<Parts>();
  for (size_t i = 0; i < model.pieces.size(); ++i) parts->vocabulary.add(model.pieces[i].text, static_cast<int32_t>(i));
  parts->vocabulary.finish(where);
  const auto named = [&](int64_t id, const char* name) -> std::optional<int32_t> {
    if (id < 0) return std::nullopt;
    if (id >= count) bad_input(where, std::string("trainer_spec.") + name + " is " + std::to_string(id) + " (-1 to " + std::to_string(count - 1) + ")");
    return static_cast<int32_t>(id);
  };
  parts->unknown = named(model.unknown, "unk_id");
  parts->bos = named(model.bos, "bos_id");
  parts->eos = named(model.eos, "eos_id");
  parts->padding = named(model.padding, "pad_id");

  const nlohmann::json config = parse_tokenizer_config(config_json, where);
  const JsonField field(config, where, "");
  const bool prefix = field.flag("add_prefix_space", model.add_dummy_prefix);
  const bool everywhere = field.flag("legacy", true);  // a prefix after each special token too, as older transformers have it
  const bool bpe = model.type == ModelType::bpe;
  std::vector<std::unique_ptr<Normalizer>> steps;
  if (!model.charsmap.empty()) steps.push_back(make_precompiled_normalizer(std::string(model.charsmap), where));
  if (bpe && model.byte_fallback) {  // Llama 2, Mistral, Phi-3, Gemma
    if (prefix && everywhere) steps.push_back(make_prepend_normalizer(kSpace));
    if (!prefix || everywhere) steps.push_back(make_replace_normalizer(" ", kSpace));
    if (prefix && !everywhere) parts->pre_tokenizer = make_metaspace(PrependScheme::first, false);
    add_sentence_piece_decoder(parts->decoder, prefix);
  } else {
    steps.push_back(make_strip_normalizer(false, true));
    steps.push_back(make_regex_normalizer(" {2,}", kSpace));
    parts->pre_tokenizer = make_metaspace(!prefix ? PrependScheme::never : everywhere ? PrependScheme::always : PrependScheme::first, true);
    add_metaspace_decoder(parts->decoder, prefix);
  }
  if (!steps.empty()) parts->normalizer = make_normalizer_sequence(std::move(steps));
  if (bpe) {
    parts->model = make_bpe(model, parts->vocabulary, where);
  } else {
    std::vector<double> scores;
    for (const Piece& piece : model.pieces) scores.push_back(piece.score);
    parts->model = std::make_unique<Unigram>(parts->vocabulary, std::move(scores), parts->unknown, model.byte_fallback, where);
  }

  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const Piece& piece = model.pieces[i];
    const bool special = piece.type == PieceType::control || piece.type == PieceType::unknown;
    if (!special && piece.type != PieceType::user_defined) continue;
    AddedToken token{std::string(piece.text), static_cast<int32_t>(i)};
    token.special = special;
    parts->added.add(std::move(token));
  }
  if (parts->bos && bpe) parts->post_processor.before = {*parts->bos};
  apply_tokenizer_config(*parts, config_json, where, count + 65536, {bpe, false});
  parts->added.finish(parts->normalizer.get());
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace tandem
