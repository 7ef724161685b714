// Reads tokenizer.json and tokenizer_config.json. The vocabulary and the merges, nearly all of the file, go past the JSON tree into
// flat storage: that halves the time to start.
#include <algorithm>
#include <array>

#include "kernels/base/error.h"
#include "runtime/text/tokenizer_config.h"
#include "runtime/text/tokenizer_parts.h"
#include "runtime/text/unigram.h"

namespace tandem {
namespace {

using nlohmann::json;

struct MergeList {
  std::string text;
  std::vector<std::array<uint32_t, 3>> spans;  // left = [0, 1), right = [1, 2)
};

class TokenizerReader : public nlohmann::json_sax<json> {
 public:
  TokenizerReader(const std::string& where, Vocabulary& vocabulary) : where_(where), vocabulary_(vocabulary) {}

  json tree;
  MergeList merges;
  std::vector<double> scores;  // of a vocabulary that is a list of [piece, score]
  bool has_vocabulary = false, has_merges = false, has_scores = false;

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override {
    if (mode_ == Mode::scored_pair) return score(static_cast<double>(v));
    if (mode_ == Mode::vocabulary) refuse("model.vocab gives " + key_ + " the id " + std::to_string(v) + " (0 or more)");
    return value(v);
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (mode_ == Mode::scored_pair) return score(static_cast<double>(v));
    if (mode_ != Mode::vocabulary) return value(v);
    if (v > INT32_MAX) refuse("model.vocab gives " + key_ + " the id " + std::to_string(v) + " (less than 2147483648)");
    vocabulary_.add(key_, static_cast<int32_t>(v));
    return true;
  }
  bool number_float(number_float_t v, const string_t&) override { return mode_ == Mode::scored_pair ? score(v) : value(v); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& v) override {
    if (mode_ == Mode::merges) {
      if (v.starts_with("#version")) return true;
      const size_t space = v.find(' ');
      if (space == std::string::npos || v.find(' ', space + 1) != std::string::npos)
        refuse(merge_name() + " is not two pieces with a space between (\"left right\", or [left, right])");
      add_merge(std::string_view(v).substr(0, space), std::string_view(v).substr(space + 1));
      return true;
    }
    if (mode_ == Mode::merge_pair) {
      if (pair_size_ == 2) refuse(merge_name() + " has more than two pieces (two)");
      pair_[pair_size_++] = std::move(v);
      return true;
    }
    if (mode_ == Mode::scored_pair) {
      if (pair_size_++ != 0) refuse(scored_name() + not_scored);
      pair_[0] = std::move(v);
      return true;
    }
    return value(std::move(v));
  }
  bool start_object(size_t) override {
    if (mode_ == Mode::tree && in_model() && key_ == "vocab") {
      mode_ = Mode::vocabulary;
      has_vocabulary = true;
      return true;
    }
    return open(json::object());
  }
  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }
  bool end_object() override {
    if (mode_ == Mode::vocabulary) {
      mode_ = Mode::tree;
      return true;
    }
    return close();
  }
  bool start_array(size_t) override {
    if (mode_ == Mode::tree && in_model() && key_ == "merges") {
      mode_ = Mode::merges;
      has_merges = true;
      return true;
    }
    if (mode_ == Mode::tree && in_model() && key_ == "vocab") {
      mode_ = Mode::scored;
      has_scores = true;
      return true;
    }
    if (mode_ == Mode::merges || mode_ == Mode::scored) {
      mode_ = mode_ == Mode::merges ? Mode::merge_pair : Mode::scored_pair;
      pair_size_ = 0;
      return true;
    }
    return open(json::array());
  }
  bool end_array() override {
    if (mode_ == Mode::merge_pair) {
      if (pair_size_ != 2) refuse(merge_name() + " has less than two pieces (two)");
      add_merge(pair_[0], pair_[1]);
      mode_ = Mode::merges;
      return true;
    }
    if (mode_ == Mode::scored_pair) {
      if (pair_size_ != 2) refuse(scored_name() + not_scored);
      mode_ = Mode::scored;
      return true;
    }
    if (mode_ == Mode::merges || mode_ == Mode::scored) {
      mode_ = Mode::tree;
      return true;
    }
    return close();
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    refuse("is not JSON from byte " + std::to_string(position) + " on (one whole JSON object)");
  }

