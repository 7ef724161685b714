// Wrong files and wrong options, through the real program: each ends with exit code 2 and one line that names the file, option or field,
// says what is wrong and what would be right; soon, without much memory, and without leaving anything behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <netinet/in.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "rpc/slow_factor.h"
#include "tests/support/run_binary.h"
#include "tests/support/serve_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;
namespace fs = std::filesystem;

constexpr double kMostSeconds = 10 * kSlowFactor;  // of a run that takes some 0.1 s when nothing else does
constexpr double kMostCpuSeconds = 2 * kSlowFactor;

// The files of a case: copies of fixtures, to be broken. "%" in a command stands for this folder.
class Files {
 public:
  std::string path(const std::string& name) const { return folder_ / name; }
  std::string with_paths(std::string text) const {
    for (size_t at = 0; (at = text.find('%', at)) != std::string::npos; at += folder_.path().size()) text.replace(at, 1, folder_.path());
    return text;
  }
  // Fixtures that the command speaks of: dir, tied (three shards with an index), mix, m.gguf, s-0000N-of-00002.gguf, plan.json.
  void provide(const std::string& command) const {
    const fs::path fixtures = TANDEM_FIXTURES;
    const auto copy = [&](const char* name, const char* fixture) {
      if (command.find(std::string("%/") + name) != std::string::npos) fs::copy(fixtures / fixture, path(name), fs::copy_options::recursive);
    };
    copy("dir", "llama-tiny");
    copy("tied", "llama-tied");
    copy("mix", "mixtral-tiny");
    copy("m.gguf", "gguf/llama-tiny.gguf");
    if (command.find("%/s-") != std::string::npos) {
      for (const char* part : {"-00001-of-00002.gguf", "-00002-of-00002.gguf"}) fs::copy(fixtures / ("gguf/llama-tiny-split" + std::string(part)), path("s" + std::string(part)));
    }
    if (command.find("%/plan.json") != std::string::npos) run_tandem("plan " + path("dir") + " -o " + path("plan.json"));
  }
  std::string read(const std::string& name) const { return read_whole(path(name)); }
  void write(const std::string& name, const std::string& content) const {
    fs::remove(path(name));  // it may be a link into the fixtures
    std::ofstream(path(name), std::ios::binary) << content;
  }
  std::map<std::string, uint64_t> list() const {
    std::map<std::string, uint64_t> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path())) all[entry.path()] = entry.is_regular_file() ? entry.file_size() : 0;
    return all;
  }

 private:
  TemporaryFolder folder_;
};

// ---- ways to break a file

using Change = std::function<void(const Files&)>;

