// What a tokenizer does to text before it is cut: the "normalizer" of tokenizer.json. Immutable, thread-safe; apply works on the
// caller's string.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "runtime/text/json_field.h"

namespace tandem {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(std::string& text) const = 0;  // valid UTF-8 in and out
};

std::unique_ptr<Normalizer> make_normalizer(const JsonField& field);         // refuses an unknown type by name
std::unique_ptr<Normalizer> make_unicode_normalizer(std::string_view form);  // "NFC", "NFD", "NFKC", "NFKD"
std::unique_ptr<Normalizer> make_prepend_normalizer(std::string prefix);     // before any text that is not empty
std::unique_ptr<Normalizer> make_replace_normalizer(std::string_view literal, std::string content);
std::unique_ptr<Normalizer> make_regex_normalizer(const std::string& regex, std::string content);
std::unique_ptr<Normalizer> make_strip_normalizer(bool left, bool right);  // white space
std::unique_ptr<Normalizer> make_normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts);

}  // namespace tandem