 private:
  enum class Mode { tree, vocabulary, merges, merge_pair, scored, scored_pair };
  static constexpr const char* not_scored = " is not a piece and its score (two)";

  [[noreturn]] void refuse(const std::string& what) { bad_input(where_, what); }
  std::string merge_name() const { return "model.merges[" + std::to_string(merges.spans.size()) + "]"; }
  std::string scored_name() const { return "model.vocab[" + std::to_string(scores.size()) + "]"; }
  bool score(double v) {
    if (pair_size_++ != 1) refuse(scored_name() + not_scored);
    if (scores.size() >= INT32_MAX) refuse("model.vocab has more than 2147483647 pieces (less)");
    vocabulary_.add(pair_[0], static_cast<int32_t>(scores.size()));
    scores.push_back(v);
    return true;
  }
  bool in_model() const { return open_.size() == 2 && model_depth_ == 2; }

  void add_merge(std::string_view left, std::string_view right) {
    const auto begin = static_cast<uint32_t>(merges.text.size());
    merges.text += left;
    const auto middle = static_cast<uint32_t>(merges.text.size());
    merges.text += right;
    merges.spans.push_back({begin, middle, static_cast<uint32_t>(merges.text.size())});
  }

  json* place(json&& v) {
    if (open_.empty()) {
      tree = std::move(v);
      return &tree;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(v);
    return &slot;
  }
  bool value(json&& v) {
    if (mode_ == Mode::vocabulary) refuse("model.vocab gives " + key_ + " something other than an id (a whole number)");
    if (mode_ == Mode::scored || mode_ == Mode::scored_pair) refuse(scored_name() + not_scored);
    if (mode_ != Mode::tree) refuse(merge_name() + " is not text (two pieces)");
    place(std::move(v));
    return true;
  }
  bool open(json&& v) {
    if (mode_ == Mode::vocabulary) refuse("model.vocab gives " + key_ + " something other than an id (a whole number)");
    if (mode_ == Mode::scored || mode_ == Mode::scored_pair) refuse(scored_name() + not_scored);
    if (mode_ != Mode::tree) refuse(merge_name() + " is not text (two pieces)");
    if (open_.size() >= 64) refuse("is nested deeper than 64 levels (less)");
    const bool model = open_.size() == 1 && v.is_object() && key_ == "model";
    open_.push_back(place(std::move(v)));
    if (model) model_depth_ = 2;
    return true;
  }
  bool close() {
    if (open_.size() == 2) model_depth_ = 0;
    open_.pop_back();
    return true;
  }

  const std::string& where_;
  Vocabulary& vocabulary_;
  Mode mode_ = Mode::tree;
  std::vector<json*> open_;
  size_t model_depth_ = 0;
  std::string key_;
  std::array<std::string, 2> pair_;
  size_t pair_size_ = 0;
};

void read_bpe(const JsonField& model, TokenizerReader& reader, Tokenizer::Parts& parts) {
  if (!reader.has_vocabulary) model.refuse("has no vocab object (pieces to ids)");
  if (!reader.has_merges) model.refuse("has no merges (a list)");
  if (model.has("dropout") && model.at("dropout").value() != 0.0) model.at("dropout").refuse("is set (null)");
  parts.vocabulary.finish(model.file());

  BpeOptions options;
  options.ignore_merges = model.flag("ignore_merges", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.fuse_unknown = model.flag("fuse_unk", false);
  options.unknown = model.text("unk_token", "");
  options.continuing_prefix = model.text("continuing_subword_prefix", "");
  options.word_suffix = model.text("end_of_word_suffix", "");
  if (!options.unknown.empty()) parts.unknown = parts.vocabulary.find(options.unknown);
  const MergeList& merges = reader.merges;
  auto bpe = std::make_unique<Bpe>(parts.vocabulary, std::move(options), merges.spans.size(), model.file());
  const std::string_view text = merges.text;
  for (const auto& [begin, middle, end] : merges.spans) bpe->add_merge(text.substr(begin, middle - begin), text.substr(middle, end - middle));
  parts.model = std::move(bpe);
}

void read_unigram(const JsonField& model, TokenizerReader& reader, Tokenizer::Parts& parts) {
  if (!reader.has_scores || reader.scores.empty()) model.refuse("has no vocab list (of [piece, score])");
  parts.vocabulary.finish(model.file());
  if (model.has("unk_id")) parts.unknown = static_cast<int32_t>(model.integer("unk_id", 0, 0, static_cast<int64_t>(reader.scores.size()) - 1));
  parts.model = std::make_unique<Unigram>(parts.vocabulary, std::move(reader.scores), parts.unknown, model.flag("byte_fallback", false), model.file());
}

struct ModelRow {
  std::string_view type;
  void (*read)(const JsonField& model, TokenizerReader& reader, Tokenizer::Parts& parts);
};
constexpr ModelRow kModels[] = {{"BPE", read_bpe}, {"Unigram", read_unigram}};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config_json, const std::string& where) {
  if (tokenizer_json.size() > (size_t{1} << 30)) bad_input(where, "has more than 1 GiB (less)");
  auto parts = std::make_unique<Parts>();
  TokenizerReader reader(where, parts->vocabulary);
  json::sax_parse(tokenizer_json.begin(), tokenizer_json.end(), &reader);
  const JsonField root(reader.tree, where, "");
  const JsonField model = root.at("model");
  const std::string type = model.text("type", reader.has_merges ? "BPE" : reader.has_scores ? "Unigram" : "of no type");
  const auto row = std::find_if(std::begin(kModels), std::end(kModels), [&](const ModelRow& r) { return r.type == type; });
  if (row == std::end(kModels)) model.refuse("is " + type + " (BPE, Unigram)");
  row->read(model, reader, *parts);

  if (root.has("normalizer")) parts->normalizer = make_normalizer(root.at("normalizer"));
  if (root.has("pre_tokenizer")) parts->pre_tokenizer = make_pre_tokenizer(root.at("pre_tokenizer"));
  if (root.has("post_processor")) parts->post_processor = make_post_processor(root.at("post_processor"));
  if (root.has("decoder")) add_decoder(root.at("decoder"), parts->decoder);

  int64_t id_bound = static_cast<int64_t>(parts->vocabulary.size()) + 65536;
  if (root.has("added_tokens")) {
    const auto tokens = root.at("added_tokens").elements();
    id_bound += static_cast<int64_t>(tokens.size());
    for (const JsonField& field : tokens) {
      AddedToken token = read_added_token(field, static_cast<int32_t>(field.at("id").integer(0, id_bound - 1)));
      // A piece of the model keeps the model's id, whatever the list says.
      if (const auto known = parts->vocabulary.find(token.content)) token.id = *known;
      parts->added.add(std::move(token));
    }
  }
  apply_tokenizer_config(*parts, config_json, where, id_bound, {});
  parts->added.finish(parts->normalizer.get());
  auto tokenizer = std::make_unique<Tokenizer>(std::move(parts));
  for (const auto* side : {&tokenizer->parts_->post_processor.before, &tokenizer->parts_->post_processor.after}) {
    for (const int32_t id : *side) {
      if (!tokenizer->has(id)) bad_input(where, "post_processor names the id " + std::to_string(id) + " (an id of the vocabulary)");
    }
  }
  return tokenizer;
}

}  // namespace tandem
