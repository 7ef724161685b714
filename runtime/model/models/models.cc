#include "kernels/base/error.h"
#include "runtime/model/models/model.h"

// THE list: config.json's model_type; NAME is make_NAME() in NAME.cc.
#define TANDEM_FAMILIES(family) \
  family(llama)                 \
  family(mistral)               \
  family(mixtral)               \
  family(qwen2)                 \
  family(qwen3)                 \
  family(qwen3_moe)             \
  family(qwen2_moe)             \
  family(phi3)                  \
  family(gemma2)                \
  family(gpt2)                  \
  family(opt)

namespace tandem {

#define TANDEM_DECLARE(name) std::unique_ptr<Model> make_##name(const Config& config);
TANDEM_FAMILIES(TANDEM_DECLARE)
#undef TANDEM_DECLARE

namespace {

#define TANDEM_ROW(name) {#name, make_##name},
constexpr Family kFamilies[] = {TANDEM_FAMILIES(TANDEM_ROW)};
#undef TANDEM_ROW

}  // namespace

std::span<const Family> families() { return kFamilies; }

std::unique_ptr<Model> make_model(const nlohmann::json& config, const std::string& where) {
  const Config reader(config, where);
  const std::string type = reader.text("model_type");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return family.make(reader);
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  reader.bad("model_type", "is " + type + " (known: " + known + ")");
}

}  // namespace tandem
