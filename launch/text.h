// A model's text side from its files: tokenizer, chat template, end tokens, sampling defaults. Owns what its TextSide points to;
// immutable once opened.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>

#include "rpc/text_side.h"
#include "runtime/model/blueprint.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace tandem {

struct OpenText {
  std::unique_ptr<Tokenizer> tokenizer;  // null: the model comes without one, ids only
  std::unique_ptr<ChatTemplate> chat;    // null: no chats
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();  // bos_token, ... for the template
  TextSide side;                         // borrows the three above
};

// Everything that does not depend on a plan; side.context is the model's, side.max_batch 1, side.compute as asked for.
// A lone config.json and a preset have no tokenizer. Errors: Code::invalid_argument naming file and key.
std::unique_ptr<OpenText> open_text(const Blueprint& blueprint);

// Tokenizer and template alone, of a directory without weights, too. Errors: as above; Code::not_found.
std::unique_ptr<OpenText> open_tokenizer(const std::string& path);

// A GGUF file's vocabulary as the tokenizer takes it.
GgufVocabulary vocabulary_of(GgufText given);

// generation_config.json's sampling: do_sample false or absent means temperature 0; what it leaves out is neutral.
Sampling sampling_defaults(const nlohmann::json& generation_config, const std::string& file);

// The ids that end an answer: generation_config.json's eos_token_id, else config.json's, else the tokenizer's; for a GGUF file also the
// end-of-turn token that its chat template writes. tokenizer and chat may be null.
std::vector<int32_t> end_tokens(const Checkpoint& checkpoint, int64_t vocab, const Tokenizer* tokenizer, const ChatTemplate* chat);

}  // namespace tandem
