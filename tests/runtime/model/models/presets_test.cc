// Shapes by name: every preset constructs, full repository ids mean the same, unknown names are answered with near ones.
#include "runtime/model/models/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/model/models/model.h"

namespace tandem {
namespace {

TEST(Presets, EveryOneConstructs) {
  EXPECT_GE(preset_names().size(), 12u);
  for (const std::string& name : preset_names()) {
    const auto model = make_model(preset_config(name), name);
    EXPECT_GT(model->weights.size(), 0) << name;
  }
}

TEST(Presets, RepositoryIdsMeanTheSame) {
  for (const PresetFile& file : preset_files()) {
    const auto ids = nlohmann::json::parse(file.text).at("repositories");
    EXPECT_FALSE(ids.empty()) << file.name;
    for (const auto& id : ids) EXPECT_EQ(preset_config(id), preset_config(std::string(file.name))) << id;
  }
  EXPECT_EQ(preset_config("META-LLAMA/llama-3.1-8b-instruct"), preset_config("Llama-3.1-8B"));
  EXPECT_FALSE(preset_config("llama-3.1-8b").contains("repositories"));
}

TEST(Presets, UnknownNamesListNearOnes) {
  for (const std::string name : {"llama-3.1-9b", "llama31-8b", "meta-llama/Llama-3.1-8b-it"}) {
    try {
      preset_config(name);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::not_found);
      EXPECT_THAT(error.what(), testing::HasSubstr("llama-3.1-8b"));
    }
  }
}

}  // namespace
}  // namespace tandem