Change nothing() {
  return [](const Files&) {};
}
Change content(std::string name, std::string text) {
  return [=](const Files& files) { files.write(name, text); };
}
Change cut(std::string name, size_t bytes) {
  return [=](const Files& files) { files.write(name, files.read(name).substr(0, bytes)); };
}
Change longer(std::string name, std::string more) {
  return [=](const Files& files) { files.write(name, files.read(name) + more); };
}
Change gone(std::string name) {
  return [=](const Files& files) { fs::remove_all(files.path(name)); };
}
Change folder(std::string name) {
  return [=](const Files& files) {
    fs::remove_all(files.path(name));
    fs::create_directory(files.path(name));
  };
}
Change bytes_at(std::string name, size_t at, std::string bytes) {
  return [=](const Files& files) { files.write(name, files.read(name).replace(at, bytes.size(), bytes)); };
}
Change replaced(std::string name, std::string from, std::string to) {
  return [=](const Files& files) {
    std::string text = files.read(name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    files.write(name, text.replace(at, from.size(), to));
  };
}
// RFC 7396: null takes a field away.
Change patched(std::string name, const char* patch) {
  return [=](const Files& files) {
    json value = json::parse(files.read(name));
    value.merge_patch(json::parse(patch));
    files.write(name, value.dump());
  };
}
Change edited(std::string name, std::function<void(json&)> edit) {
  return [=](const Files& files) {
    json value = json::parse(files.read(name));
    edit(value);
    files.write(name, value.dump());
  };
}
// The header of a safetensors file, its length and padding kept right.
Change header(std::string name, std::function<void(json&)> edit) {
  return [=](const Files& files) {
    const std::string all = files.read(name);
    uint64_t length = 0;
    std::memcpy(&length, all.data(), sizeof length);
    json value = json::parse(all.substr(8, length));
    edit(value);
    std::string text = value.dump();
    text += std::string((8 - text.size() % 8) % 8, ' ');
    const uint64_t now = text.size();
    files.write(name, std::string(reinterpret_cast<const char*>(&now), 8) + text + all.substr(8 + length));
  };
}
// A u32 of a GGUF file's metadata.
Change gguf_number(std::string name, std::string key, uint32_t value) {
  return [=](const Files& files) {
    std::string all = files.read(name);
    const size_t at = all.find(key);
    ASSERT_NE(at, std::string::npos) << key;
    files.write(name, all.replace(at + key.size() + 4, 4, std::string(reinterpret_cast<const char*>(&value), 4)));
  };
}

std::string little(uint64_t value) { return {reinterpret_cast<const char*>(&value), 8}; }

// ---- the table

struct Case {
  std::string name;     // of the test
  std::string command;  // "%" = the folder
  Change change;
  std::string where;    // what the line begins with, behind "error: "
  std::string says;     // and says somewhere
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.command; }

#define GENERATE "generate %/dir --prompt-ids 1 --max-tokens 2"
#define CHAT "generate %/dir --max-tokens 2 --chat %/chat.json"
#define GGUF "generate %/m.gguf --prompt-ids 1 --max-tokens 2"
#define SHARDS "generate %/tied --prompt-ids 1 --max-tokens 2"
#define TOKENIZE "tokenize %/dir --prompt hello"
#define PLAN "plan preset:llama-3.2-1b --max-memory 0=8GiB,1=8GiB"
#define RUN_PLAN GENERATE " --plan %/plan.json"
#define CLUSTER "plan preset:llama-3.2-1b --cluster %/cluster.json"

std::vector<Case> cases() {
  const std::string weights = "dir/model.safetensors", config = "dir/config.json", tokenizer = "dir/tokenizer.json", token_config = "dir/tokenizer_config.json",
                    generation = "dir/generation_config.json", index = "tied/model.safetensors.index.json";
  const auto tensor = [](const char* name, const char* field, json value) {
    return [=](json& header) { header[name][field] = value; };
  };
  const char* q_proj = "model.layers.0.self_attn.q_proj.weight";
  return {
      // config.json
      {"ConfigMissing", GENERATE, gone(config), "%/dir/config.json", "no such file"},
      {"ConfigEmpty", GENERATE, content(config, ""), "%/dir/config.json", ""},
      {"ConfigNoJson", GENERATE, content(config, "{\"a\": "), "%/dir/config.json", ""},
      {"ConfigBinary", GENERATE, content(config, std::string("\0\xff\xfe\x01", 4)), "%/dir/config.json", ""},
      {"ConfigList", GENERATE, content(config, "[]"), "%/dir/config.json", "object"},
      {"ConfigDeep", GENERATE, content(config, std::string(1 << 20, '[')), "%/dir/config.json", ""},
      {"ConfigFolder", GENERATE, folder(config), "%/dir/config.json", "regular file"},
      {"ConfigNoFamily", GENERATE, patched(config, R"({"model_type": null, "architectures": null})"), "%/dir", "model_type"},
      {"ConfigUnknownFamily", GENERATE, patched(config, R"({"model_type": "llamma"})"), "%/dir", "llamma"},
      {"ConfigFamilyNumber", GENERATE, patched(config, R"({"model_type": 7})"), "%/dir", "model_type"},
      {"ConfigHiddenText", GENERATE, patched(config, R"({"hidden_size": "48"})"), "%/dir", "hidden_size"},
      {"ConfigHiddenNegative", GENERATE, patched(config, R"({"hidden_size": -48})"), "%/dir", "hidden_size"},
      {"ConfigHiddenZero", GENERATE, patched(config, R"({"hidden_size": 0})"), "%/dir", "hidden_size"},
      {"ConfigHiddenHuge", GENERATE, patched(config, R"({"hidden_size": 1000000000000})"), "%/dir", "hidden_size"},
      {"ConfigHiddenOther", GENERATE, patched(config, R"({"hidden_size": 64})"), "%/dir/model.safetensors", "[509, 64]"},
      {"ConfigHiddenMissing", GENERATE, patched(config, R"({"hidden_size": null})"), "%/dir", "hidden_size"},
      {"ConfigLayersHuge", GENERATE, patched(config, R"({"num_hidden_layers": 1000000000})"), "%/dir", "num_hidden_layers"},
      {"ConfigLayersMore", GENERATE, patched(config, R"({"num_hidden_layers": 4})"), "%/dir", "model.layers.3."},
      {"ConfigLayersFewer", GENERATE, patched(config, R"({"num_hidden_layers": 2})"), "%/dir", "num_hidden_layers"},
      {"ConfigVocabularyOther", GENERATE, patched(config, R"({"vocab_size": 512})"), "%/dir/model.safetensors", "[512, 48]"},
      {"ConfigVocabularyHuge", GENERATE, patched(config, R"({"vocab_size": 4294967296})"), "%/dir", "vocab_size"},
      {"ConfigHeadsDoNotDivide", GENERATE, patched(config, R"({"num_attention_heads": 5})"), "%/dir", "num_attention_heads"},
      {"ConfigFewerKvHeads", GENERATE, patched(config, R"({"num_key_value_heads": 1})"), "%/dir/model.safetensors", "[48, 48]"},
      {"ConfigIntermediateOther", GENERATE, patched(config, R"({"intermediate_size": 96})"), "%/dir/model.safetensors", "[104, 48]"},
      {"ConfigOddHeadDim", GENERATE, patched(config, R"({"head_dim": 15})"), "%/dir", "head_dim"},
      {"ConfigBiasIsThere", GENERATE, patched(config, R"({"attention_bias": false})"), "%/dir", "attention_bias"},
      {"ConfigActivation", GENERATE, patched(config, R"({"hidden_act": "swish2"})"), "%/dir", "hidden_act"},
      {"ConfigEpsilonText", GENERATE, patched(config, R"({"rms_norm_eps": "tiny"})"), "%/dir", "rms_norm_eps"},
      {"ConfigEpsilonNegative", GENERATE, patched(config, R"({"rms_norm_eps": -1})"), "%/dir", "rms_norm_eps"},
      {"ConfigRopeUnknown", GENERATE, patched(config, R"({"rope_parameters": {"rope_type": "spiral"}})"), "%/dir", "spiral"},
      {"ConfigRopeFactor", GENERATE, patched(config, R"({"rope_parameters": {"factor": 0}})"), "%/dir", "factor"},
      {"ConfigRopeTheta", GENERATE, patched(config, R"({"rope_parameters": {"rope_theta": -1}})"), "%/dir", "rope_theta"},
      {"ConfigContextZero", GENERATE, patched(config, R"({"max_position_embeddings": 0})"), "%/dir", "max_position_embeddings"},
      {"ConfigEndOutsideOfVocabulary", GENERATE, patched(generation, R"({"eos_token_id": 509})"), "%/dir/generation_config.json", "eos_token_id"},
      {"ConfigQuantization", GENERATE, patched(config, R"({"quantization_config": {"quant_method": "magic"}})"), "%/dir", "magic"},
      {"ConfigQuantizationNumber", GENERATE, patched(config, R"({"quantization_config": 7})"), "%/dir", "quantization_config"},
      {"ConfigExpertsTwoOfOne", "plan %/mix", patched("mix/config.json", R"({"num_experts_per_tok": 6})"), "%/mix", "num_experts_per_tok"},
      {"ConfigExpertsOther", "generate %/mix --prompt-ids 1", patched("mix/config.json", R"({"num_local_experts": 6})"), "%/mix", ""},
      {"ConfigLoneText", "plan %/lone.json", content("lone.json", "hello"), "%/lone.json", ""},
      {"ConfigLoneEmptyObject", "plan %/lone.json", content("lone.json", "{}"), "%/lone.json", "model_type"},
      {"ConfigLoneInspect", "inspect %/lone.json", content("lone.json", "{\"model_type\": \"llama\"}"), "%/lone.json", ""},

      // generation_config.json
      {"GenerationNoJson", GENERATE, content(generation, "{"), "%/dir/generation_config.json", ""},
      {"GenerationTemperature", GENERATE, patched(generation, R"({"temperature": "hot"})"), "%/dir/generation_config.json", "temperature"},
      {"GenerationTopP", GENERATE, patched(generation, R"({"top_p": 3})"), "%/dir/generation_config.json", "top_p"},
      {"GenerationFolder", GENERATE, folder(generation), "%/dir/generation_config.json", ""},

      // model.safetensors
      {"TensorsMissing", GENERATE, gone(weights), "%/dir", "safetensors"},
      {"TensorsEmpty", GENERATE, content(weights, ""), "%/dir/model.safetensors", ""},
      {"TensorsText", GENERATE, content(weights, "<html>404 Not Found</html>"), "%/dir/model.safetensors", ""},
      {"TensorsLfsPointer", GENERATE, content(weights, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "%/dir/model.safetensors", ""},
      {"TensorsHeaderCut", GENERATE, cut(weights, 1000), "%/dir/model.safetensors", ""},
      {"TensorsDataCut", GENERATE, cut(weights, 500000), "%/dir/model.safetensors", "cut"},
      {"TensorsOneByteShort", GENERATE, cut(weights, 549543), "%/dir/model.safetensors", ""},
      {"TensorsOneByteLong", GENERATE, longer(weights, "x"), "%/dir/model.safetensors", ""},
      {"TensorsHugeHeader", GENERATE, bytes_at(weights, 0, little(~0ull)), "%/dir/model.safetensors", ""},
      {"TensorsFolder", GENERATE, folder(weights), "%/dir/model.safetensors", "regular file"},
      {"TensorsOneMissing", GENERATE, header(weights, [=](json& h) { h["model.extra"] = h[q_proj]; h.erase(q_proj); }), "%/dir", q_proj},
      {"TensorsShape", GENERATE, header(weights, tensor(q_proj, "shape", {48, 96})), "%/dir/model.safetensors", "[96, 48]"},
      {"TensorsFlat", GENERATE, header(weights, tensor(q_proj, "shape", {4608})), "%/dir/model.safetensors", "[4608]"},
      {"TensorsType", GENERATE, header(weights, tensor(q_proj, "dtype", "I32")), "%/dir/model.safetensors", q_proj},
      {"TensorsUnknownType", GENERATE, header(weights, tensor(q_proj, "dtype", "F5")), "%/dir/model.safetensors", "F5"},
      {"TensorsNegativeShape", GENERATE, header(weights, tensor(q_proj, "shape", {-96, 48})), "%/dir/model.safetensors", q_proj},
      {"TensorsOverlap", GENERATE, header(weights, tensor(q_proj, "data_offsets", {0, 18432})), "%/dir/model.safetensors", "overlap"},
      {"TensorsOffsetsBeyond", GENERATE, header(weights, tensor(q_proj, "data_offsets", {1 << 30, (1 << 30) + 18432})), "%/dir/model.safetensors", q_proj},
      {"TensorsNamedAlone", "generate %/dir/model.safetensors --prompt-ids 1", nothing(), "%/dir/model.safetensors", "directory"},
      {"TensorsInspect", "inspect %/dir", cut(weights, 500000), "%/dir/model.safetensors", ""},
      {"TensorsPlan", "plan %/dir", cut(weights, 500000), "%/dir/model.safetensors", ""},

      // model.safetensors.index.json and its shards
      {"IndexNoJson", SHARDS, content(index, "{"), "%/tied/model.safetensors.index.json", ""},
      {"IndexNoMap", SHARDS, content(index, "{}"), "%/tied/model.safetensors.index.json", "weight_map"},
      {"IndexElsewhere", SHARDS, edited(index, [](json& i) { i["weight_map"].begin().value() = "../secret.safetensors"; }), "%/tied/model.safetensors.index.json", "plain name"},
      {"IndexNoSuchShard", SHARDS, gone("tied/model-00002-of-00003.safetensors"), "%/tied/model-00002-of-00003.safetensors", "is not there"},
      {"IndexShardCut", SHARDS, cut("tied/model-00003-of-00003.safetensors", 90000), "%/tied/model-00003-of-00003.safetensors", ""},
      {"IndexShardsSwapped", SHARDS, [](const Files& f) {
         const std::string one = f.read("tied/model-00001-of-00003.safetensors");
         f.write("tied/model-00002-of-00003.safetensors", one);
       }, "%/tied/model", ""},
      {"IndexTensorInNoShard", SHARDS, edited(index, [](json& i) { i["weight_map"]["model.more"] = "model-00001-of-00003.safetensors"; }), "%/tied/model", "model.more"},
      {"IndexTensorElsewhere", SHARDS, edited(index, [](json& i) { i["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"; }), "%/tied/model", "model.norm.weight"},

      // GGUF
      {"GgufEmpty", GGUF, content("m.gguf", ""), "%/m.gguf", ""},
      {"GgufNoMagic", GGUF, bytes_at("m.gguf", 0, "GGML"), "%/m.gguf", "GGUF"},
      {"GgufVersion1", GGUF, bytes_at("m.gguf", 4, std::string("\1\0\0\0", 4)), "%/m.gguf", "version"},
      {"GgufTensorCount", GGUF, bytes_at("m.gguf", 8, little(~0ull)), "%/m.gguf", ""},
      {"GgufKeyCount", GGUF, bytes_at("m.gguf", 16, little(1ull << 40)), "%/m.gguf", ""},
      {"GgufHeaderCut", GGUF, cut("m.gguf", 3000), "%/m.gguf", ""},
      {"GgufDataCut", GGUF, cut("m.gguf", 300000), "%/m.gguf", "cut"},
      {"GgufFolder", GGUF, folder("m.gguf"), "%/m.gguf", ""},
      {"GgufNoLayers", GGUF, replaced("m.gguf", "llama.block_count", "llama.block_cound"), "%/m.gguf", "num_hidden_layers"},
      {"GgufMoreLayers", GGUF, gguf_number("m.gguf", "llama.block_count", 4), "%/m.gguf", "blk.3."},
      {"GgufFewerLayers", GGUF, gguf_number("m.gguf", "llama.block_count", 2), "%/m.gguf", "block_count"},
      {"GgufHidden", GGUF, gguf_number("m.gguf", "llama.embedding_length", 64), "%/m.gguf", "64"},
      {"GgufHeads", GGUF, gguf_number("m.gguf", "llama.attention.head_count", 0), "%/m.gguf", "num_attention_heads"},
      {"GgufFamily", GGUF, replaced("m.gguf", std::string("general.architecture") + std::string("\x08\0\0\0\x05\0\0\0\0\0\0\0llama", 17), std::string("general.architecture") + std::string("\x08\0\0\0\x05\0\0\0\0\0\0\0lamma", 17)), "%/m.gguf", "lamma"},
      {"GgufEnd", GGUF, gguf_number("m.gguf", "tokenizer.ggml.eos_token_id", 5000), "%/m.gguf", "eos_token_id"},
      {"GgufTensorGone", GGUF, replaced("m.gguf", "blk.1.attn_q.weight", "blk.1.attn_x.weight"), "%/m.gguf", "blk.1.attn_q.weight"},
      {"GgufInspect", "inspect %/m.gguf", cut("m.gguf", 300000), "%/m.gguf", ""},
      {"GgufTokenizer", "tokenize %/m.gguf --prompt x", replaced("m.gguf", "tokenizer.ggml.tokens", "tokenizer.ggml.tokenz"), "%/m.gguf", "token"},
      {"GgufTokenizerModel", "tokenize %/m.gguf --prompt x", replaced("m.gguf", "gpt2", "gpt9"), "%/m.gguf", "gpt9"},
      {"GgufSecondPartGone", "generate %/s-00001-of-00002.gguf --prompt-ids 1", gone("s-00002-of-00002.gguf"), "%/s-00002-of-00002.gguf", "is not there"},
      {"GgufSecondPartAsked", "generate %/s-00002-of-00002.gguf --prompt-ids 1", nothing(), "%/s-0000", ""},
      {"GgufSecondPartIsTheFirst", "generate %/s-00001-of-00002.gguf --prompt-ids 1", [](const Files& f) { f.write("s-00002-of-00002.gguf", f.read("s-00001-of-00002.gguf")); }, "%/s-0000", ""},
      {"GgufSecondPartCut", "generate %/s-00001-of-00002.gguf --prompt-ids 1", cut("s-00002-of-00002.gguf", 100000), "%/s-00002-of-00002.gguf", ""},

      // no model at all
      {"ModelIsText", "generate %/x.txt --prompt x", content("x.txt", "hello"), "%/x.txt", "is no model"},
      {"ModelEmptyFolder", "generate %/empty --prompt x", folder("empty"), "%/empty/config.json", "no such file"},
      {"ModelEmptyName", "generate '' --prompt x", nothing(), "MODEL", "empty"},
      {"ModelDevice", "generate /dev/null --prompt x", nothing(), "/dev/null", ""},
      {"ModelNameWithLineBreak", "generate \"$(printf '/no/such\\nerror: file')\" --prompt x", nothing(), "/no/such", ""},
      {"PresetTypo", "plan preset:lama-3.1-8b", nothing(), "preset:lama-3.1-8b", "llama-3.1-8b"},
      {"PresetCase", "plan preset:mixtral8x7b", nothing(), "preset:mixtral8x7b", "mixtral-8x7b"},
      {"PresetEmpty", "plan preset:", nothing(), "preset:", "--list-presets"},
      {"PresetFarAway", "inspect preset:zzz", nothing(), "preset:zzz", "--list-presets"},
      {"PresetCannotRun", "generate preset:llama-3.1-8b --prompt x", nothing(), "preset:llama-3.1-8b", "weights"},
      {"PresetLogits", "logits preset:llama-3.1-8b --prompt-ids 1 -o %/x.npy", nothing(), "preset:llama-3.1-8b", "weights"},

      // tokenizer.json, tokenizer_config.json, templates
      {"TokenizerNoJson", TOKENIZE, content(tokenizer, "{\"model\":"), "%/dir/tokenizer.json", ""},
      {"TokenizerEmpty", TOKENIZE, content(tokenizer, ""), "%/dir/tokenizer.json", ""},
      {"TokenizerNoModel", TOKENIZE, patched(tokenizer, R"({"model": null})"), "%/dir/tokenizer.json", "model"},
      {"TokenizerOtherModel", TOKENIZE, patched(tokenizer, R"({"model": {"type": "WordPiece"}})"), "%/dir/tokenizer.json", "WordPiece"},
      {"TokenizerNoVocabulary", TOKENIZE, patched(tokenizer, R"({"model": {"vocab": null}})"), "%/dir/tokenizer.json", "vocab"},
      {"TokenizerHugeId", TOKENIZE, patched(tokenizer, R"({"model": {"vocab": {"zzz": 4000000000}}})"), "%/dir/tokenizer.json", ""},
      {"TokenizerMerge", TOKENIZE, edited(tokenizer, [](json& t) { t["model"]["merges"][0] = "nonsense"; }), "%/dir/tokenizer.json", "merges"},
      {"TokenizerRegex", TOKENIZE, edited(tokenizer, [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(((a"; }), "%/dir/tokenizer.json", ""},
      {"TokenizerUnknownPiece", TOKENIZE, edited(tokenizer, [](json& t) { t["pre_tokenizer"] = {{"type", "Magic"}}; }), "%/dir/tokenizer.json", "Magic"},
      {"TokenizerFolder", TOKENIZE, folder(tokenizer), "%/dir/tokenizer.json", "regular file"},
      {"TokenizerMissing", TOKENIZE, gone(tokenizer), "%/dir", "tokenizer"},
      {"TokenizerMissingGenerate", "generate %/dir --prompt x", gone(tokenizer), "", "tokenizer"},
      {"TokenizerConfigNoJson", TOKENIZE, content(token_config, "nope"), "%/dir/tokenizer_config.json", ""},
      {"TokenizerGenerate", GENERATE, content(tokenizer, "{"), "%/dir/tokenizer.json", ""},
      {"TemplateSyntax", CHAT, [=](const Files& f) {
         patched(token_config, R"({"chat_template": "{% for m in messages %}"})")(f);
         f.write("chat.json", R"([{"role": "user", "content": "x"}])");
       }, "%/dir/tokenizer_config.json", "template"},
      {"TemplateNumber", CHAT, [=](const Files& f) {
         patched(token_config, R"({"chat_template": 5})")(f);
         f.write("chat.json", R"([{"role": "user", "content": "x"}])");
       }, "%/dir/tokenizer_config.json", "chat_template"},
      {"TemplateEndless", CHAT, [=](const Files& f) {
         patched(token_config, R"({"chat_template": "{% for a in range(1000000) %}{% for b in range(1000000) %}x{% endfor %}{% endfor %}"})")(f);
         f.write("chat.json", R"([{"role": "user", "content": "x"}])");
       }, "", "template"},
      {"TemplateMissing", CHAT, [=](const Files& f) {
         patched(token_config, R"({"chat_template": null})")(f);
         f.write("chat.json", R"([{"role": "user", "content": "x"}])");
       }, "", "template"},
      {"TemplateRaises", CHAT, content("chat.json", R"([{"role": "wizard", "content": "x"}])"), "", "wizard"},

      // --chat
      {"ChatMissing", CHAT, nothing(), "%/chat.json", "no such file"},
      {"ChatEmpty", CHAT, content("chat.json", ""), "%/chat.json", ""},
      {"ChatNoJson", CHAT, content("chat.json", "hello"), "%/chat.json", ""},
      {"ChatFolder", CHAT, folder("chat.json"), "%/chat.json", "directory"},
      {"ChatEndless", "generate %/dir --chat /dev/zero", nothing(), "/dev/zero", "bytes"},
      {"ChatEmptyList", CHAT, content("chat.json", "[]"), "", "message"},
      {"ChatNumber", CHAT, content("chat.json", "7"), "%/chat.json", "list"},
      {"ChatOfNumbers", CHAT, content("chat.json", "[7]"), "", "role"},
      {"ChatNoMessages", CHAT, content("chat.json", "{}"), "%/chat.json", "messages"},
      {"ChatMessagesObject", CHAT, content("chat.json", R"({"messages": {}})"), "%/chat.json", "list"},
      {"ChatToolsNumber", CHAT, content("chat.json", R"({"messages": [{"role": "user", "content": "x"}], "tools": 7})"), "", "tools"},
      {"ChatRoleNumber", CHAT, content("chat.json", R"([{"role": 1, "content": "x"}])"), "", "role"},
      {"ChatDeep", CHAT, content("chat.json", std::string(1 << 20, '[')), "%/chat.json", ""},
      {"ChatInvalidUtf8", CHAT, content("chat.json", "[{\"role\": \"user\", \"content\": \"\xff\"}]"), "%/chat.json", ""},
      {"ChatTokenize", "tokenize %/dir --chat %/chat.json", content("chat.json", "[7]"), "", "role"},

      // --prompts
      {"PromptsMissing", "generate %/dir --prompts %/p.txt", nothing(), "%/p.txt", "no such file"},
      {"PromptsEmpty", "generate %/dir --prompts %/p.txt", content("p.txt", ""), "%/p.txt", "no prompt"},
      {"PromptsFolder", "generate %/dir --prompts %/p.txt", folder("p.txt"), "%/p.txt", "directory"},
      {"PromptsBrokenJson", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \n"), "%/p.jsonl:2", ""},
      {"PromptsUnknownField", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"promt\": \"a\"}\n"), "%/p.jsonl:1", "promt"},
      {"PromptsWrongType", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"prompt\": 7}\n"), "%/p.jsonl:1", "prompt"},
      {"PromptsWrongRange", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"top_p\": 3}\n"), "%/p.jsonl:2", "top_p"},
      {"PromptsWrongId", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"prompt_ids\": [1]}\n{\"prompt_ids\": [509]}\n"), "%/p.jsonl:2", "509"},
      {"PromptsTwoInputs", "generate %/dir --prompts %/p.jsonl", content("p.jsonl", "{\"prompt\": \"a\", \"prompt_ids\": [1]}\n"), "%/p.jsonl:1", ""},
      {"PromptsAndPrompt", "generate %/dir --prompts %/p.txt --prompt x", content("p.txt", "a\n"), "--prompt", "twice"},

      // prompt and sampling options
      {"NoPrompt", "generate %/dir", nothing(), "--prompt", "is missing"},
      {"TwoPrompts", "generate %/dir --prompt a --prompt-ids 1", nothing(), "--prompt", "twice"},
      {"IdsEmpty", "generate %/dir --prompt-ids ''", nothing(), "--prompt-ids", "empty"},
      {"IdsText", "generate %/dir --prompt-ids 1,two", nothing(), "--prompt-ids", "'two'"},
      {"IdsNegative", "generate %/dir --prompt-ids -5", nothing(), "--prompt-ids", "'-5'"},
      {"IdsHuge", "generate %/dir --prompt-ids 99999999999999999999", nothing(), "--prompt-ids", ""},
      {"IdsTrailingComma", "generate %/dir --prompt-ids 1,", nothing(), "--prompt-ids", ""},
      {"IdsOutside", "generate %/dir --prompt-ids 1,509", nothing(), "token_ids", "508"},
      {"PromptLongerThanContext", "generate %/dir --prompt-ids 1,2,3,4 --context 4", nothing(), "input", "context of 4"},
      {"SystemWithIds", "generate %/dir --prompt-ids 1 --system x", nothing(), "--system", "--prompt-ids"},
      {"TemperatureNan", GENERATE " --temperature nan", nothing(), "sampling.temperature", "nan"},
      {"TemperatureInfinite", GENERATE " --temperature inf", nothing(), "sampling.temperature", "inf"},
      {"TemperatureNegative", GENERATE " --temperature -0.1", nothing(), "sampling.temperature", "-0.1"},
      {"TemperatureHuge", GENERATE " --temperature 1e38", nothing(), "sampling.temperature", "100"},
      {"TemperatureText", GENERATE " --temperature warm", nothing(), "--temperature", "warm"},
      {"TopKNegative", GENERATE " --top-k -1", nothing(), "sampling.top_k", "-1"},
      {"TopKFraction", GENERATE " --top-k 1.5", nothing(), "--top-k", "1.5"},
      {"TopKHuge", GENERATE " --top-k 99999999999", nothing(), "--top-k", ""},
      {"TopPZero", GENERATE " --top-p 0", nothing(), "sampling.top_p", ""},
      {"TopPNan", GENERATE " --top-p nan", nothing(), "sampling.top_p", ""},
      {"MinPAboveOne", GENERATE " --min-p 1.5", nothing(), "sampling.min_p", "1.5"},
      {"TypicalPNegative", GENERATE " --typical-p -1", nothing(), "sampling.typical_p", ""},
      {"RepetitionZero", GENERATE " --repetition-penalty 0", nothing(), "sampling.repetition_penalty", ""},
      {"PresenceHuge", GENERATE " --presence-penalty 1e9", nothing(), "sampling.presence_penalty", ""},
      {"FrequencyNan", GENERATE " --frequency-penalty nan", nothing(), "sampling.frequency_penalty", ""},
      {"SeedNegative", GENERATE " --seed -1", nothing(), "--seed", "-1"},
      {"SeedHuge", GENERATE " --seed 99999999999999999999", nothing(), "--seed", ""},
      {"SeedText", GENERATE " --seed abc", nothing(), "--seed", "abc"},
      {"LogprobsNegative", GENERATE " --logprobs -1", nothing(), "logprobs", "-1"},
      {"LogprobsMany", GENERATE " --logprobs 100000", nothing(), "logprobs", ""},
      {"MaxTokensZero", "generate %/dir --prompt-ids 1 --max-tokens 0", nothing(), "stopping.max_tokens", "is 0"},
      {"MaxTokensNegative", "generate %/dir --prompt-ids 1 --max-tokens -1", nothing(), "stopping.max_tokens", "-1"},
      {"MaxTokensBeyondContext", "generate %/dir --prompt-ids 1 --max-tokens 100000", nothing(), "stopping.max_tokens", "256"},
      {"MinTokensNegative", GENERATE " --min-tokens -1", nothing(), "stopping.min_tokens", ""},
      {"MinAboveMax", GENERATE " --min-tokens 3", nothing(), "stopping.min_tokens", "is 3"},
      {"StopEmpty", GENERATE " --stop ''", nothing(), "stopping.stop_strings", "empty"},
      {"UnknownOption", GENERATE " --nonsense", nothing(), "", "--nonsense"},
      {"OptionWithoutValue", GENERATE " --seed", nothing(), "--seed", ""},
      {"OptionTwice", GENERATE " --seed 1 --seed 2", nothing(), "--seed", ""},
      {"OneWordTooMany", GENERATE " word", nothing(), "", "word"},

      // where and how
      {"RanksHuge", GENERATE " --ranks 100000", nothing(), "--ranks", "100000"},
      {"RanksMoreThanLayers", GENERATE " --ranks 4", nothing(), "--", "3 layers"},
      {"RanksNegative", GENERATE " --ranks -2", nothing(), "--ranks", "-2"},
      {"TpDoesNotDivide", GENERATE " --tp 2", nothing(), "--tp", "3 KV heads"},
      {"EpWithoutExperts", GENERATE " --ep 2", nothing(), "--ep", "KV heads"},
      {"TpAndRanks", GENERATE " --tp 3 --ranks 4", nothing(), "--ranks", "multiple"},
      {"ThreadsNegative", GENERATE " --threads -1", nothing(), "--threads", "-1"},
      {"ThreadsHuge", GENERATE " --threads 100000", nothing(), "--threads", "100000"},
      {"DeviceUnknown", GENERATE " --device toaster", nothing(), "--device", "toaster"},
      {"DeviceCuda", GENERATE " --device cuda:0,1", nothing(), "--device", "cuda"},
      {"FormatUnknown", GENERATE " --format nf5", nothing(), "--format", "nf5"},
      {"FormatEmpty", GENERATE " --format ''", nothing(), "--format", "empty"},
      {"FormatEmptyPart", GENERATE " --format nf4,", nothing(), "--format", ""},
      {"FormatTwice", GENERATE " --format nf4,fp4", nothing(), "--format", ""},
      {"FormatUnknownModule", GENERATE " --format nf4,foo=bf16", nothing(), "--format", "foo"},
      {"FormatUnknownInModule", GENERATE " --format nf4,lm_head=foo", nothing(), "--format", "foo"},
      {"DoubleQuantAlone", GENERATE " --double-quant", nothing(), "--double-quant", "nf4"},
      {"ComputeUnknown", GENERATE " --compute fp12", nothing(), "--compute", "fp12"},
      {"KvUnknown", GENERATE " --kv-dtype int4", nothing(), "--kv-dtype", "int4"},
      {"ContextNegative", GENERATE " --context -1", nothing(), "--context", "-1"},
      {"ContextHuge", GENERATE " --context 2000000000", nothing(), "--context", ""},
      {"ContextDoesNotFit", GENERATE " --context 16000000 --max-memory cpu=1GiB", nothing(), "", "fit"},
      {"ContextText", GENERATE " --context many", nothing(), "--context", "many"},
      {"BatchHuge", GENERATE " --max-batch 1000000", nothing(), "--max-batch", ""},
      {"ChunkNegative", GENERATE " --chunk -1", nothing(), "--chunk", ""},
      {"PageHuge", GENERATE " --page 100000000", nothing(), "--page", ""},
      {"QueueNegative", GENERATE " --max-queue -1", nothing(), "--max-queue", "-1"},
      {"MaxMemoryText", GENERATE " --max-memory cpu=lots", nothing(), "--max-memory", "lots"},
      {"MaxMemoryOtherDevice", GENERATE " --max-memory 7=1GiB", nothing(), "", "7"},
      {"MaxMemoryTooLittle", GENERATE " --max-memory cpu=100KiB", nothing(), "", "fit"},
      {"ReserveText", GENERATE " --reserve x", nothing(), "--reserve", ""},
      {"GpusHere", GENERATE " --gpus 1xrtx3090", nothing(), "", "cpu"},
      {"EmptyPlanName", GENERATE " --plan ''", nothing(), "--plan", "empty"},

      // plan JSON
      {"PlanNoJson", RUN_PLAN, content("plan.json", "{"), "%/plan.json", ""},
      {"PlanEmpty", RUN_PLAN, content("plan.json", ""), "%/plan.json", ""},
      {"PlanOtherSchema", RUN_PLAN, patched("plan.json", R"({"schema": "tandem.plan/9"})"), "%/plan.json", "tandem.plan/1"},
      {"PlanFolder", RUN_PLAN, folder("plan.json"), "%/plan.json", "regular file"},
      {"PlanNoStages", RUN_PLAN, patched("plan.json", R"({"stages": []})"), "%/plan.json", "stages"},
      {"PlanNoDevices", RUN_PLAN, patched("plan.json", R"({"devices": []})"), "%/plan.json", "devices"},
      {"PlanGap", RUN_PLAN, edited("plan.json", [](json& p) { p["stages"][0]["first_layer"] = 1; }), "%/plan.json", "first_layer"},
      {"PlanLastLayer", RUN_PLAN, edited("plan.json", [](json& p) { p["stages"][0]["last_layer"] = 1; }), "%/plan.json", "last_layer"},
      {"PlanOtherModel", RUN_PLAN, patched("plan.json", R"({"model": {"digest": "00"}})"), "%/plan.json", "digest"},
      {"PlanOtherLayers", RUN_PLAN, patched("plan.json", R"({"model": {"layers": 5}})"), "%/plan.json", ""},
      {"PlanOtherFormat", RUN_PLAN " --format nf4", nothing(), "%/plan.json", "model.format"},
      {"PlanOtherKv", RUN_PLAN " --kv-dtype fp32", nothing(), "%/plan.json", "kv_dtype"},
      {"PlanOtherContext", RUN_PLAN " --context 4096", nothing(), "%/plan.json", "4096"},
      {"PlanOtherRanks", RUN_PLAN " --ranks 2", nothing(), "%/plan.json", ""},
      {"PlanContextHuge", RUN_PLAN, patched("plan.json", R"({"workload": {"context": 1000000000}})"), "%/plan.json", ""},
      {"PlanPagesHuge", RUN_PLAN, patched("plan.json", R"({"kv_pages": [2000000000]})"), "%/plan.json", "kv_pages"},
      {"PlanPagesNone", RUN_PLAN, patched("plan.json", R"({"kv_pages": []})"), "%/plan.json", "kv_pages"},
      {"PlanPagesTooFew", RUN_PLAN, patched("plan.json", R"({"kv_pages": [1]})"), "%/plan.json", "kv_pages"},
      {"PlanBatchHuge", RUN_PLAN, patched("plan.json", R"({"workload": {"batch": 1000000}})"), "%/plan.json", ""},
      {"PlanPageZero", RUN_PLAN, patched("plan.json", R"({"workload": {"page_tokens": 0}})"), "%/plan.json", "page_tokens"},
      {"PlanUsedBytes", RUN_PLAN, edited("plan.json", [](json& p) { p["devices"][0]["used_bytes"] = 1; }), "%/plan.json", "used_bytes"},
      {"PlanNegativeBytes", RUN_PLAN, edited("plan.json", [](json& p) { p["devices"][0]["kv_bytes"] = -1; }), "%/plan.json", "kv_bytes"},
      {"PlanOnGpu", RUN_PLAN, edited("plan.json", [](json& p) { p["devices"][0]["id"] = "0", p["stages"][0]["devices"][0] = "0"; }), "%/plan.json", "bf16"},
      {"PlanMesh", RUN_PLAN, edited("plan.json", [](json& p) { p["mesh"] = {{"pp", 2}, {"ep", 1}, {"tp", 1}}; }), "%/plan.json", "mesh"},
      {"PlanThatDoesNotFit", RUN_PLAN, patched("plan.json", R"({"verdict": "no"})"), "", "fit"},

      // cluster JSON and budgets
      {"ClusterNoJson", CLUSTER, content("cluster.json", "{"), "%/cluster.json", ""},
      {"ClusterList", CLUSTER, content("cluster.json", "[]"), "%/cluster.json", "object"},
      {"ClusterNoDevices", CLUSTER, content("cluster.json", R"({"devices": []})"), "%/cluster.json", "devices"},
      {"ClusterNoId", CLUSTER, content("cluster.json", R"({"devices": [{"total_bytes": 1}]})"), "%/cluster.json", "id"},
      {"ClusterNoBytes", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0"}]})"), "%/cluster.json", "total_bytes"},
      {"ClusterTextBytes", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0", "total_bytes": "8GiB"}]})"), "%/cluster.json", "total_bytes"},
      {"ClusterNegativeBytes", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0", "total_bytes": -8}]})"), "%/cluster.json", "total_bytes"},
      {"ClusterTwice", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0", "total_bytes": 8}, {"id": "0", "total_bytes": 8}]})"), "%/cluster.json", "twice"},
      {"ClusterLink", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0", "total_bytes": 8}], "links": [{"from": "0", "to": "1"}]})"), "%/cluster.json", "to"},
      {"ClusterFreeAboveTotal", CLUSTER, content("cluster.json", R"({"devices": [{"id": "0", "total_bytes": 8, "free_bytes": 9}]})"), "%/cluster.json", "free_bytes"},
      {"ClusterSchema", CLUSTER, content("cluster.json", R"({"schema": "x", "devices": []})"), "%/cluster.json", "tandem.cluster/1"},
      {"ClusterEndless", "plan preset:gpt2 --cluster /dev/zero", nothing(), "/dev/zero", ""},
      {"GpusCount", "plan preset:gpt2 --gpus 99999xrtx3090", nothing(), "--gpus", "1024"},
      {"GpusEmptyPart", "plan preset:gpt2 --gpus 1xrtx3090,", nothing(), "--gpus", ""},
      {"GpusTypo", "plan preset:gpt2 --gpus 1xrtx3091", nothing(), "--gpus", "rtx3090"},
      {"PlanPpMany", PLAN " --pp 17", nothing(), "--pp", "17"},
      {"PlanObjective", PLAN " --objective fast", nothing(), "--objective", "latency"},
      {"PlanOutputInNoFolder", PLAN " -o %/no/plan.json", nothing(), "-o", "%/no/plan.json"},
      {"PlanOutputIsFolder", PLAN " -o %/folder", folder("folder"), "-o", "%/folder"},
      {"PlanHtmlInNoFolder", PLAN " -o %/plan9.json --html %/no/plan.html", nothing(), "--html", "%/no/plan.html"},

      // tokenize, inspect, logits, perplexity, bench
      {"DecodeOutside", "tokenize %/dir --decode 509", nothing(), "--decode", "509"},
      {"DecodeHuge", "tokenize %/dir --decode 2147483647", nothing(), "--decode", "2147483647"},
      {"DecodeEmpty", "tokenize %/dir --decode ''", nothing(), "--decode", "empty"},
      {"DecodeNegative", "tokenize %/dir --decode -1", nothing(), "--decode", "-1"},
      {"TokenizeLoneConfig", "tokenize %/dir/config.json --prompt x", nothing(), "%/dir/config.json", "tokenizer"},
      {"InspectTensor", "inspect %/dir --tensor nope --dequantize -o %/x.npy", nothing(), "--tensor", "nope"},
      {"InspectTensorOfPreset", "inspect preset:gpt3 --tensor wte.weight --dequantize -o %/x.npy", nothing(), "preset:gpt3", ""},
      {"InspectTensorPresetLlama", "inspect preset:llama-3.2-1b --tensor model.norm.weight --dequantize -o %/x.npy", nothing(), "preset:llama-3.2-1b", "weights"},
      {"InspectTensorFormat", "inspect %/dir --tensor model.norm.weight --dequantize --format q9 -o %/x.npy", nothing(), "--format", "q9"},
      {"InspectTensorCut", "inspect %/dir --tensor model.norm.weight --dequantize -o %/x.npy", cut(weights, 500000), "%/dir/model.safetensors", ""},
      {"InspectOutputFolder", "inspect %/dir --tensor model.norm.weight --dequantize -o %/folder", folder("folder"), "-o", "%/folder"},
      {"InspectFormat", "inspect %/dir --format int3", nothing(), "--format", "int3"},
      {"LogitsOutside", "logits %/dir --prompt-ids 1,509 -o %/x.npy", nothing(), "--prompt-ids", "509"},
      {"LogitsNone", "logits %/dir --prompt-ids '' -o %/x.npy", nothing(), "--prompt-ids", "empty"},
      {"LogitsTooLong", "logits %/dir --prompt-ids 1,2,3,4,5 --context 4 -o %/x.npy", nothing(), "--prompt-ids", "5"},
      {"LogitsNoFolder", "logits %/dir --prompt-ids 1 -o %/no/x.npy", nothing(), "-o", "%/no/x.npy"},
      {"LogitsFolder", "logits %/dir --prompt-ids 1 -o %/folder", folder("folder"), "-o", "%/folder"},
      {"LogitsNoOutput", "logits %/dir --prompt-ids 1", nothing(), "", "--output"},
      {"LogitsCut", "logits %/dir --prompt-ids 1 -o %/x.npy", cut(weights, 500000), "%/dir/model.safetensors", ""},
      {"PerplexityNoFile", "perplexity %/dir %/no.txt", nothing(), "%/no.txt", "no such file"},
      {"PerplexityFolder", "perplexity %/dir %/folder", folder("folder"), "%/folder", "directory"},
      {"PerplexityEmpty", "perplexity %/dir %/x.txt", content("x.txt", ""), "%/x.txt", "token"},
      {"PerplexityWindow", "perplexity %/dir %/x.txt --context 1", content("x.txt", "hello world"), "--context", "is 1"},
      {"PerplexityNoTokenizer", "perplexity %/dir %/x.txt", [=](const Files& f) {
         f.write("x.txt", "hello");
         fs::remove(f.path(tokenizer));
       }, "%/dir", "tokenizer"},
      {"BenchCase", "bench %/dir --cases decode/b1", nothing(), "--cases", "decode/b1"},
      {"BenchCases", "bench %/dir --cases ''", nothing(), "--cases", "empty"},
      {"BenchCaseZero", "bench %/dir --cases prefill/0", nothing(), "--cases", "prefill/0"},
      {"BenchCaseHuge", "bench %/dir --cases prefill/99999999999", nothing(), "--cases", "prefill"},
      {"BenchContext", "bench %/dir --cases prefill/128 --context 64", nothing(), "--c", "128"},
      {"BenchBatch", "bench %/dir --cases decode/b9/c8 --max-batch 4", nothing(), "--", "9"},
      {"BenchRepeat", "bench %/dir --repeat 0", nothing(), "--repeat", "0"},
      {"TraceNoFolder", GENERATE " --trace %/no/trace.json", nothing(), "--trace", "%/no/trace.json"},
      {"TraceFolder", GENERATE " --trace %/folder", folder("folder"), "--trace", "%/folder"},
      {"TraceDevice", "bench %/dir --cases load --trace /dev/full", nothing(), "--trace", "/dev/full"},
      {"TraceBeforeTheModel", "serve %/dir --listen 127.0.0.1:0 --trace %/no/trace.json", cut(weights, 500000), "--trace", "%/no/trace.json"},
      {"TraceOfNoModel", "generate %/none --prompt-ids 1 --trace %/trace.json", nothing(), "%/none", ""},
      {"TraceOfAWrongPrompt", "generate %/dir --prompt-ids 99999 --trace %/trace.json", nothing(), "", "99999"},
      {"BenchModel", "bench %/dir --cases load", cut(weights, 500000), "%/dir/model.safetensors", ""},

      // serve, client
      {"ListenNonsense", "serve %/dir --listen nonsense", nothing(), "--listen", "HOST:PORT"},
      {"ListenEmpty", "serve %/dir --listen ''", nothing(), "--listen", "empty"},
      {"ListenPort", "serve %/dir --listen 127.0.0.1:65536", nothing(), "--listen", "65536"},
      {"ListenNoPort", "serve %/dir --listen 127.0.0.1", nothing(), "--listen", "HOST:PORT"},
      {"ListenNotHere", "serve %/dir --listen 127.evil.invalid:0", nothing(), "--listen", "127.evil.invalid"},
      {"ListenEverywhere", "serve %/dir --listen 0.0.0.0:0", nothing(), "--listen", "--insecure"},
      {"ListenNotOurs", "serve %/dir --listen 192.0.2.1:0 --insecure", nothing(), "--listen", "192.0.2.1"},
      {"ServeModel", "serve %/dir --listen 127.0.0.1:0", cut(weights, 500000), "%/dir/model.safetensors", ""},
      {"ServePreset", "serve preset:gpt2 --listen 127.0.0.1:0", nothing(), "preset:gpt2", ""},
      {"ServeTp", "serve %/dir --listen 127.0.0.1:0 --tp 2", nothing(), "--tp", ""},
      {"ServeRanks", "serve %/dir --listen 127.0.0.1:0 --ranks 40", nothing(), "--", "40"},
      {"ServeDrain", "serve %/dir --listen 127.0.0.1:0 --drain-seconds -1", nothing(), "--drain-seconds", "-1"},
      {"ServeDrainNan", "serve %/dir --listen 127.0.0.1:0 --drain-seconds nan", nothing(), "--drain-seconds", "nan"},
      {"ServeLease", "serve %/dir --listen 127.0.0.1:0 --lease-seconds 0", nothing(), "--lease-seconds", "0"},
      {"ServeControl", "serve %/dir --listen 127.0.0.1:0 --ranks 2 --control nonsense", nothing(), "--control", "HOST:PORT"},
      {"ClientAddress", "client nonsense --prompt x", nothing(), "HOST:PORT", "nonsense"},
      {"ClientPort", "client 127.0.0.1:99999 --prompt x", nothing(), "HOST:PORT", "99999"},
      {"ClientChat", "client 127.0.0.1:1 --chat %/none.json", nothing(), "%/none.json", ""},
      {"ChatAddress", "chat nonsense", nothing(), "HOST:PORT", "nonsense"},
      {"WorkerByHand", "worker --control 127.0.0.1:1 --epoch 1", nothing(), "worker", "serve"},
  };
}

class BadInput : public testing::TestWithParam<Case> {};

// What stands on stderr: one line `error: <where>: <what is wrong> (<what would be right>)`.
void expect_one_line(const std::string& err, const std::string& where, const std::string& says) {
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_THAT(err, StartsWith("error: " + where));
  EXPECT_THAT(err, HasSubstr(says));
  EXPECT_TRUE(std::regex_match(err, std::regex("error: [^\n]+: [^\n]+ \\([^\n]+\\)\n"))) << err;
  EXPECT_LT(err.size(), 1000u) << err;
}

TEST_P(BadInput, IsOneLineAndExitCode2) {
  const Case& c = GetParam();
  const Files files;
  files.provide(c.command);
  ASSERT_NO_FATAL_FAILURE(c.change(files));
  const auto before = files.list();
  rusage earlier{}, later{};
  getrusage(RUSAGE_CHILDREN, &earlier);
  const auto began = std::chrono::steady_clock::now();
  const Ran ran = run_tandem(files.with_paths(c.command));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  getrusage(RUSAGE_CHILDREN, &later);
  SCOPED_TRACE(files.with_paths(c.command));
  EXPECT_EQ(ran.code, 2);
  EXPECT_EQ(ran.out, "");
  expect_one_line(ran.err, files.with_paths(c.where), files.with_paths(c.says));
  EXPECT_EQ(files.list(), before);  // nothing half-made is left
  const auto cpu = [](const rusage& u) { return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec); };
  EXPECT_LT(cpu(later) - cpu(earlier), kMostCpuSeconds);
  EXPECT_LT(seconds, kMostSeconds);
  EXPECT_LT(later.ru_maxrss, (kSlowFactor > 1 ? 2048 : 512) * 1024);  // KiB
}
INSTANTIATE_TEST_SUITE_P(Table, BadInput, testing::ValuesIn(cases()), [](const auto& info) { return info.param.name; });


