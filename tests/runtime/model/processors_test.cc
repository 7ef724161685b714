// What a slot and the sampler together leave of given logits, against transformers' processors (processors.jsonl, written by
// make_processors.py): every draw inverts the distribution that transformers has.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/philox.h"
#include "kernels/cpu/sample.h"
#include "runtime/model/slots.h"

namespace tandem {
namespace {

using nlohmann::json;

Admission admission_of(const json& setup, const json& given) {
  Admission a;
  a.ids = setup["prompt"].get<std::vector<int32_t>>();
  a.prompt_tokens = static_cast<int32_t>(a.ids.size());
  for (const auto& id : setup["generated"]) a.ids.push_back(id);
  a.sampling.temperature = given.value("temperature", 1.0f);
  a.sampling.top_k = given.value("top_k", 0);
  a.sampling.top_p = given.value("top_p", 1.0f);
  a.sampling.min_p = given.value("min_p", 0.0f);
  a.sampling.typical_p = given.value("typical_p", 1.0f);
  a.sampling.repetition_penalty = given.value("repetition_penalty", 1.0f);
  a.sampling.no_repeat_ngram = given.value("no_repeat_ngram", 0);
  a.sampling.seed = 5;
  a.min_tokens = given.value("min_tokens", 0);
  a.stop_ids = given.value("stop_ids", std::vector<int32_t>());
  a.allowed_ids = given.value("allowed", std::vector<int32_t>());
  const json biases = given.value("bias", json::object());
  for (const auto& [id, value] : biases.items()) a.bias_ids.push_back(std::stoi(id)), a.biases.push_back(value);
  return a;
}

TEST(Processors, LeaveTheDistributionOfTransformers) {
  std::ifstream file(std::string(TANDEM_FIXTURES) + "/../runtime/model/processors.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const json setup = json::parse(line);
  const auto vocab = setup["vocab"].get<int64_t>();
  std::vector<std::byte> scratch(cpu::sample_scratch_bytes(vocab));
  int cases = 0, near_a_border = 0;
  constexpr int kDraws = 400;
  for (; std::getline(file, line); ++cases) {
    const json row = json::parse(line);
    SCOPED_TRACE(row["case"].dump());
    const auto logits = row["logits"].get<std::vector<float>>();
    Slots slots(256, 16);
    Step step;
    step.admissions.push_back(admission_of(setup, row["case"]));
    slots.apply(step);
    Slot& slot = slots[0];
    for (int position = 0; position < kDraws; ++position) {
      const SampleRow sample{0, 0, position, &slot.sampling, slot.counts, forbidden_now(slot, vocab), slot.allowed};
      const int32_t id = cpu::sample_row(logits.data(), vocab, sample, scratch.data()).id;
      const double u = philox_uniform(5, static_cast<uint32_t>(position), 0, 0);
      double before = 0;
      for (int32_t i = 0; i < id; ++i) before += row["probabilities"][static_cast<size_t>(i)].get<double>();
      const double after = before + row["probabilities"][static_cast<size_t>(id)].get<double>();
      ASSERT_GT(after, before) << "id " << id << " has no probability there";
      constexpr double kRounding = 2e-5;
      ASSERT_GT(u, before - kRounding) << "id " << id;
      ASSERT_LT(u, after + kRounding) << "id " << id;
      near_a_border += u < before || u > after;
    }
  }
  EXPECT_GE(cases, 48);
  EXPECT_LT(near_a_border, cases * kDraws / 1000);
}

TEST(Processors, EachIsNeededToMatch) {  // the comparison above would see a processor that does nothing
  std::ifstream file(std::string(TANDEM_FIXTURES) + "/../runtime/model/processors.jsonl");
  std::string line;
  std::getline(file, line);
  int changed = 0;
  while (std::getline(file, line)) {
    const json row = json::parse(line);
    const auto logits = row["logits"].get<std::vector<double>>();
    double total = 0, distance = 0;
    for (const double v : logits) total += std::exp(v);
    for (size_t i = 0; i < logits.size(); ++i) distance += std::abs(std::exp(logits[i]) / total - row["probabilities"][i].get<double>());
    changed += distance > 1e-3;
  }
  EXPECT_GE(changed, 40);
}

TEST(ForbiddenNow, LeavesSomethingToDraw) {
  Slots slots(256, 16);
  Step step;
  Admission a;
  a.ids = {0, 1, 2, 3, 0, 1, 2, 3};
  a.prompt_tokens = 4;
  a.sampling.no_repeat_ngram = 1;
  a.stop_ids = {2};
  a.min_tokens = 100;
  step.admissions.push_back(a);
  slots.apply(step);
  EXPECT_EQ(forbidden_now(slots[0], 5).size(), 5u);  // 2, and all that were seen; 4 is left
  EXPECT_EQ(forbidden_now(slots[0], 4).size(), 1u);  // nothing would be left: only the stop id stays forbidden
}

TEST(NgramHistory, KnowsWhatFollowed) {
  NgramHistory history;
  std::vector<int32_t> followers;
  history.start(3);
  for (const int32_t id : {1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1}) history.push(id);
  history.append_followers(followers);
  EXPECT_TRUE(followers.empty());
  history.push(2);
  history.append_followers(followers);
  EXPECT_EQ(followers, (std::vector<int32_t>{3, 4}));
  history.start(3);
  followers.clear();
  history.push(1);
  history.append_followers(followers);
  EXPECT_TRUE(followers.empty());
}

}  // namespace
}  // namespace tandem
