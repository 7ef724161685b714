#include "runtime/text/tokenizer.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/text/tokenizer_parts.h"
#include "runtime/text/utf8.h"

namespace tandem {

struct EncodeScratch {
  Words words;
  WordScratch model;
  std::string normalized, unguarded;
  std::string_view guard;
  std::vector<AddedTokens::Piece> pieces, inner;
};

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

// Text that holds no added token any more.
void Tokenizer::encode_plain(std::string_view text, bool at_start, EncodeScratch& scratch, std::vector<int32_t>& out) const {
  if (!scratch.guard.empty() && text.find(scratch.guard) != std::string_view::npos) {
    scratch.unguarded = without(text, scratch.guard);
    text = scratch.unguarded;
  }
  if (text.empty()) return;  // normalization can leave nothing
  scratch.words.start(text, at_start);
  if (parts_->pre_tokenizer) parts_->pre_tokenizer->apply(scratch.words);
  for (const Word& word : scratch.words.words) {
    if (!word.text.empty()) parts_->model->encode(word.text, scratch.model, out);
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, std::string_view guard) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  if (text.size() >= INT32_MAX) bad_input("text", "has " + std::to_string(text.size()) + " bytes (less than 2 GiB)");
  std::vector<int32_t> out;
  out.reserve(text.size() / 3 + 8);
  if (add_special) out = parts_->post_processor.before;
  EncodeScratch scratch;
  scratch.guard = guard;
  parts_->added.split(text, false, scratch.pieces);
  for (const auto& piece : scratch.pieces) {
    if (piece.id >= 0) {
      out.push_back(piece.id);
      continue;
    }
    std::string_view part = text.substr(piece.begin, piece.end - piece.begin);
    if (parts_->normalizer) {
      scratch.normalized = part;
      parts_->normalizer->apply(scratch.normalized);
      part = scratch.normalized;
    }
    if (!parts_->added.any(true)) {
      encode_plain(part, piece.begin == 0, scratch, out);
      continue;
    }
    parts_->added.split(part, true, scratch.inner);
    for (const auto& inner : scratch.inner) {
      if (inner.id >= 0) {
        out.push_back(inner.id);
      } else {
        encode_plain(part.substr(inner.begin, inner.end - inner.begin), piece.begin == 0 && inner.begin == 0, scratch, out);
      }
    }
  }
  if (add_special) out.insert(out.end(), parts_->post_processor.after.begin(), parts_->post_processor.after.end());
  return out;
}

std::string Tokenizer::guarded(std::string_view text, std::string_view guard) const { return parts_->added.guarded(text, guard); }

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  DecoderStream stream = decoder_stream();
  std::string out;
  for (const int32_t id : ids) {
    if (!has(id) || (skip_special && parts_->added.is_hidden(id))) continue;
    out += stream.feed(piece(id));
  }
  out += stream.flush();
  return out;
}

bool Tokenizer::has(int32_t id) const { return parts_->vocabulary.has(id) || parts_->added.at(id); }

std::string Tokenizer::piece(int32_t id) const {
  if (const AddedToken* token = parts_->added.at(id)) return token->shown;
  return std::string(parts_->vocabulary.piece(id));
}

std::string Tokenizer::token_bytes(int32_t id) const {
  if (const AddedToken* token = parts_->added.at(id)) return token->content;
  return parts_->decoder.bytes(parts_->vocabulary.piece(id));
}

std::optional<int32_t> Tokenizer::find(std::string_view piece) const {
  if (const AddedToken* token = parts_->added.find(piece)) return token->id;
  return parts_->vocabulary.find(piece);
}

bool Tokenizer::is_special(int32_t id) const { return parts_->added.is_special(id); }
bool Tokenizer::is_hidden(int32_t id) const { return parts_->added.is_hidden(id); }
int32_t Tokenizer::size() const { return std::max(parts_->vocabulary.size(), parts_->added.highest() + 1); }
std::optional<int32_t> Tokenizer::bos() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos() const { return parts_->eos; }
std::optional<int32_t> Tokenizer::unknown() const { return parts_->unknown; }
std::optional<int32_t> Tokenizer::padding() const { return parts_->padding; }
DecoderStream Tokenizer::decoder_stream() const { return parts_->decoder.stream(); }

}  // namespace tandem
