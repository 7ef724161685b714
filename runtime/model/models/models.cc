#include "kernels/base/error.h"
#include "runtime/model/models/llama.h"
#include "runtime/model/models/mixtral.h"

namespace tandem {
namespace {

template <typename F>
std::unique_ptr<Model> make(const nlohmann::json& config, const std::string& where) {
  return std::make_unique<F>(Config(config, where));
}

constexpr Family kFamilies[] = {
    {"llama", make<Llama>},
    {"mixtral", make<Mixtral>},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

std::unique_ptr<Model> make_model(const nlohmann::json& config, const std::string& where) {
  const Config reader(config, where);
  const std::string type = reader.text("model_type");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return family.make(config, where);
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  reader.bad("model_type", "is " + type + " (known: " + known + ")");
}

}  // namespace tandem
