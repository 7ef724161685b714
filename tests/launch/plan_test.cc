// plan: exit codes, JSON, files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(Plan, ExitCodesSayWhetherItFits) {
  const std::string model = "plan preset:llama-3.2-1b --context 1024 --max-memory ";
  EXPECT_EQ(run_tandem(model + "0=20GiB").code, 0);
  EXPECT_EQ(run_tandem(model + "0=20GiB --reserve 19GiB").code, 3);
  EXPECT_EQ(run_tandem(model + "0=1GiB").code, 4);
  EXPECT_EQ(run_tandem(model + "0=many").code, 2);
}

TEST(Plan, JsonHasTheFieldsOfTheContract) {
  const Ran ran = run_tandem("plan preset:llama-3.1-8b --format nf4 --gpus 2xrtx3090 --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json plan = json::parse(ran.out);  // nothing but the plan
  for (const char* key : {"schema", "verdict", "model", "workload", "objective", "footprint_bytes", "device_bytes", "stages", "devices", "device_map", "max_context",
                          "max_batch", "predicted", "binding", "remedies", "optimality"}) {
    EXPECT_TRUE(plan.contains(key)) << key;
  }
  EXPECT_EQ(plan["schema"], "tandem.plan/1");
  EXPECT_EQ(plan["verdict"], "fits");
  EXPECT_EQ(plan["footprint_bytes"], 5591539968u);
  EXPECT_EQ(plan["workload"]["context"], 4096);
  EXPECT_EQ(plan["workload"]["batch"], 1);
  EXPECT_EQ(plan["workload"]["page_tokens"], 64);
  for (const json& device : plan["devices"]) {
    uint64_t used = 0;
    for (const char* key : {"weights_bytes", "scales_bytes", "kv_bytes", "workspace_bytes", "communication_bytes", "overhead_bytes"}) used += device[key].get<uint64_t>();
    EXPECT_EQ(device["used_bytes"], used);
  }
}

TEST(Plan, OnCpusThePipelineIsAsLongAsThereAreRanks) {
  const json plan = json::parse(run_tandem("plan preset:smollm2-135m --ranks 3 --json").out);
  ASSERT_EQ(plan["stages"].size(), 3u);
  EXPECT_EQ(plan["stages"][0]["devices"], json({"cpu:0"}));
  EXPECT_EQ(plan["stages"][2]["last_layer"], 29);
  const json alone = json::parse(run_tandem("plan preset:smollm2-135m --json").out);
  ASSERT_EQ(alone["stages"].size(), 1u);
  EXPECT_EQ(alone["stages"][0]["devices"], json({"cpu"}));
  const json group = json::parse(run_tandem("plan preset:smollm2-135m --ranks 6 --tp 3 --json").out);
  ASSERT_EQ(group["stages"].size(), 2u);
  EXPECT_EQ(group["stages"][0]["devices"].size(), 3u);
}

TEST(Plan, WritesWhatItPrints) {
  const TemporaryFolder folder;
  const std::string file = folder / "plan.json", picture = folder / "plan.html";
  const Ran ran = run_tandem("plan " TANDEM_FIXTURES "/llama-tiny --ranks 2 -o " + file + " --html " + picture);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("cpu:1"));
  EXPECT_THAT(ran.out, HasSubstr("exact"));
  EXPECT_EQ(json::parse(read_whole(file))["stages"].size(), 2u);
  const std::string html = read_whole(picture);
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("cpu:1"));
  EXPECT_THAT(html, testing::Not(HasSubstr("http")));  // self-contained
  EXPECT_THAT(html, testing::Not(HasSubstr("<script")));

  // The written plan is taken as it is, and refused for another model or other numbers.
  const Ran again = run_tandem("plan " TANDEM_FIXTURES "/llama-tiny --plan " + file + " --json");
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(json::parse(again.out), json::parse(read_whole(file)));
  for (const std::string other : {"/llama-tied --plan ", "/llama-tiny --format nf4 --plan ", "/llama-tiny --kv-dtype fp32 --plan ", "/llama-tiny --pp 1 --plan "}) {
    const Ran refused = run_tandem("plan " TANDEM_FIXTURES + other + file);
    EXPECT_EQ(refused.code, 2) << other;
    EXPECT_EQ(error_lines(refused), 1) << refused.err;
    EXPECT_THAT(refused.err, HasSubstr("plan.json")) << other;
  }
}

TEST(Plan, ListsPresets) {
  const Ran ran = run_tandem("plan --list-presets");
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("mixtral-8x7b"));
  EXPECT_THAT(ran.out, HasSubstr("rtx3090"));
}

TEST(Plan, ClusterFile) {
  const TemporaryFolder folder;
  std::ofstream(folder / "cluster.json") << R"({"devices": [{"id": "A/0", "node": "A", "total_bytes": 8000000000}, {"id": "B/0", "node": "B", "total_bytes": 8000000000}]})";
  const Ran ran = run_tandem("plan preset:llama-3.1-8b --format nf4 --pp 2 --json --cluster " + (folder / "cluster.json"));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["stages"].size(), 2u);
}

TEST(Plan, EveryPresetCanBePlanned) {
  std::istringstream list(run_tandem("plan --list-presets").out);
  std::string line;
  std::getline(list, line);
  int presets = 0;
  while (std::getline(list, line) && line.starts_with("  ")) {
    const Ran ran = run_tandem("plan preset:" + line.substr(2) + " --format nf4 --max-memory 0=2000GiB --json");
    EXPECT_EQ(ran.code, 0) << line << ran.err;
    ++presets;
  }
  EXPECT_GE(presets, 12);
}

}  // namespace
}  // namespace tandem
