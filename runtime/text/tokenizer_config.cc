// What transformers does with tokenizer_config.json on top of the tokenizer's own file.
#include "runtime/text/tokenizer_config.h"

#include "kernels/base/error.h"

namespace tandem {
namespace {

class ConfigApplier {
 public:
  ConfigApplier(Tokenizer::Parts& parts, int64_t id_bound, AddedEnds absent) : parts_(parts), id_bound_(id_bound), absent_(absent) {}

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
    const auto take = [&](const char* name, std::optional<int32_t>& id) {
      if (const auto found = named(config, name)) id = found;
    };
    take("bos_token", parts_.bos);
    take("eos_token", parts_.eos);
    take("pad_token", parts_.padding);
    take("unk_token", parts_.unknown);
    if (config.value().contains("add_bos_token") || config.value().contains("add_eos_token")) {
      parts_.post_processor = {};
      if (config.flag("add_bos_token", absent_.bos) && parts_.bos) parts_.post_processor.before = {*parts_.bos};
      if (config.flag("add_eos_token", absent_.eos) && parts_.eos) parts_.post_processor.after = {*parts_.eos};
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
  AddedEnds absent_;
};

std::string config_name(const std::string& tokenizer_file) {
  const size_t slash = tokenizer_file.rfind('/');
  return (slash == std::string::npos ? "" : tokenizer_file.substr(0, slash + 1)) + "tokenizer_config.json";
}

}  // namespace

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

nlohmann::json parse_tokenizer_config(std::string_view text, const std::string& tokenizer_file) {
  if (text.empty()) return nlohmann::json::object();
  nlohmann::json config = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (config.is_discarded()) bad_input(config_name(tokenizer_file), "is not JSON (one whole JSON object)");
  if (!config.is_object()) bad_input(config_name(tokenizer_file), "is not an object (one JSON object)");
  return config;
}

void apply_tokenizer_config(Tokenizer::Parts& parts, std::string_view text, const std::string& tokenizer_file, int64_t id_bound, AddedEnds absent) {
  const nlohmann::json config = parse_tokenizer_config(text, tokenizer_file);
  ConfigApplier(parts, id_bound, absent).apply({config, config_name(tokenizer_file), ""});
}

}  // namespace tandem
