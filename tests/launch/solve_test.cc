// plan --solve: the answer fits and the next value does not, as plan_for itself sees it; more memory never makes an answer smaller; what
// people and programs read; wrong questions.
#include "launch/solve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "kernels/formats/format.h"
#include "launch/devices.h"
#include "launch/plan_html.h"
#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

struct Case {
  std::string name, model;
  PlanRequest request;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

ModelOptions model_of(const std::string& preset, const std::string& format = "keep") {
  ModelOptions model;
  model.model = "preset:" + preset;
  model.format = format;
  return model;
}
PlanRequest on_gpus(const std::string& gpus) {
  PlanRequest request;
  request.budget.gpus = gpus;
  return request;
}
PlanRequest with_memory(const std::string& memory) {
  PlanRequest request;
  request.budget.max_memory = memory;
  return request;
}

// As the plan command plans.
Plan planned(const ModelOptions& model, const PlanRequest& request) {
  const bool gpu = plans_for_gpus(request);
  const Blueprint blueprint = make_blueprint(model, gpu);
  return plan_for(blueprint, request, *make_sizes(gpu, 1));
}
Plan planned(const ModelOptions& model, PlanRequest request, int32_t context, int32_t batch) {
  request.size.context = context, request.size.max_batch = batch;
  return planned(model, request);
}

std::vector<Case> cases() {
  std::vector<Case> list = {{"llama8b_3090", "llama-3.1-8b", on_gpus("1xrtx3090")},
                            {"llama8b_two", "llama-3.1-8b", on_gpus("1xrtx3060,1xa4000")},
                            {"llama70b_4x3090", "llama-3.1-70b", on_gpus("4xrtx3090")},
                            {"llama70b_three_kinds", "llama-3.1-70b", on_gpus("1xrtx3090,1xa4000,1xrtx4090")},
                            {"mixtral_unequal", "mixtral-8x7b", on_gpus("1xrtx3090,1xa4000")},
                            {"mixtral_tp_ep", "mixtral-8x7b", on_gpus("4xrtx4070")},
                            {"llama405b_8xh100", "llama-3.1-405b", on_gpus("8xh100")},
                            {"llama2_7b", "llama-2-7b", with_memory("0=8GiB")},
                            {"llama1b_odd_pages", "llama-3.2-1b", with_memory("0=3GiB,1=2GiB")},
                            {"smollm_cpu", "smollm2-135m", with_memory("cpu=1700MiB")},
                            {"llama3b_one_gpu", "llama-3.2-3b", with_memory("0=6GiB")},
                            {"tinyllama_small", "tinyllama-1.1b", with_memory("0=1700MiB")}};
  list[5].request.place.tp = 2, list[5].request.place.ep = 2;
  list[8].request.size.page = 100;
  list[9].request.budget.reserve = "10MiB", list[9].request.place.threads = 1;
  return list;
}

class EveryAnswer : public testing::TestWithParam<Case> {};

TEST_P(EveryAnswer, FitsAndTheNextDoesNot) {
  const Case& c = GetParam();
  const ModelOptions model = model_of(c.model, "nf4");
  const int32_t own = make_blueprint(model, true).model->shape.context;
  for (const int32_t batch : {1, 3}) {
    PlanRequest request = c.request;
    request.size.max_batch = batch;
    const Solution s = solve("context", model, request);
    ASSERT_TRUE(s.answer);
    const int32_t context = s.answer->context, page = request.size.page;
    EXPECT_EQ(context % page, 0);
    EXPECT_EQ(s.verdict, Verdict::fits);
    EXPECT_EQ(planned(model, request, context, batch).verdict, Verdict::fits);
    EXPECT_EQ(to_json(*s.plan), to_json(planned(model, request, context, batch)));
    if (s.next) {
      EXPECT_EQ(s.next->context, context + page);
      EXPECT_NE(planned(model, request, context + page, batch).verdict, Verdict::fits);
      EXPECT_THAT(s.binding, HasSubstr("on device ")) << "names what and where";
      EXPECT_THAT(s.binding, HasSubstr("which lacks "));
    } else {
      EXPECT_GT(context + page, own);
      EXPECT_THAT(s.binding, HasSubstr("the model's own context"));
    }
  }
  for (const int32_t context : {0, 700}) {
    PlanRequest request = c.request;
    request.size.context = context;
    const Solution s = solve("batch", model, request);
    ASSERT_TRUE(s.answer);
    const int32_t batch = s.answer->batch;
    EXPECT_EQ(planned(model, request, context, batch).verdict, Verdict::fits);
    if (s.next) {
      EXPECT_EQ(s.next->batch, batch + 1);
      EXPECT_NE(planned(model, request, context, batch + 1).verdict, Verdict::fits);
      EXPECT_THAT(s.binding, HasSubstr("on device "));
    } else {
      EXPECT_EQ(batch, 4096);
    }
  }
  const Solution s = solve("frontier", model, c.request);
  ASSERT_FALSE(s.rows.empty());
  EXPECT_LE(s.rows.size(), 20u);
  for (size_t i = 0; i < s.rows.size(); ++i) {
    const SolutionRow& row = s.rows[i];
    EXPECT_EQ(planned(model, c.request, row.context, row.batch).verdict, Verdict::fits);
    if (row.batch < 4096) {
      EXPECT_NE(planned(model, c.request, row.context, row.batch + 1).verdict, Verdict::fits);
    }
    EXPECT_NE(row.binding, "");
    if (i == 0) continue;
    EXPECT_GT(row.context, s.rows[i - 1].context);
    EXPECT_LT(row.batch, s.rows[i - 1].batch);
  }
  // One sequence may be no longer than the last row says.
  PlanRequest one = c.request;
  one.size.max_batch = 1;
  EXPECT_EQ(s.rows.back().context, std::max(solve("context", model, one).answer->context, s.rows.back().context));
}
INSTANTIATE_TEST_SUITE_P(Cases, EveryAnswer, testing::ValuesIn(cases()), [](const auto& info) { return info.param.name; });

TEST(SolveDevices, OneLessDoesNotFit) {
  struct Row {
    const char *model, *format, *gpu;
    int32_t context, tp;
  };
  for (const Row& row : {Row{"llama-3.1-70b", "nf4", "rtx3090", 4096, 0}, Row{"llama-3.1-70b", "bf16", "a4000", 512, 0}, Row{"mixtral-8x7b", "nf4", "rtx4070", 32768, 2},
                         Row{"llama-3.1-405b", "nf4", "h100", 131072, 0}, Row{"llama-3.2-1b", "bf16", "rtx3090", 512, 0}}) {
    const ModelOptions model = model_of(row.model, row.format);
    PlanRequest request = on_gpus(row.gpu);
    request.size.context = row.context;
    request.place.tp = row.tp;
    const Solution s = solve("devices", model, request);
    ASSERT_TRUE(s.answer) << row.model;
    const int count = s.answer->devices, step = std::max(row.tp, 1);
    EXPECT_EQ(s.answer->gpus, std::to_string(count) + "x" + row.gpu);
    EXPECT_EQ(count % step, 0);
    request.budget.gpus = s.answer->gpus;
    EXPECT_EQ(planned(model, request).verdict, Verdict::fits);
    EXPECT_EQ(s.next.has_value(), count > step);
    if (!s.next) continue;
    request.budget.gpus = std::to_string(count - step) + "x" + row.gpu;
    EXPECT_NE(planned(model, request).verdict, Verdict::fits);
    EXPECT_THAT(s.binding, HasSubstr("on device "));
  }
}

TEST(SolveDevices, EachKindAloneAndTheFewestFirst) {
  const Solution s = solve("devices", model_of("llama-3.1-70b", "nf4"), on_gpus("3xa4000,1xrtx3090,2xa4000"));
  ASSERT_EQ(s.rows.size(), 2u);
  EXPECT_THAT(s.rows[0].gpus, testing::EndsWith("xa4000"));
  EXPECT_EQ(s.answer->gpus, s.rows[1].gpus);
  EXPECT_EQ(s.answer->gpus, "2xrtx3090");
  // A stage is one group of devices: pp is said, so the number is.
  PlanRequest request = on_gpus("rtx3090");
  request.place.pp = 3;
  EXPECT_EQ(solve("devices", model_of("llama-3.1-70b", "nf4"), request).answer->gpus, "3xrtx3090");
}

TEST(SolveDevices, SixtyFourMayBeTooFew) {
  const Solution s = solve("devices", model_of("llama-3.1-405b"), on_gpus("rtx2080ti"));
  EXPECT_EQ(s.verdict, Verdict::no);
  EXPECT_FALSE(s.answer);
  EXPECT_EQ(s.next->gpus, "64xrtx2080ti");
  EXPECT_THAT(s.headline, HasSubstr("nothing fits: model.layers."));
}

TEST(SolveFormat, ListsWhatCanBeMadeBestFirst) {
  const std::vector<std::string> formats = formats_by_quality();
  EXPECT_EQ(formats.front(), "bf16");
  EXPECT_THAT(formats, testing::IsSupersetOf({"q8_0", "q4_0", "nf4", "fp4", "nf4_dq"}));
  EXPECT_THAT(formats, testing::Not(testing::Contains("q6_k")));  // read, never made
  const auto at = [&](const char* name) { return std::find(formats.begin(), formats.end(), name) - formats.begin(); };
  EXPECT_LT(at("q8_0"), at("nf4"));
  EXPECT_LT(at("nf4"), at("nf4_dq"));
  EXPECT_LT(at("fp4"), at("nf4_dq"));
  for (const std::string& format : formats) EXPECT_NE(find_format(format), nullptr);
}

TEST(SolveFormat, TheBestThatFits) {
  struct Row {
    PlanRequest request;
    const char* best;
  };
  for (const Row& row : {Row{on_gpus("8xa100-80gb"), "bf16"}, Row{on_gpus("4xrtx3090"), "nf4"}, Row{with_memory("0=20GiB,1=20GiB,2=4GiB"), "nf4_dq"}}) {
    const Solution s = solve("format", model_of("llama-3.1-70b"), row.request);
    ASSERT_TRUE(s.answer) << row.best;
    EXPECT_EQ(s.answer->format, row.best);
    EXPECT_EQ(s.rows.size(), formats_by_quality().size());
    for (const SolutionRow& each : s.rows) {
      EXPECT_EQ(each.verdict, planned(model_of("llama-3.1-70b", each.format), row.request).verdict) << each.format;
      if (each.format == s.answer->format) break;
      EXPECT_NE(each.verdict, Verdict::fits);
      EXPECT_NE(each.binding, "");
    }
    EXPECT_EQ(s.next.has_value(), s.answer->format != "bf16");
  }
}

TEST(SolveFormat, ModulesMayBeExcepted) {
  const Solution s = solve("format", model_of("llama-3.1-8b", "lm_head=fp32"), on_gpus("rtx3080"));
  ASSERT_TRUE(s.answer);
  EXPECT_EQ(s.answer->format, "nf4,lm_head=fp32");
  EXPECT_THAT(s.plan->format, HasSubstr("fp32"));
}

TEST(Solve, MoreMemoryNeverMakesAnAnswerSmaller) {
  const auto gib = [](double n) { return "0=" + std::to_string(static_cast<int64_t>(n * 1024)) + "MiB,1=3GiB"; };
  int32_t context = 0, batch = 0;
  size_t quality = SIZE_MAX;
  std::vector<SolutionRow> frontier;
  Verdict verdict = Verdict::no;
  for (double memory = 0.4; memory < 14; memory *= 1.17) {
    SCOPED_TRACE(memory);
    const PlanRequest request = with_memory(gib(memory));
    const ModelOptions nf4 = model_of("llama-3.2-3b", "nf4");
    const Solution c = solve("context", nf4, request), b = solve("batch", nf4, request), f = solve("frontier", nf4, request), q = solve("format", model_of("llama-3.2-3b"), request);
    EXPECT_LE(c.verdict, verdict);
    verdict = c.verdict;
    EXPECT_GE(c.answer ? c.answer->context : 0, context);
    context = c.answer ? c.answer->context : 0;
    EXPECT_GE(b.answer ? b.answer->batch : 0, batch);
    batch = b.answer ? b.answer->batch : 0;
    const std::vector<std::string> order = formats_by_quality();
    const size_t place = q.answer ? static_cast<size_t>(std::find(order.begin(), order.end(), q.answer->format) - order.begin()) : SIZE_MAX;
    EXPECT_LE(place, quality);
    quality = place;
    const std::vector<SolutionRow> rows = f.verdict == Verdict::no ? std::vector<SolutionRow>() : f.rows;
    for (const SolutionRow& before : frontier) {
      EXPECT_TRUE(std::any_of(rows.begin(), rows.end(), [&](const SolutionRow& now) { return now.context >= before.context && now.batch >= before.batch; }))
          << before.context << " x " << before.batch;
    }
    frontier = rows;
  }
  EXPECT_EQ(verdict, Verdict::fits);
  EXPECT_EQ(quality, 0u);
  int devices = 65;
  for (const char* reserve : {"20GiB", "15GiB", "10GiB", "4GiB", "512MiB"}) {
    PlanRequest request = on_gpus("rtx3090");
    request.budget.reserve = reserve;
    const Solution s = solve("devices", model_of("llama-3.1-70b", "nf4"), request);
    ASSERT_TRUE(s.answer);
    EXPECT_LE(s.answer->devices, devices) << reserve;
    devices = s.answer->devices;
  }
  EXPECT_EQ(devices, 2);
}

TEST(Solve, OnlyWithLessThanTheReserve) {
  PlanRequest request = with_memory("0=20GiB");
  request.budget.reserve = "19GiB";
  for (const char* question : {"context", "batch", "frontier"}) {
    const Solution s = solve(question, model_of("llama-3.2-1b"), request);
    EXPECT_EQ(s.verdict, Verdict::tight) << question;
    EXPECT_THAT(s.headline, HasSubstr("nothing keeps the reserve; ")) << question;
    ASSERT_EQ(s.answer.has_value(), question != std::string("frontier"));
    const SolutionRow& row = s.rows.front();
    EXPECT_EQ(row.verdict, Verdict::tight);
    EXPECT_THAT(row.binding, HasSubstr("which lacks "));
  }
}

TEST(Solve, TextFitsItsColumns) {
  for (const char* question : {"context", "batch", "frontier", "devices"}) {
    const Solution s = solve(question, model_of("llama-3.1-70b", "nf4"), on_gpus("4xrtx3090"));
    for (const int columns : {60, 80, 120}) {
      std::istringstream text(table(s, columns));
      for (std::string line; std::getline(text, line);) EXPECT_LE(line.size(), static_cast<size_t>(columns)) << line;
    }
  }
}

// ---- the command

TEST(SolveCommand, ExitCodes) {
  const std::string model = "plan preset:llama-3.2-1b --max-memory ";
  for (const char* question : {"context", "batch", "frontier", "format"}) {
    EXPECT_EQ(run_tandem(model + "0=20GiB --solve " + question).code, 0) << question;
    const Ran none = run_tandem(model + "0=1GiB --solve " + question);
    EXPECT_EQ(none.code, 4) << question;
    EXPECT_THAT(none.out, HasSubstr("nothing fits: model.layers.")) << question;
    EXPECT_THAT(none.out, HasSubstr("which lacks ")) << question;
    EXPECT_EQ(none.err, "");
    EXPECT_EQ(run_tandem(model + "0=20GiB --reserve 19900MiB --solve " + question).code, 3) << question;
  }
}

TEST(SolveCommand, JsonHasItsFields) {
  const std::vector<std::string> fields = {"schema", "solve", "verdict", "answer", "next", "binding", "rows", "plan"};
  const std::vector<std::string> row_fields = {"context", "batch", "format", "gpus", "devices", "verdict", "device_bytes", "used_bytes", "decode_tokens_per_second", "binding"};
  const auto keys = [](const json& object) {
    std::vector<std::string> names;
    for (const auto& item : object.items()) names.push_back(item.key());
    return names;
  };
  for (const std::string question : {"context", "batch", "frontier", "devices", "format"}) {
    const Ran ran = run_tandem("plan preset:llama-3.1-8b --gpus 1xrtx3080 " + std::string(question == "format" ? "" : "--format nf4") + " --json --solve " + question);
    ASSERT_EQ(ran.code, 0) << question << ran.err;
    const json solution = json::parse(ran.out);  // nothing else is printed
    EXPECT_THAT(keys(solution), testing::UnorderedElementsAreArray(fields)) << question;
    EXPECT_EQ(solution["schema"], "tandem.solve/1");
    EXPECT_EQ(solution["solve"], question);
    EXPECT_EQ(solution["verdict"], "fits");
    ASSERT_FALSE(solution["rows"].empty());
    for (const json& row : solution["rows"]) EXPECT_THAT(keys(row), testing::UnorderedElementsAreArray(row_fields)) << question;
    EXPECT_EQ(solution["answer"].is_null(), question == "frontier");
    EXPECT_EQ(solution["plan"].is_null(), question == "frontier");
    if (question == "frontier") continue;
    EXPECT_THAT(keys(solution["answer"]), testing::UnorderedElementsAreArray(row_fields));
    EXPECT_EQ(solution["plan"]["schema"], "tandem.plan/1");
    EXPECT_EQ(solution["plan"]["workload"]["context"], solution["answer"]["context"]);
  }
}

TEST(SolveCommand, WritesTheFoundPlanAndDrawsTheFrontier) {
  const TemporaryFolder folder;
  const std::string file = folder / "plan.json", picture = folder / "plan.html", frontier = folder / "frontier.html";
  const std::string model = "plan " TANDEM_FIXTURES "/llama-tiny --max-memory cpu=2GiB ";
  const Ran ran = run_tandem(model + "--solve context --json -o " + file + " --html " + picture);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(read_whole(file)), json::parse(ran.out)["plan"]);
  EXPECT_THAT(read_whole(picture), HasSubstr("<svg"));
  EXPECT_EQ(run_tandem("plan " TANDEM_FIXTURES "/llama-tiny --plan " + file).code, 0);  // and it is a plan to run
  ASSERT_EQ(run_tandem("plan preset:llama-3.1-8b --format nf4 --gpus rtx3090 --solve frontier --html " + frontier).code, 0);
  const std::string html = read_whole(frontier);
  EXPECT_THAT(html, HasSubstr("<polyline"));
  EXPECT_THAT(html, HasSubstr("131072"));
  EXPECT_THAT(html, testing::Not(HasSubstr("nan")));
  EXPECT_THAT(html, testing::Not(HasSubstr("http")));
}

