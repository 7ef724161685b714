#include "launch/options.h"

#include <charconv>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "launch/help.h"
#include "launch/text_file.h"
#include "runtime/model/checkpoint/config.h"

namespace tandem {
namespace {

constexpr size_t kMostChatBytes = 64 << 20;

std::optional<uint64_t> whole_number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// The seed in "synthetic" and "synthetic:SEED"; nothing for any other text.
std::optional<uint64_t> seed_in(std::string_view weights) {
  constexpr std::string_view kPlain = "synthetic", kSeeded = "synthetic:";
  if (weights == kPlain) return 0;
  return weights.starts_with(kSeeded) ? whole_number(weights.substr(kSeeded.size())) : std::nullopt;
}
std::string wrong_weights(const std::string& text) { return "is " + text + " (must be synthetic or synthetic:SEED)"; }

CLI::Validator known_weights() {
  return {[](const std::string& text) { return seed_in(text) ? std::string() : wrong_weights(text); }, ""};
}

CLI::Validator seed_number() {
  const auto check = [](const std::string& text) -> std::string {
    if (whole_number(text)) return "";
    return "is " + text + " (must be a whole number from 0 to " + std::to_string(UINT64_MAX) + ")";
  };
  return {check, ""};
}

}  // namespace

void add_format_options(CLI::App& app, ModelOptions& o) {
  app.add_option("MODEL", o.model, "Hugging Face directory or .gguf file")->required();
  app.add_option("--format", o.format, "format of the weights: keep, nf4, int8, int4, fp8, bf16, ...; in other blocks: nf4:128; per module: nf4,lm_head=bf16")->capture_default_str();
  app.add_flag("--double-quant", o.double_quant, "nf4: quantize the scales too")->group(kMore);
  app.add_option("--weights", o.weights, "synthetic or synthetic:SEED: made-up weights of the model's shapes; token ids only where there is no tokenizer")
      ->check(known_weights())
      ->group(kMore);
}

void add_options(CLI::App& app, ModelOptions& o) {
  add_format_options(app, o);
  app.add_option("--compute", o.compute, "activations in a product: auto, fp32, bf16, fp16, int8")->capture_default_str();
  app.add_option("--kv-dtype", o.kv_dtype, "keys and values: auto, fp32, bf16, fp16")->capture_default_str();
}

void add_options(CLI::App& app, PlaceOptions& o) {
  app.add_option("--device", o.device, "cpu, cuda, cuda:0,1 or auto (GPUs where there are any)")->capture_default_str();
  app.add_option("--ranks", o.ranks, "how many ranks work together (pp x ep x tp)");
  app.add_option("--pp", o.pp, "pipeline stages");
  app.add_option("--tp", o.tp, "ranks that split every layer");
  app.add_option("--ep", o.ep, "ranks that split the experts")->group(kMore);
  app.add_option("--threads", o.threads, "compute threads a rank (default: cores / ranks)");
  app.add_option("--plan", o.plan_file, "run exactly this plan (JSON from `tandem plan -o`)")->group(kMore);
}

void add_options(CLI::App& app, SizeOptions& o) {
  app.add_option("--context", o.context, "tokens a sequence may have (default: the model's, at most 4096)");
  app.add_option("--max-batch", o.max_batch, "sequences at once");
  app.add_option("--chunk", o.chunk, "prompt tokens a step (default: 512, on GPUs 2048)")->group(kMore);
  app.add_option("--page", o.page, "tokens a page of the KV cache")->capture_default_str()->group(kMore);
  app.add_option("--max-queue", o.max_queue, "waiting requests before refusing")->capture_default_str()->group(kMore);
}

void add_options(CLI::App& app, BudgetOptions& o) {
  app.add_option("--max-memory", o.max_memory, "bytes a device may use: 0=20GiB,1=10GiB,cpu=64GiB")->group(kMore);
  app.add_option("--gpus", o.gpus, "plan for these: 2xrtx3090,1xa4000")->group(kMore);
  app.add_option("--cluster", o.cluster, "devices and links as JSON")->group(kMore);
  app.add_option("--reserve", o.reserve, "bytes kept free on each device (default: max of 512MiB and 2 %)")->group(kMore);
  app.add_option("--objective", o.objective, "latency, throughput or capacity")->capture_default_str()->group(kMore);
}

void add_trace_option(CLI::App& app, std::string& file) {
  app.add_option("--trace", file, "write what every rank does, for ui.perfetto.dev or chrome://tracing")->type_name("FILE");
}

void add_options(CLI::App& app, PromptOptions& o) {
  app.add_option("--prompt", o.prompt, "text to continue")->each([&o](const std::string&) { o.has_prompt = true; });
  app.add_option("--prompt-ids", o.prompt_ids, "token ids to continue, nothing added: 1,2,3")->each([&o](const std::string&) { o.has_ids = true; });
  app.add_option("--chat", o.chat_file, "JSON file of messages: [{\"role\": \"user\", \"content\": \"...\"}]")->each([&o](const std::string&) { o.has_chat = true; });
  app.add_option("--system", o.system, "system message; the prompt becomes a user message");
  app.add_flag("--echo", o.ask.echo, "the prompt's text comes before the answer")->group(kMore);
  add_sampling_options(app, o.ask);
}

void add_options(CLI::App& app, ChoiceOptions& o) {
  app.add_option("--n", o.n, "independent answers, one after the other (with --json: one line each)")->check(whole(1, kMostChoices))->group(kMore);
  app.add_option("--best-of", o.best_of, "make so many, show the --n likeliest (mean log-probability of a token)")->check(whole(1, kMostChoices))->group(kMore);
}

void add_sampling_options(CLI::App& app, Ask& a) {
  app.add_option("--temperature", a.temperature, "0 picks the likeliest token");
  app.add_option("--top-k", a.top_k, "keep the K likeliest tokens");
  app.add_option("--top-p", a.top_p, "keep the likeliest tokens of this total probability");
  app.add_option("--min-p", a.min_p, "drop tokens below this share of the likeliest")->group(kMore);
  app.add_option("--typical-p", a.typical_p, "keep tokens of typical surprise of this total probability")->group(kMore);
  app.add_option("--repetition-penalty", a.repetition_penalty, "above 1: divides the logits of tokens seen")->group(kMore);
  app.add_option("--presence-penalty", a.presence_penalty, "subtracted from the logits of tokens generated")->group(kMore);
  app.add_option("--frequency-penalty", a.frequency_penalty, "subtracted once per occurrence")->group(kMore);
  app.add_option("--no-repeat-ngram", a.no_repeat_ngram, "no sequence of N tokens comes twice")->type_name("N")->group(kMore);
  app.add_option_function<std::vector<std::string>>("--logit-bias", [&a](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) a.logit_bias.push_back(parse_bias(text));
  }, "added to the logit of a token: ID=VALUE (repeatable)")->type_name("ID=VALUE")->allow_extra_args(false)->group(kMore);
  app.add_option_function<std::string>("--allowed-ids", [&a](const std::string& text) { a.allowed_ids = parse_ids(text, "--allowed-ids"); },
                                       "only these tokens may be drawn: 1,2,3")->group(kMore);
  app.add_option("--stop", a.stop_strings, "end before this text (repeatable)")->allow_extra_args(false);
  app.add_option("--max-tokens", a.max_tokens, "tokens to generate (default: what the context leaves)");
  app.add_option("--min-tokens", a.min_tokens, "tokens before an end token may come")->group(kMore);
  app.add_flag("--ignore-eos", a.ignore_eos, "go on after the model's end token")->group(kMore);
  app.add_option("--seed", a.seed, "of the random draws (default: a new one, reported)")->check(seed_number());
  app.add_option("--logprobs", a.logprobs, "report log-probabilities of the chosen and the K best tokens")->group(kMore);
}

