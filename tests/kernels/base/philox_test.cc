#include "kernels/base/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace tandem {
namespace {

// The vectors that come with the authors' library (Random123, kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, PublishedVectors) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformNumbersAreInTheirRangeAndApart) {
  std::set<double> seen;
  double sum = 0;
  for (uint32_t position = 0; position < 10000; ++position) {
    const double u = philox_uniform(42, position, 0, 0);
    EXPECT_GE(u, 0.0);
    EXPECT_LT(u, 1.0);
    seen.insert(u);
    sum += u;
  }
  EXPECT_EQ(seen.size(), 10000u);
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
  EXPECT_NE(philox_uniform(42, 1, 0, 0), philox_uniform(43, 1, 0, 0));
  EXPECT_NE(philox_uniform(42, 1, 0, 0), philox_uniform(uint64_t{42} + (uint64_t{1} << 32), 1, 0, 0));
  EXPECT_NE(philox_uniform(42, 1, 0, 0), philox_uniform(42, 1, 1, 0));
  EXPECT_NE(philox_uniform(42, 1, 0, 0), philox_uniform(42, 1, 0, 1));
}

}  // namespace
}  // namespace tandem
