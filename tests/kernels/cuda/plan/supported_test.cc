// What no kernel computes yet is refused by name before anything is allocated.
#include "kernels/cuda/plan/supported.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/base/error.h"

namespace tandem::cuda {
namespace {

constexpr Norm kNorm{.weight = 1}, kAsItIs{.kind = NormKind::none};

TEST(Supported, RefusesByName) {
  const std::pair<const char*, std::function<void(Program&)>> cases[] = {
      {"learned positions",
       [](Program& p) {
         p.embed({0, 100, 32}, 0, 100, 1, {1, 66, 2});
       }},
      {"projected embeddings",
       [](Program& p) {
         p.embed({0, 100, 24}, 0, 100, 1, {}, {2, 32, 24});
       }},
      {"without a norm before them", [](Program& p) { p.receive(32), p.enter(kAsItIs); }},
      {"after the residual sum", [](Program& p) { p.receive(32), p.enter(kNorm, true); }},
      {"before it is added",
       [](Program& p) {
         p.receive(32), p.enter(kNorm), p.contract({2, 32, 32}), p.normalize(kNorm);
       }},
      {"query and key heads",
       [](Program& p) {
         p.receive(32), p.enter(kNorm), p.project({2, 32, 32}, {3, 32, 32}, {4, 32, 32}, {2, 2, 16}, {}, {}, kNorm, kNorm);
       }},
      {"shared experts",
       [](Program& p) {
         p.receive(32), p.enter(kNorm);
         p.moe({1, 1, 32}, {{2, 8, 32}}, {{3, 8, 32}}, {{4, 32, 8}}, 1, 0, 1, true, Activation::silu,
               {{5, 8, 32}, {6, 8, 32}, {7, 32, 8}, {8, 1, 32}});
       }},
      {"heads without a norm",
       [](Program& p) {
         p.receive(32), p.head(kAsItIs, {0, 100, 32}, 100, {});
       }},
      {"projected heads",
       [](Program& p) {
         p.receive(32), p.head(kNorm, {0, 100, 24}, 100, {}, 1, 0, {2, 24, 32});
       }},
  };
  for (const auto& [words, record] : cases) {
    Program p;
    record(p);
    try {
      check_supported(p);
      ADD_FAILURE() << "accepted, though: " << words;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::failed_precondition);
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  }
  Program llama;
  llama.receive(32), llama.enter(kNorm), llama.leave();
  check_supported(llama);
}

}  // namespace
}  // namespace tandem::cuda