Arithmetic arithmetic_of(const ModelOptions& o, bool on_gpu) {
  struct Row { std::string_view name; Compute compute; };
  constexpr Row kRows[] = {{"fp32", Compute::fp32}, {"bf16", Compute::bf16}, {"fp16", Compute::fp16}, {"int8", Compute::int8}};
  Arithmetic arithmetic;
  arithmetic.automatic = o.compute == "auto";
  arithmetic.compute = on_gpu ? Compute::bf16 : Compute::fp32;
  bool known = arithmetic.automatic;
  for (const Row& row : kRows) {
    if (row.name != o.compute) continue;
    arithmetic.compute = row.compute;
    known = true;
  }
  if (!known) bad_input("--compute", "is " + o.compute + " (must be auto, fp32, bf16, fp16 or int8)");
  struct KvRow { std::string_view name; KvType type; };
  constexpr KvRow kKvRows[] = {{"fp32", KvType::fp32}, {"bf16", KvType::bf16}, {"fp16", KvType::fp16}};
  arithmetic.kv = o.compute == "fp32" ? KvType::fp32 : on_gpu ? KvType::bf16 : KvType::fp16;
  known = o.kv_dtype == "auto";
  for (const KvRow& row : kKvRows) {
    if (row.name != o.kv_dtype) continue;
    arithmetic.kv = row.type;
    known = true;
  }
  if (!known) bad_input("--kv-dtype", "is " + o.kv_dtype + " (must be auto, fp32, bf16 or fp16)");
  return arithmetic;
}

