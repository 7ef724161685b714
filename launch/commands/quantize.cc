// tandem quantize: a checkpoint in another format.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "launch/commands/commands.h"
#include "launch/options.h"
#include "launch/progress.h"
#include "launch/terminal.h"
#include "launch/text.h"
#include "runtime/model/checkpoint/storage.h"
#include "runtime/model/requantize.h"
#include "runtime/text/gguf_tokenizer_json.h"
#include "sharding/cluster.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;

struct Options {
  ModelOptions model;
  std::string output, shard_size = "5GB";
  int threads = 0;
  bool json = false;
};

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return name.ends_with(end); });
}

// Tokenizer, template, generation settings, licence: what stands beside the weights and is about the model, not about how it is stored.
std::vector<OutputFileText> files_beside(const Checkpoint& checkpoint) {
  std::vector<OutputFileText> files;
  std::error_code error;
  if (checkpoint.dialect == Dialect::gguf) {
    if (!checkpoint.generation_config.empty()) files.push_back({"generation_config.json", checkpoint.generation_config.dump(2) + "\n"});
    GgufText text = read_text_files(checkpoint.path).gguf.value_or(GgufText{});
    if (text.tokens.empty()) return files;
    const std::string chat_template = text.chat_template;
    TokenizerFiles made = gguf_tokenizer_files(vocabulary_of(std::move(text)), chat_template, checkpoint.path);
    if (made.tokenizer_json.empty()) {
      std::fprintf(stderr, "note: %s: its tokenizer is not written (byte-level ones are; take tokenizer.json from the model it was made from)\n", checkpoint.path.c_str());
      return files;
    }
    files.push_back({"tokenizer.json", std::move(made.tokenizer_json)});
    files.push_back({"tokenizer_config.json", std::move(made.tokenizer_config_json)});
    return files;
  }
  if (!fs::is_directory(checkpoint.path, error)) return files;  // made-up weights of a preset
  for (const auto& entry : fs::directory_iterator(checkpoint.path, error)) {
    const std::string name = entry.path().filename().string();
    const bool of_weights = name == "config.json" || ends_with_any(name, {".index.json"}) || name.starts_with("adapter_") || name.starts_with("quant");
    const bool wanted = ends_with_any(name, {".json", ".jinja", ".txt", ".model", ".tiktoken"}) || name.starts_with("LICENSE") || name.starts_with("NOTICE");
    if (of_weights || !wanted || name.starts_with(".") || !fs::is_regular_file(entry.path(), error)) continue;
    files.push_back({name, read_text(entry.path())});
  }
  if (error) bad_input(checkpoint.path, "cannot be listed: " + error.message());
  std::sort(files.begin(), files.end(), [](const OutputFileText& a, const OutputFileText& b) { return a.name < b.name; });
  return files;
}

// When the weights' files were last changed: other files are other work.
int64_t last_change(const std::string& path) {
  std::error_code error;
  const auto of = [&](const fs::path& file) { return static_cast<int64_t>(fs::last_write_time(file, error).time_since_epoch().count()); };
  if (!fs::is_directory(path, error)) return fs::exists(path, error) ? of(path) : 0;
  int64_t latest = 0;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") latest = std::max(latest, of(entry.path()));
  }
  return latest;
}

void check_target(const Options& o) {
  if (o.output.ends_with(".gguf")) bad_input("-o", "is " + o.output + " (GGUF files are not written: give a folder for a Hugging Face checkpoint)");
  std::error_code error;
  if (fs::exists(o.output, error) && fs::exists(o.model.model, error) && fs::equivalent(o.output, o.model.model, error))
    bad_input("-o", "is " + o.output + ", the model itself (must be another folder)");
}

int quantize(const Options& o) {
  check_target(o);
  const uint64_t shard_bytes = parse_bytes(o.shard_size, "--shard-size");
  if (shard_bytes < 1) bad_input("--shard-size", "is " + o.shard_size + " (must be at least a byte, as 5GB)");
  const Blueprint blueprint = make_blueprint(o.model, false);
  const OutputPlan plan = plan_output(blueprint, shard_bytes);
  RequantizeOptions options;
  options.folder = o.output;
  options.threads = o.threads > 0 ? o.threads : allowed_cores();
  std::error_code error;
  options.job = {{"model", fs::weakly_canonical(o.model.model, error).string()}, {"digest", blueprint.checkpoint.digest}, {"changed", last_change(o.model.model)},
                 {"format", o.model.format}, {"double_quant", o.model.double_quant}, {"weights", o.model.weights}, {"shard_size", shard_bytes}, {"made_by", TANDEM_VERSION}};
  options.files = files_beside(blueprint.checkpoint);

  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of write()
  const auto began = std::chrono::steady_clock::now();
  Requantized done;
  {
    Progress progress("quantizing", 1);
    const auto lane = progress.lane(0);
    done = requantize(blueprint, plan, options, [&](const LoadProgress& p) { lane(p.done_bytes, p.total_bytes); });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const uint64_t read = plan.source_bytes;
  if (o.json) {
    write_now(stdout, nlohmann::ordered_json{{"path", o.output}, {"format", plan.label}, {"files", plan.shards.size()}, {"bytes", done.bytes}, {"source_bytes", read},
                                             {"resumed_bytes", done.resumed_bytes}, {"seconds", seconds}, {"changed", plan.changed}}.dump() + "\n");
    return 0;
  }
  for (const std::string& line : plan.changed) std::fprintf(stderr, "note: %s (Hugging Face files have one float type and no GGUF blocks)\n", line.c_str());
  if (done.resumed_bytes > 0) std::fprintf(stderr, "note: %s was there from before, read back and found whole\n", human_bytes(done.resumed_bytes).c_str());
  char line[200];
  std::snprintf(line, sizeof line, "%zu file%s, %s of %s from %s, %.1f s (%.2f GB/s read)\n", plan.shards.size(), plan.shards.size() == 1 ? "" : "s", human_bytes(done.bytes).c_str(), plan.label.c_str(),
                human_bytes(read).c_str(), seconds, static_cast<double>(read) / seconds / 1e9);
  write_now(stdout, line);
  return 0;
}

}  // namespace

Command add_quantize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* command = app.add_subcommand("quantize", "Writes a checkpoint in another format, as bitsandbytes, compressed-tensors and transformers read it");
  add_format_options(*command, o.model);
  command->get_option("--format")->required()->default_str("")->description(
      "nf4, fp4, int8 (bitsandbytes); int4_sym, int8_sym, fp8, fp8_tensor (compressed-tensors); fp8:128; bf16, fp16, fp32; keep; "
      "in other blocks: nf4:128; per module: nf4,lm_head=bf16");
  command->add_option("-o,--output", o.output, "folder to write: new, empty, or where this command was interrupted")->required();
  command->add_option("--shard-size", o.shard_size, "the most that a file holds")->capture_default_str();
  command->add_option("--threads", o.threads, "(default: all cores)")->check(CLI::Range(1, 1024));
  command->add_flag("--json", o.json, "what was done as JSON");
  command->footer("Interrupted, it goes on where it was when it is given again; a folder with config.json is complete.\n\n"
                  "Example: tandem quantize SmolLM2-135M -o SmolLM2-135M-nf4 --format nf4");
  return {command, [options] { return quantize(*options); }};
}

}  // namespace tandem