// A line as a shell reads it, "%" standing for the program; what it sends elsewhere is not kept.
Ran run_line(std::string line) {
  const TemporaryFolder folder;
  line.replace(line.find('%'), 1, TANDEM_BINARY);
  const int status = std::system(("{ timeout 60 " + line + " ; } >" + (folder / "out") + " 2>" + (folder / "err")).c_str());
  return {WEXITSTATUS(status), read_whole(folder / "out"), read_whole(folder / "err")};
}

// ---- through a server

struct Asked { const char *options, *field, *says; };

TEST(BadInputToServer, IsInvalidArgumentThatNamesTheField) {
  const TemporaryFolder folder;
  std::ofstream(folder / "chat.json") << R"([{"role": "wizard", "content": "x"}])";
  const Served served(TANDEM_FIXTURES "/llama-tiny", "--context 64");
  ASSERT_NE(served.address(), "") << served.said();
  const std::string chat = "--chat " + (folder / "chat.json");
  const Asked table[] = {
      {"--prompt-ids 1,509", "token_ids", "508"},
      {"--prompt-ids 1 --temperature nan", "sampling.temperature", "nan"},
      {"--prompt-ids 1 --temperature inf", "sampling.temperature", "inf"},
      {"--prompt-ids 1 --temperature -1", "sampling.temperature", "-1"},
      {"--prompt-ids 1 --temperature 3e38", "sampling.temperature", "100"},
      {"--prompt-ids 1 --top-k -7", "sampling.top_k", "-7"},
      {"--prompt-ids 1 --top-p 0", "sampling.top_p", "is 0"},
      {"--prompt-ids 1 --top-p 1.01", "sampling.top_p", "1.01"},
      {"--prompt-ids 1 --min-p nan", "sampling.min_p", "nan"},
      {"--prompt-ids 1 --typical-p 2", "sampling.typical_p", "is 2"},
      {"--prompt-ids 1 --repetition-penalty 0", "sampling.repetition_penalty", "is 0"},
      {"--prompt-ids 1 --repetition-penalty -inf", "sampling.repetition_penalty", "inf"},
      {"--prompt-ids 1 --presence-penalty 1e9", "sampling.presence_penalty", "100"},
      {"--prompt-ids 1 --frequency-penalty nan", "sampling.frequency_penalty", "nan"},
      {"--prompt-ids 1 --logprobs 1000000", "logprobs", "1000000"},
      {"--prompt-ids 1 --logprobs -1", "logprobs", "-1"},
      {"--prompt-ids 1 --max-tokens 0", "stopping.max_tokens", "is 0"},
      {"--prompt-ids 1 --max-tokens -3", "stopping.max_tokens", "-3"},
      {"--prompt-ids 1 --max-tokens 65", "stopping.max_tokens", "64"},
      {"--prompt-ids 1 --min-tokens -3", "stopping.min_tokens", "-3"},
      {"--prompt-ids 1 --min-tokens 9 --max-tokens 8", "stopping.min_tokens", "is 9"},
      {"--prompt-ids 1 --stop ''", "stopping.stop_strings", "empty"},
      {chat.c_str(), "messages", "wizard"},
  };
  for (const Asked& asked : table) {
    SCOPED_TRACE(asked.options);
    const Ran ran = run_tandem("client " + served.address() + " " + asked.options);
    EXPECT_EQ(ran.code, 2);
    EXPECT_EQ(ran.out, "");
    expect_one_line(ran.err, std::string("INVALID_ARGUMENT: ") + asked.field, asked.says);
  }
  std::string ids = "1";
  for (int i = 0; i < 64; ++i) ids += ",1";
  const Ran ran = run_tandem("client " + served.address() + " --prompt-ids " + ids);
  EXPECT_EQ(ran.code, 2);
  expect_one_line(ran.err, "INVALID_ARGUMENT: input", "65 tokens");
  EXPECT_EQ(run_tandem("client " + served.address() + " --prompt-ids 1,2 --max-tokens 3").code, 0);  // and it still serves
}