std::optional<uint64_t> synthetic_seed(const ModelOptions& o) {
  if (o.weights.empty()) return std::nullopt;
  if (const auto seed = seed_in(o.weights)) return seed;
  bad_input("--weights", wrong_weights(o.weights));
}

Blueprint make_blueprint(const ModelOptions& o, bool on_gpu) {
  return make_blueprint(o.model, {o.format, o.double_quant}, arithmetic_of(o, on_gpu), synthetic_seed(o));
}

std::vector<int32_t> parse_ids(const std::string& text, const std::string& option) {
  std::vector<int32_t> ids;
  if (text.empty()) bad_input(option, "is empty (must be token ids, 1,2,3)");
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    part.erase(0, part.find_first_not_of(' '));
    int32_t id = -1;
    const auto [last, error] = std::from_chars(part.data(), part.data() + part.size(), id);
    if (error != std::errc() || last != part.data() + part.size() || id < 0) bad_input(option, "holds '" + part.substr(0, 40) + "' (must be token ids, 1,2,3)");
    ids.push_back(id);
  }
  return ids;
}

CLI::Validator between(double least, double most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && value >= least && value <= most) return "";
    char range[80];
    std::snprintf(range, sizeof range, " (must be a number from %g to %g)", least, most);
    return "is " + text + range;
  };
  return {check, ""};
}

TokenBias parse_bias(const std::string& text) {
  TokenBias bias{-1, 0};
  const char* end = text.data() + text.size();
  const auto id = std::from_chars(text.data(), end, bias.id);
  if (id.ec == std::errc() && id.ptr != end && *id.ptr == '=' && bias.id >= 0) {
    const auto value = std::from_chars(id.ptr + 1, end, bias.value);
    if (value.ec == std::errc() && value.ptr == end) return bias;
  }
  bad_input("--logit-bias", "is '" + text.substr(0, 40) + "' (must be ID=VALUE, such as 13=-5)");
}

CLI::Validator whole(int64_t least, int64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [last, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && last == text.data() + text.size() && value >= least && value <= most) return "";
    return "is " + text + " (must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ")";
  };
  return {check, ""};
}

Objective parse_objective(const std::string& text) {
  if (text == "latency") return Objective::latency;
  if (text == "throughput") return Objective::throughput;
  if (text == "capacity") return Objective::capacity;
  bad_input("--objective", "is " + text + " (must be latency, throughput or capacity)");
}

Ask ask_of(const PromptOptions& o) {
  Ask ask = o.ask;
  const int given = o.has_prompt + o.has_ids + o.has_chat;
  if (given != 1) bad_input("--prompt", given == 0 ? "is missing (one of --prompt, --prompt-ids, --chat)" : "is given twice (one of --prompt, --prompt-ids, --chat)");
  if (o.has_ids) {
    if (!o.system.empty()) bad_input("--system", "is given together with --prompt-ids (it goes with --prompt or --chat)");
    ask.input = parse_ids(o.prompt_ids, "--prompt-ids");
  } else if (o.has_chat) {
    const std::string text = read_text_file(o.chat_file, kMostChatBytes);
    (void)parse_json(text, o.chat_file);  // refuses what is not JSON by file
    auto chat = nlohmann::ordered_json::parse(text);  // templates show members in their order
    ChatInput input;
    if (chat.is_object()) {
      if (!chat.contains("messages")) bad_input(o.chat_file, "has no messages (must be a list, or {\"messages\": [], \"tools\": []})");
      if (chat.contains("tools") && !chat["tools"].empty()) input.tools_json = chat["tools"].dump();
      chat = nlohmann::ordered_json(chat["messages"]);
    }
    if (!chat.is_array()) bad_input(o.chat_file, "is not a list of messages (such as [{\"role\": \"user\", \"content\": \"Hi\"}])");
    if (!o.system.empty()) chat.insert(chat.begin(), {{"role", "system"}, {"content", o.system}});
    input.messages_json = chat.dump();
    ask.input = std::move(input);
  } else if (!o.system.empty()) {
    const nlohmann::json chat = {{{"role", "system"}, {"content", o.system}}, {{"role", "user"}, {"content", o.prompt}}};
    ask.input = ChatInput{chat.dump(), ""};
  } else {
    ask.input = o.prompt;
  }
  return ask;
}

}  // namespace tandem
