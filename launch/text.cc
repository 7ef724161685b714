#include "launch/text.h"

#include <algorithm>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"

namespace tandem {
namespace {

constexpr std::string_view kPreset = "preset:";

std::string generation_file(const Checkpoint& checkpoint) {
  return checkpoint.dialect == Dialect::gguf ? checkpoint.path : checkpoint.path + "/generation_config.json";
}

void open_gguf(OpenText& text, GgufText given, const std::string& path) {
  std::string chat_template = std::move(given.chat_template);
  text.tokenizer = Tokenizer::from_gguf(vocabulary_of(std::move(given)), path);
  const auto piece = [&text](const char* variable, std::optional<int32_t> id) {
    if (id) text.variables[variable] = text.tokenizer->piece(*id);
  };
  piece("bos_token", text.tokenizer->bos());
  piece("eos_token", text.tokenizer->eos());
  piece("unk_token", text.tokenizer->unknown());
  piece("pad_token", text.tokenizer->padding());
  if (!chat_template.empty()) text.chat = std::make_unique<ChatTemplate>(std::move(chat_template), path + ": tokenizer.chat_template");
}

void open_huggingface(OpenText& text, const TextFiles& files, const std::string& path) {
  if (!files.tokenizer_json.empty()) {
    text.tokenizer = Tokenizer::from_json(files.tokenizer_json, files.tokenizer_config_json, path + "/tokenizer.json");
  } else if (!files.tokenizer_model.empty()) {
    text.tokenizer = Tokenizer::from_sentencepiece(files.tokenizer_model, files.tokenizer_config_json, path + "/tokenizer.model");
  } else if (!files.vocab_json.empty() && !files.merges_txt.empty()) {
    text.tokenizer = Tokenizer::from_vocabulary(files.vocab_json, files.merges_txt, files.tokenizer_config_json, path + "/vocab.json");
  } else {
    return;
  }
  const std::string config = path + "/tokenizer_config.json";
  if (!files.tokenizer_config_json.empty()) text.variables = chat_template_variables(files.tokenizer_config_json, config);
  std::string source = pick_chat_template(files.tokenizer_config_json, files.chat_template_jinja, config);
  const std::string where = files.chat_template_jinja.empty() ? config + ": chat_template" : path + "/chat_template.jinja";
  if (!source.empty()) text.chat = std::make_unique<ChatTemplate>(std::move(source), where);
}

void add_id(std::vector<int32_t>& ids, int64_t id) {
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<int32_t>(id));
}

// The tokens with which chat formats end a turn. A GGUF file names only one end token, and some name the end of text.
constexpr std::string_view kTurnEnds[] = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endoftext|>"};

}  // namespace

GgufVocabulary vocabulary_of(GgufText given) {
  return {.tokens = std::move(given.tokens), .types = std::move(given.types), .merges = std::move(given.merges),
          .scores = std::move(given.scores), .model = std::move(given.model), .pre = std::move(given.pre),
          .architecture = std::move(given.architecture),
          .bos = given.bos, .eos = given.eos, .unknown = given.unknown, .padding = given.padding,
          .add_bos = given.add_bos, .add_eos = given.add_eos, .add_space_prefix = given.add_space_prefix};
}

Sampling sampling_defaults(const nlohmann::json& generation_config, const std::string& file) {
  const Config config(generation_config, file);
  const auto number = [&config](const char* key, double least, double most, double neutral) {
    return static_cast<float>(config.number(key, least, most, neutral));
  };
  constexpr double kTiny = 1e-6;
  Sampling sampling;
  sampling.temperature = number("temperature", 0, 100, 1);
  if (!config.boolean("do_sample", false)) sampling.temperature = 0;
  sampling.top_k = static_cast<int32_t>(config.integer("top_k", 0, std::numeric_limits<int32_t>::max(), 0));
  sampling.top_p = number("top_p", kTiny, 1, 1);
  sampling.min_p = number("min_p", 0, 1, 0);
  sampling.typical_p = number("typical_p", kTiny, 1, 1);
  sampling.repetition_penalty = number("repetition_penalty", 0.01, 100, 1);
  sampling.presence_penalty = number("presence_penalty", -100, 100, 0);
  sampling.frequency_penalty = number("frequency_penalty", -100, 100, 0);
  sampling.no_repeat_ngram = static_cast<int32_t>(config.integer("no_repeat_ngram_size", 0, std::numeric_limits<int32_t>::max(), 0));
  return sampling;
}

std::vector<int32_t> end_tokens(const Checkpoint& checkpoint, int64_t vocab, const Tokenizer* tokenizer, const ChatTemplate* chat) {
  constexpr size_t kMost = 64;
  std::vector<int32_t> ids;
  const auto take = [&](const nlohmann::json& object, const std::string& file) {
    if (!object.is_object()) return;
    for (int64_t id : Config(object, file).integers("eos_token_id", 0, vocab - 1, kMost)) add_id(ids, id);
  };
  take(checkpoint.generation_config, generation_file(checkpoint));
  if (ids.empty()) take(checkpoint.config, checkpoint.config_file.empty() ? checkpoint.path : checkpoint.config_file);
  if (ids.empty() && tokenizer && tokenizer->eos() && *tokenizer->eos() < vocab) add_id(ids, *tokenizer->eos());
  if (checkpoint.dialect == Dialect::gguf && tokenizer && chat) {
    for (std::string_view piece : kTurnEnds) {
      const auto id = tokenizer->find(piece);
      if (id && *id < vocab && tokenizer->is_special(*id) && chat->source().find(piece) != std::string::npos) add_id(ids, *id);
    }
  }
  return ids;
}

std::unique_ptr<OpenText> open_tokenizer(const std::string& path) {
  auto text = std::make_unique<OpenText>();
  if (!path.starts_with(kPreset)) {
    TextFiles files = read_text_files(path);
    if (files.gguf) {
      open_gguf(*text, std::move(*files.gguf), path);
    } else {
      open_huggingface(*text, files, path);
    }
  }
  text->side.tokenizer = text->tokenizer.get();
  text->side.chat = text->chat.get();
  text->side.chat_variables = &text->variables;
  return text;
}

std::unique_ptr<OpenText> open_text(const Blueprint& blueprint) {
  const Checkpoint& checkpoint = blueprint.checkpoint;
  const ModelShape& shape = blueprint.model->shape;
  auto text = open_tokenizer(checkpoint.path);
  TextSide& side = text->side;
  side.stop_ids = end_tokens(checkpoint, shape.vocab, text->tokenizer.get(), text->chat.get());
  side.defaults = sampling_defaults(checkpoint.generation_config.is_object() ? checkpoint.generation_config : nlohmann::json::object(),
                                    generation_file(checkpoint));
  side.vocab = static_cast<int32_t>(shape.vocab);
  side.context = shape.context;
  side.model = checkpoint.name;
  side.compute = std::string(name(blueprint.arithmetic.compute));
  side.family = std::string(blueprint.model->family());
  side.format = blueprint.formats.label;
  side.kv_dtype = std::string(name(blueprint.arithmetic.kv));
  side.digest = checkpoint.digest;
  side.layers = shape.layers;
  side.max_batch = 1;
  return text;
}

}  // namespace tandem
