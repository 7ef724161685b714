// tandem tokenize: text or a chat to ids, ids to text.
#include <cstdio>

#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/options.h"
#include "launch/terminal.h"
#include "launch/text.h"
#include "rpc/prepare.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

struct Options {
  std::string model, ids;
  PromptOptions prompt;
  bool decode = false, no_special = false, no_generation_prompt = false, skip_special = false, json = false;
};

std::string joined(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

int tokenize(const Options& o) {
  if (o.decode + o.prompt.has_prompt + o.prompt.has_chat != 1) bad_input("--prompt", "is missing or not alone (exactly one of --prompt, --chat and --decode)");
  const auto text = open_tokenizer(o.model);
  if (!text->tokenizer) bad_input(o.model, "has no tokenizer (a directory with tokenizer.json or tokenizer.model, or a .gguf file, is needed)");
  std::vector<int32_t> ids;
  std::string shown;
  if (o.decode) {
    ids = parse_ids(o.ids, "--decode");
    for (const int32_t id : ids) {
      if (!text->tokenizer->has(id)) bad_input("--decode", "holds " + std::to_string(id) + " (must be ids of the vocabulary, 0 to " + std::to_string(text->tokenizer->size() - 1) + ")");
    }
    shown = text->tokenizer->decode(ids, o.skip_special);
  } else {
    if (o.prompt.has_chat && !text->chat) bad_input(o.model, "has no chat template (use --prompt)");
    ids = tokenize_input(ask_of(o.prompt), text->side, !o.no_special, !o.no_generation_prompt, &shown);
    if (o.prompt.has_prompt) shown = text->tokenizer->decode(ids, false);
  }
  if (!o.json) {
    write_now(stdout, (o.decode ? shown : joined(ids)) + "\n");
    return 0;
  }
  nlohmann::ordered_json json;
  json["ids"] = ids;
  json["pieces"] = nlohmann::ordered_json::array();
  for (int32_t id : ids) json["pieces"].push_back(replace_invalid_utf8(text->tokenizer->piece(id)));
  json["text"] = replace_invalid_utf8(shown);
  write_now(stdout, json.dump() + "\n");
  return 0;
}

}  // namespace

Command add_tokenize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* command = app.add_subcommand("tokenize", "Text or a chat to token ids, ids to text");
  command->add_option("MODEL", o.model, "Hugging Face directory or .gguf file")->required();
  auto* prompt = command->add_option("--prompt", o.prompt.prompt, "text to tokenize")->each([&o](const std::string&) { o.prompt.has_prompt = true; });
  auto* chat = command->add_option("--chat", o.prompt.chat_file, "JSON file of messages, through the model's chat template")->each([&o](const std::string&) { o.prompt.has_chat = true; });
  auto* decode = command->add_option("--decode", o.ids, "ids to turn into text: 1,2,3")->each([&o](const std::string&) { o.decode = true; });
  command->add_flag("--no-special", o.no_special, "only the text's own tokens, no BOS")->needs(prompt);
  command->add_flag("--no-generation-prompt", o.no_generation_prompt, "without the beginning of the answer")->needs(chat);
  command->add_flag("--skip-special", o.skip_special, "leave special tokens out of the text")->needs(decode);
  command->add_flag("--json", o.json, "ids, pieces and text as JSON");
  command->footer("Example: tandem tokenize SmolLM2.gguf --prompt 'Hello world' --json");
  return {command, [options] { return tokenize(*options); }};
}

}  // namespace tandem
