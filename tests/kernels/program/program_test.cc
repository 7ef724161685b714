#include "kernels/program/program.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/base/error.h"
#include "kernels/program/backend.h"
#include "kernels/program/expand.h"

namespace tandem {
namespace {

Rope rope(int64_t rotary) {
  Rope r;
  r.rotary = rotary;
  r.inverse_frequency.assign(static_cast<size_t>(rotary / 2), 0.5f);
  return r;
}
Norm norm(WeightId weight) {
  Norm n;
  n.weight = weight;
  return n;
}

Program llama(bool split) {
  const int64_t part = split ? 2 : 1;
  const HeadShape heads{4 / part, 2 / part, 16};
  Program p;
  p.embed({0, 100 / part, 32, split}, 0, 100 / part);
  p.enter(norm(1));
  p.project({2, 64 / part, 32, split}, {3, 32 / part, 32, split}, {4, 32 / part, 32, split, false, 14}, heads, rope(16), {0, 3});
  p.attend(heads, {0, 3}, 0.25f, 128, 50);
  p.contract({5, 32, 64 / part, false, split, 15});
  p.enter(norm(6));
  p.project({7, 48 / part, 32, split}, {8, 48 / part, 32, split}, Activation::silu);
  p.contract({9, 32, 48 / part, false, split});
  p.enter(norm(10));
  p.moe({11, 2, 32}, {{12, 24, 32}}, {{13, 24, 32}}, {{16, 32, 24}}, 2, 1, 1, true, Activation::gelu);
  p.head(norm(17), {18, 100 / part, 32, split}, 100, split ? std::vector<int64_t>{50, 50} : std::vector<int64_t>{}, 0.5f, 30);
  p.sample();
  return p;
}

TEST(Program, TextOfAWholeStage) {
  EXPECT_EQ(llama(false).text(),
            "embed w0[0..100,32]\n"
            "enter rms(w1, 1e-05) [32]\n"
            "project q=w2[64,32] k=w3[32,32] v=w4[32,32]+w14 heads=4/2x16 rope=16 kv=0.3\n"
            "attend heads=4/2x16 kv=0.3 scale=0.25 window=128 soft_cap=50\n"
            "contract w5[32,64]+w15\n"
            "enter pending=whole rms(w6, 1e-05) [32]\n"
            "project gate=w7[48,32] up=w8[48,32] silu\n"
            "contract w9[32,48]\n"
            "enter pending=whole rms(w10, 1e-05) [32]\n"
            "moe router=w11[2,32] experts=1..2 of 2 top=1 normalized gelu (w12[24,32] w13[24,32] w16[32,24]) -> partial\n"
            "head pending=partial rms(w17, 1e-05) w18[100,32] vocab=100 scale=0.5 soft_cap=30\n"
            "sample vocab=100\n");
}

TEST(Program, TextOfWhatSomeModelsHave) {
  const HeadShape heads{4, 2, 16};
  Program p;
  p.embed({0, 100, 24}, 0, 100, 1, {1, 66, 2}, {2, 32, 24});
  p.enter({.kind = NormKind::none});
  p.project({3, 64, 32}, {4, 32, 32}, {5, 32, 32}, heads, rope(16), {}, norm(6), norm(7));
  p.attend(heads, {}, 0.25f);
  p.contract({8, 32, 64});
  p.normalize(norm(9));
  p.enter(norm(10), true);
  p.moe({11, 2, 32}, {{12, 24, 32}, {13, 24, 32}}, {{14, 24, 32}, {15, 24, 32}}, {{16, 32, 24}, {17, 32, 24}}, 2, 0, 1, false,
        Activation::silu, {{18, 40, 32}, {19, 40, 32}, {20, 32, 40}, {21, 1, 32}});
  p.head({.kind = NormKind::none}, {0, 100, 24}, 100, {}, 1, 0, {22, 24, 32});
  EXPECT_EQ(p.text(),
            "embed w0[0..100,24] through w2[32,24] positions=w1[66]+2\n"
            "enter as it is [32]\n"
            "project q=w3[64,32] k=w4[32,32] v=w5[32,32] heads=4/2x16 q_norm=rms(w6, 1e-05) k_norm=rms(w7, 1e-05) rope=16 kv=0.0\n"
            "attend heads=4/2x16 kv=0.0 scale=0.25\n"
            "contract w8[32,64]\n"
            "normalize pending=whole rms(w9, 1e-05) [32]\n"
            "enter pending=whole rms(w10, 1e-05) [32] -> x\n"
            "moe router=w11[2,32] experts=0..2 of 2 top=1 silu (w12[24,32] w14[24,32] w16[32,24]) (w13[24,32] w15[24,32] w17[32,24])"
            " shared=(w18[40,32] w19[40,32] w20[32,40]) weigh=w21[1,32]\n"
            "head pending=whole as it is through w22[24,32] w0[100,24] vocab=100\n");
}

TEST(Program, ASplitAxisLeavesAPartialResult) {
  const std::string text = llama(true).text();
  EXPECT_NE(text.find("embed w0[0..50,32] -> partial\nenter pending=partial rms(w1"), std::string::npos) << text;
  EXPECT_NE(text.find("contract w5[32,32]+w15 -> partial\nenter pending=partial rms(w6"), std::string::npos) << text;
  EXPECT_NE(text.find("contract w9[32,24] -> partial\nenter pending=partial rms(w10"), std::string::npos) << text;
  EXPECT_NE(text.find("w18[50,32] vocab=100 parts=50,50"), std::string::npos) << text;
  EXPECT_TRUE(llama(true).has_head());
  EXPECT_TRUE(llama(true).embeds());
}

TEST(Program, AMiddleStageReceivesAndLeaves) {
  Program p;
  p.receive(32);
  p.enter(norm(0));
  p.project({1, 48, 32}, Activation::relu);
  p.contract({2, 32, 48});
  p.leave();
  EXPECT_EQ(p.text(), "enter rms(w0, 1e-05) [32]\nproject up=w1[48,32] relu\ncontract w2[32,48]\nleave pending=whole [32]\n");
  EXPECT_FALSE(p.has_head());
  EXPECT_FALSE(p.embeds());
  EXPECT_EQ(p.hidden(), 32);
}

// What must not be recorded, and words of the refusal.
struct Refusal {
  std::string words;
  std::function<void(Program&)> record;
};

TEST(Program, RefusesWhatDoesNotFit) {
  const HeadShape heads{4, 2, 16};
  const auto entered = [](Program& p) { p.receive(32), p.enter(norm(0)); };
  const std::vector<Refusal> refusals = {
      {"embed or receive first", [](Program& p) { p.enter(norm(0)); }},
      {"enter first",
       [](Program& p) {
         p.receive(32), p.project({1, 48, 32}, Activation::silu);
       }},
      {"does not hold ids",
       [](Program& p) {
         p.embed({0, 99, 32}, 0, 100);
       }},
      {"exist already", [](Program& p) { p.receive(32), p.receive(32); }},
      {"width 32",
       [&](Program& p) {
         entered(p), p.project({1, 48, 31}, Activation::silu);
       }},
      {"differ in shape",
       [&](Program& p) {
         entered(p), p.project({1, 48, 32}, {2, 47, 32}, Activation::silu);
       }},
      {"share 3 key heads",
       [&](Program& p) {
         entered(p), p.project({1, 64, 32}, {2, 48, 32}, {3, 48, 32}, {4, 3, 16}, rope(16), {});
       }},
      {"not heads x head_dim",
       [&](Program& p) {
         entered(p), p.project({1, 65, 32}, {2, 32, 32}, {3, 32, 32}, heads, rope(16), {});
       }},
      {"frequencies",
       [&](Program& p) {
         entered(p), p.project({1, 64, 32}, {2, 32, 32}, {3, 32, 32}, heads, Rope{16, {1}, 1}, {});
       }},
      {"no queries", [&](Program& p) { entered(p), p.attend(heads, {}, 1); }},
      {"attend only",
       [&](Program& p) {
         entered(p), p.project({1, 64, 32}, {2, 32, 32}, {3, 32, 32}, heads, rope(0), {}), p.contract({4, 32, 64});
       }},
      {"another layer",
       [&](Program& p) {
         entered(p), p.project({1, 64, 32}, {2, 32, 32}, {3, 32, 32}, heads, rope(0), {}), p.attend(heads, {0, 1}, 1);
       }},
      {"summed twice",
       [&](Program& p) {
         entered(p), p.project({1, 48, 32}, Activation::silu), p.contract({2, 32, 48, false, true});
       }},
      {"reads a split value",
       [&](Program& p) {
         entered(p), p.project({1, 48, 32, true}, Activation::silu), p.contract({2, 32, 48});
       }},
      {"no working value",
       [&](Program& p) {
         entered(p), p.contract({2, 32, 32}), p.contract({2, 32, 32});
       }},
      {"choose 3 of 2",
       [&](Program& p) {
         entered(p), p.moe({1, 2, 32}, {{2, 8, 32}}, {{3, 8, 32}}, {{4, 32, 8}}, 2, 0, 3, true, Activation::silu);
       }},
      {"experts 1..3 of 2",
       [&](Program& p) {
         entered(p);
         p.moe({1, 2, 32}, {{2, 8, 32}, {5, 8, 32}}, {{3, 8, 32}, {6, 8, 32}}, {{4, 32, 8}, {7, 32, 8}}, 2, 1, 1, true, Activation::silu);
       }},
      {"not the vocabulary",
       [](Program& p) {
         p.receive(32), p.head(norm(0), {1, 99, 32}, 100, {});
       }},
      {"not the vocabulary",
       [](Program& p) {
         p.receive(32), p.head(norm(0), {1, 50, 32, true}, 100, {50, 49});
       }},
      {"nothing is pending", [&](Program& p) { entered(p), p.normalize(norm(1)); }},
      {"no weight", [&](Program& p) { entered(p), p.enter({}); }},
      {"are not 24 wide",
       [](Program& p) {
         p.receive(32), p.head(norm(0), {1, 100, 24}, 100, {});
       }},
      {"summed twice",
       [&](Program& p) {
         entered(p);
         p.moe({1, 2, 32}, {{2, 8, 32}}, {{3, 8, 32}}, {{4, 32, 8}}, 2, 1, 1, true, Activation::silu,
               {{5, 8, 32}, {6, 8, 32}, {7, 32, 8}, {8, 1, 32}});
       }},
      {"no logits", [](Program& p) { p.receive(32), p.sample(); }},
      {"nothing after leave", [](Program& p) { p.receive(32), p.leave(), p.enter(norm(0)); }},
  };
  for (const Refusal& refusal : refusals) {
    Program p;
    try {
      refusal.record(p);
      ADD_FAILURE() << "recorded, though: " << refusal.words;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::internal);
      EXPECT_NE(std::string(e.what()).find(refusal.words), std::string::npos) << e.what();
    }
  }
}

TEST(Program, BytesOfAPage) {
  EXPECT_EQ(page_bytes({.layers = 30, .kv_heads = 3, .head_dim = 64}, 64, KvType::fp16), 2u * 30 * 3 * 64 * 64 * 2);
  EXPECT_EQ(page_bytes({.layers = 1, .kv_heads = 1, .head_dim = 5}, 7, KvType::fp32), 2u * 5 * 7 * 4);
}

TEST(Expand, TextOfEveryRecord) {
  std::string text;
  const Program program = llama(true);
  for (const Record& record : program.records()) {
    for (const Primitive& p : expand(record)) text += describe(p) + "\n";
  }
  EXPECT_EQ(
      text,
      "x = zero\npending = look_up w0\n"
      "pending = reduce pending\nx = add x pending\nh = rms_norm x w1\n"
      "t0 = matrix h w2\nt1 = matrix h w3\nt2 = matrix h w4\nt2 = bias t2 w14\nt0 = rotate t0\nt1 = rotate t1\nappend t1 t2\nh = copy t0\n"
      "t0 = scores h\nt0 = scale t0\nt0 = cap t0\nt0 = mask t0\nt0 = softmax t0\nh = mix t0\n"
      "pending = matrix h w5\npending = bias pending w15\n"
      "pending = reduce pending\nx = add x pending\nh = rms_norm x w6\n"
      "t0 = matrix h w7\nt1 = matrix h w8\nt0 = activate t0\nh = multiply t0 t1\n"
      "pending = matrix h w9\n"
      "pending = reduce pending\nx = add x pending\nh = rms_norm x w10\n"
      "t0 = matrix h w11\nt0 = softmax t0\nt0 = choose t0\npending = zero\nt1 = matrix h w12\nt2 = matrix h w13\nt1 = activate t1\n"
      "t1 = multiply t1 t2\nt3 = matrix t1 w16\npending = add_scaled t3 t0\n"
      "pending = reduce pending\nx = add x pending\nt0 = pick x\nt0 = rms_norm t0 w17\nlogits = matrix t0 w18\nlogits = scale logits\n"
      "logits = cap logits\nlogits = gather logits\n");
}

}  // namespace
}  // namespace tandem
