// tokenizer_config.json, for the readers of tokenizers: named and added tokens, and whether BOS and EOS go around a text. Pure functions.
#pragma once
#include <string>
#include <string_view>

#include "runtime/text/json_field.h"
#include "runtime/text/tokenizer_parts.h"

namespace tandem {

AddedToken read_added_token(const JsonField& field, int32_t id);

struct AddedEnds { bool bos = false, eos = false; };  // what add_bos_token and add_eos_token mean when one of them alone is absent

// `text` is the file's, or empty; tokenizer_file is the tokenizer's own path, beside which it lies. Ids given there stay below id_bound.
// Errors name file and field.
void apply_tokenizer_config(Tokenizer::Parts& parts, std::string_view text, const std::string& tokenizer_file, int64_t id_bound, AddedEnds absent);
nlohmann::json parse_tokenizer_config(std::string_view text, const std::string& tokenizer_file);  // an object, empty without text

}  // namespace tandem