// ---- what is not wrong

TEST(OddInput, GarbageInAPromptIsText) {
  const Ran ran = run_tandem("generate " TANDEM_FIXTURES "/llama-tiny --prompt \"$(printf 'a\\377\\376\\300\\200b')\" --max-tokens 3 --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_FALSE(json::parse(ran.out)["prompt_token_ids"].empty());
}

TEST(OddInput, AnEmptyPromptIsWhatTheTokenizerMakesOfIt) {  // the beginning-of-text token
  const Ran ran = run_tandem("generate " TANDEM_FIXTURES "/llama-tiny --prompt '' --max-tokens 3 --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["prompt_token_ids"], json({495}));
}

// ---- things around the program

TEST(BadSurroundings, AFullDisk) {
  const std::string model = TANDEM_FIXTURES "/llama-tiny";
  const TemporaryFolder folder;
  std::ofstream(folder / "x.txt") << "hello world, hello world";
  for (const std::string& command :
       {"generate " + model + " --prompt-ids 1 --max-tokens 3", "generate " + model + " --prompt-ids 1 --max-tokens 3 --json", "plan " + model, "plan " + model + " --json",
        "inspect " + model, "inspect " + model + " --json", "tokenize " + model + " --prompt x", "perplexity " + model + " " + (folder / "x.txt"),
        "bench " + model + " --cases load", "bench " + model + " --cases load --json", std::string("plan --list-presets"), std::string("--help"), std::string("--version")}) {
    const Ran ran = run_line("% " + command + " >/dev/full");
    EXPECT_EQ(ran.code, 1) << command;
    EXPECT_THAT(ran.err, StartsWith("error: standard output: cannot be written")) << command;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
  }
  for (const std::string& command : {"logits " + model + " --prompt-ids 1 -o /dev/full", "inspect " + model + " --tensor model.norm.weight --dequantize -o /dev/full",
                                     "plan " + model + " -o /dev/full", "plan " + model + " --html /dev/full"}) {
    const Ran ran = run_tandem(command);
    EXPECT_EQ(ran.code, 1) << command;
    EXPECT_THAT(ran.err, HasSubstr("/dev/full")) << command;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_TRUE(fs::is_character_file("/dev/full")) << "replaced by " << command;
  }
}

TEST(BadSurroundings, OutputFilesAreReplacedOnlyWhenWhole) {
  const TemporaryFolder folder;
  const std::string model = TANDEM_FIXTURES "/llama-tiny", file = folder / "x.npy";
  std::ofstream(file) << "precious";
  EXPECT_EQ(run_tandem("logits " + model + " --prompt-ids 1,509 -o " + file).code, 2);
  EXPECT_EQ(read_whole(file), "precious");
  fs::create_symlink(file, folder / "link.npy");
  EXPECT_EQ(run_tandem("logits " + model + " --prompt-ids 1,2 -o " + (folder / "link.npy")).code, 0);
  EXPECT_TRUE(fs::is_symlink(folder / "link.npy"));
  EXPECT_THAT(read_whole(file), StartsWith("\x93NUMPY"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(BadSurroundings, AFileThatShrinksWhileItIsRead) {
  const TemporaryFolder folder;
  fs::copy(TANDEM_FIXTURES "/llama-tiny", folder / "dir", fs::copy_options::recursive);
  const uint64_t whole = fs::file_size(folder / "dir/model.safetensors");
  int refused = 0;
  for (int delay = 0; delay < 12; ++delay) {
    fs::remove(folder / "dir/model.safetensors");
    fs::copy(TANDEM_FIXTURES "/llama-tiny/model.safetensors", folder / "dir/model.safetensors");
    std::thread shrink([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(8 * delay));
      fs::resize_file(folder / "dir/model.safetensors", whole / 2);
    });
    const Ran ran = run_tandem("generate " + (folder / "dir") + " --prompt-ids 1 --max-tokens 2");
    shrink.join();
    if (ran.code == 0) continue;  // it was read by then
    ++refused;
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("model.safetensors"));
  }
  EXPECT_GT(refused, 0);
}

TEST(BadSurroundings, APortInUse) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  const std::string port = std::to_string(ntohs(address.sin_port));
  const Ran ran = run_tandem("serve " TANDEM_FIXTURES "/llama-tiny --listen 127.0.0.1:" + port);
  close(fd);
  EXPECT_EQ(ran.code, 1);
  expect_one_line(ran.err, "--listen", port + " is in use");
}

// ---- under mpirun: the launcher says more, but only one line is ours

TEST(BadInputUnderMpirun, IsSaidOnce) {
  const std::string model = TANDEM_FIXTURES "/llama-tiny ";
  const TemporaryFolder folder;
  fs::copy(TANDEM_FIXTURES "/llama-tiny", folder / "dir", fs::copy_options::recursive);
  fs::resize_file(folder / "dir/model.safetensors", 500000);
  for (const std::string& command :
       {"generate " + model, "generate " + model + "--prompt-ids 1 --nonsense", "generate " + model + "--prompt-ids 509", "logits " + model + "--prompt-ids 509 -o /no/such/x.npy",
        "generate " + model + "--prompt-ids 1 --ranks 3",
        "generate " + model + "--prompt-ids 1 --tp 2", std::string("generate /no/such --prompt x"), "generate " + (folder / "dir") + " --prompt-ids 1",
        "logits " + model + "--prompt-ids 1 -o /no/such/x.npy", "perplexity " + model + "/no/such.txt", "bench " + model + "--cases foo", "serve " + model + "--listen foo",
        "plan " + model + "--context -1", std::string("inspect /no/such"), "tokenize " + model + "--decode 509"}) {
    const auto began = std::chrono::steady_clock::now();
    const Ran ran = run_line("mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 % " + command);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    EXPECT_EQ(ran.code, 2) << command;
    EXPECT_EQ(error_lines(ran), 1) << command << "\n" << ran.err;
    EXPECT_EQ(ran.out, "") << command;
    EXPECT_LT(seconds, 15 * kSlowFactor) << command;  // some 2 s on an idle machine
  }
}

}  // namespace
}  // namespace tandem
