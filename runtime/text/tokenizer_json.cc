// Reads tokenizer.json and tokenizer_config.json. The vocabulary and the merges, nearly all of the file, go past the JSON tree into
// flat storage: that halves the time to start.
#include <array>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/text/tokenizer_parts.h"

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
  bool has_vocabulary = false, has_merges = false;

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override {
    if (mode_ == Mode::vocabulary) refuse("model.vocab gives " + key_ + " the id " + std::to_string(v) + " (0 or more)");
    return value(v);
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (mode_ != Mode::vocabulary) return value(v);
    if (v > INT32_MAX) refuse("model.vocab gives " + key_ + " the id " + std::to_string(v) + " (less than 2147483648)");
    vocabulary_.add(key_, static_cast<int32_t>(v));
    return true;
  }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
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
    if (mode_ == Mode::merges) {
      mode_ = Mode::merge_pair;
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
    if (mode_ == Mode::merges) {
      mode_ = Mode::tree;
      return true;
    }
    return close();
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    refuse("is not JSON from byte " + std::to_string(position) + " on (one whole JSON object)");
  }

 private:
  enum class Mode { tree, vocabulary, merges, merge_pair };

  [[noreturn]] void refuse(const std::string& what) { bad_input(where_, what); }
  std::string merge_name() const { return "model.merges[" + std::to_string(merges.spans.size()) + "]"; }
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
    if (mode_ != Mode::tree) refuse(merge_name() + " is not text (two pieces)");
    place(std::move(v));
    return true;
  }
  bool open(json&& v) {
    if (mode_ == Mode::vocabulary) refuse("model.vocab gives " + key_ + " something other than an id (a whole number)");
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

AddedToken read_added_token(const JsonField& field, int32_t id) {
  AddedToken token;
  token.content = field.at("content").text();
  token.id = id;
  token.special = field.flag("special", false);
  token.lstrip = field.flag("lstrip", false);
  token.rstrip = field.flag("rstrip", false);
  token.single_word = field.flag("single_word", false);
  token.normalized = field.flag("normalized", !token.special);
  return token;
}

class ConfigApplier {
 public:
  ConfigApplier(Tokenizer::Parts& parts, int64_t id_bound) : parts_(parts), id_bound_(id_bound) {}

  // What transformers does with tokenizer_config.json on top of tokenizer.json.
  void apply(const JsonField& config) {
    if (config.has("added_tokens_decoder")) {
      const JsonField decoder = config.at("added_tokens_decoder");
      if (!decoder.value().is_object()) decoder.refuse("is not an object (ids to tokens)");
      for (const auto& [name, value] : decoder.value().items()) {
        const JsonField field(value, config.file(), "added_tokens_decoder." + name);
        int64_t id = 0;
        if (name.empty() || name.size() > 9 || name.find_first_not_of("0123456789") != std::string::npos ||
            (id = std::stoll(name)) >= id_bound_) {
          field.refuse("has a name that is no id of the vocabulary (0 to " + std::to_string(id_bound_ - 1) + ")");
        }
        AddedToken token = read_added_token(field, static_cast<int32_t>(id));
        if (const auto known = find(token.content)) token.id = *known;
        parts_.added.add(std::move(token));
      }
    }
    for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      if (config.has(name)) add_named(config.at(name));
    }
    for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
      if (!config.has(name)) continue;
      const JsonField list = config.at(name);
      if (list.value().is_array()) {
        for (const JsonField& token : list.elements()) add_named(token);
      } else if (list.value().is_object()) {
        for (const auto& [key, value] : list.value().items()) add_named({value, list.file(), list.path() + "." + key});
      } else {
        list.refuse("is not a list (of tokens)");
      }
    }
    parts_.bos = named(config, "bos_token");
    parts_.eos = named(config, "eos_token");
    parts_.padding = named(config, "pad_token");
    if (const auto unknown = named(config, "unk_token")) parts_.unknown = unknown;
    if (config.value().contains("add_bos_token") || config.value().contains("add_eos_token")) {
      parts_.post_processor = {};
      if (config.flag("add_bos_token", false) && parts_.bos) parts_.post_processor.before = {*parts_.bos};
      if (config.flag("add_eos_token", false) && parts_.eos) parts_.post_processor.after = {*parts_.eos};
    }
  }

 private:
  std::optional<int32_t> find(const std::string& content) const {
    if (const AddedToken* token = parts_.added.find(content)) return token->id;
    return parts_.vocabulary.find(content);
  }
  static std::string content_of(const JsonField& field) { return field.value().is_object() ? field.at("content").text() : field.text(); }
  std::optional<int32_t> named(const JsonField& config, const char* name) const {
    return config.has(name) ? find(content_of(config.at(name))) : std::nullopt;
  }
  void add_named(const JsonField& field) {
    AddedToken token;
    const std::string content = content_of(field);
    if (content.empty()) return;
    if (const AddedToken* known = parts_.added.find(content)) {
      token = *known;  // keeps its flags, becomes special
    } else {
      const int32_t fresh = std::max(parts_.vocabulary.size(), parts_.added.highest() + 1);
      token = field.value().is_object() ? read_added_token(field, 0) : AddedToken{content};
      token.id = parts_.vocabulary.find(content).value_or(fresh);
    }
    token.special = true;
    parts_.added.add(std::move(token));
  }

  Tokenizer::Parts& parts_;
  int64_t id_bound_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config_json, const std::string& where) {
  if (tokenizer_json.size() > (size_t{1} << 30)) bad_input(where, "has more than 1 GiB (less)");
  auto parts = std::make_unique<Parts>();
  TokenizerReader reader(where, parts->vocabulary);
  json::sax_parse(tokenizer_json.begin(), tokenizer_json.end(), &reader);
  const JsonField root(reader.tree, where, "");
  const JsonField model = root.at("model");
  const std::string type = model.text("type", reader.has_merges ? "BPE" : "of no type");
  if (type != "BPE") model.refuse("is " + type + " (BPE)");
  if (!reader.has_vocabulary) model.refuse("has no vocab object (pieces to ids)");
  if (!reader.has_merges) model.refuse("has no merges (a list)");
  if (model.has("dropout") && model.at("dropout").value() != 0.0) model.at("dropout").refuse("is set (null)");
  parts->vocabulary.finish(where);

  BpeOptions options;
  options.ignore_merges = model.flag("ignore_merges", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.fuse_unknown = model.flag("fuse_unk", false);
  options.unknown = model.text("unk_token", "");
  options.continuing_prefix = model.text("continuing_subword_prefix", "");
  options.word_suffix = model.text("end_of_word_suffix", "");
  if (!options.unknown.empty()) parts->unknown = parts->vocabulary.find(options.unknown);
  const MergeList& merges = reader.merges;
  auto bpe = std::make_unique<Bpe>(parts->vocabulary, std::move(options), merges.spans.size(), where);
  const std::string_view text = merges.text;
  for (const auto& [begin, middle, end] : merges.spans)
    bpe->add_merge(text.substr(begin, middle - begin), text.substr(middle, end - middle));
  parts->model = std::move(bpe);

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
  if (!config_json.empty()) {
    const size_t slash = where.rfind('/');
    const std::string config_name = (slash == std::string::npos ? "" : where.substr(0, slash + 1)) + "tokenizer_config.json";
    json config;
    try {
      config = json::parse(config_json.begin(), config_json.end());
    } catch (const json::exception&) {
      bad_input(config_name, "is not JSON (one whole JSON object)");
    }
    const JsonField field(config, config_name, "");
    if (!config.is_object()) field.refuse("is not an object (one JSON object)");
    ConfigApplier(*parts, id_bound).apply(field);
  }
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