TEST(SolveCommand, WrongQuestionsAreOneLine) {
  const std::string model = "plan preset:llama-3.2-1b ", gpus = model + "--gpus rtx3090 ";
  struct Row {
    std::string arguments, says;
  };
  for (const Row& row : {Row{gpus + "--solve happiness", "--solve: is happiness (must be context, batch, frontier, devices or format)"},
                         Row{gpus + "--solve context --context 512", "--context"}, Row{gpus + "--solve batch --max-batch 2", "--max-batch"},
                         Row{gpus + "--solve frontier --context 512", "--context"}, Row{gpus + "--solve frontier --max-batch 2", "--max-batch"},
                         Row{gpus + "--solve frontier -o /dev/null", "-o"}, Row{model + "--solve devices", "--gpus"},
                         Row{gpus + "--max-memory 0=4GiB --solve devices", "--max-memory"}, Row{gpus + "--format nf4 --solve format", "--format"},
                         Row{gpus + "--double-quant --solve format", "--double-quant"}, Row{gpus + "--solve context --plan x.json", "--plan"},
                         Row{gpus + "--solve context --page 0", "--page"}, Row{gpus + "--solve batch --context -4", "--context"},
                         Row{gpus + "--solve devices --tp 7", "--tp"}, Row{"plan --solve context", "MODEL"}}) {
    const Ran ran = run_tandem(row.arguments);
    EXPECT_EQ(ran.code, 2) << row.arguments;
    EXPECT_EQ(error_lines(ran), 1) << ran.err;
    EXPECT_EQ(ran.out, "") << row.arguments;
    EXPECT_THAT(ran.err, HasSubstr(row.says)) << row.arguments;
  }
}

}  // namespace
}  // namespace tandem
