#include "runtime/serving/page_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace tandem {
namespace {

using Block = PagePool::Block;
constexpr Block kNone = PagePool::kNoBlock;
using Ids = std::vector<int32_t>;

std::vector<int32_t> take_one_of_each(PagePool& pool) {
  std::vector<int32_t> pages;
  for (int32_t g = 0; g < pool.groups(); ++g) pages.push_back(pool.take(g));
  return pages;
}

TEST(PagePool, TakesAndGives) {
  PagePool pool({.pages = {3, 5}, .page_tokens = 4});
  EXPECT_EQ(pool.available(0), 3);
  std::set<int32_t> taken;
  for (int i = 0; i < 3; ++i) taken.insert(pool.take(0));
  EXPECT_EQ(taken, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.available(0), 0);
  EXPECT_EQ(pool.available(1), 5);
  EXPECT_ANY_THROW(pool.take(0));
  const uint64_t version = pool.version();
  pool.give(0, 1);
  EXPECT_NE(pool.version(), version);
  EXPECT_EQ(pool.take(0), 1);
}

TEST(PagePool, FindsChainsByParentSaltAndIds) {
  PagePool pool({.pages = {8, 8}, .page_tokens = 2});
  const Ids a{1, 2}, b{3, 4};
  const auto pages = take_one_of_each(pool);
  const Block first = pool.insert(kNone, 0, a, pages);
  ASSERT_NE(first, kNone);
  EXPECT_EQ(pool.page(first, 0), pages[0]);
  EXPECT_EQ(pool.page(first, 1), pages[1]);
  const Block second = pool.insert(first, 0, b, take_one_of_each(pool));
  EXPECT_EQ(pool.find(kNone, 0, a), first);
  EXPECT_EQ(pool.find(first, 0, b), second);
  EXPECT_EQ(pool.find(kNone, 0, b), kNone);
  EXPECT_EQ(pool.find(kNone, 1, a), kNone);
  EXPECT_EQ(pool.find(second, 0, a), kNone);
  EXPECT_EQ(pool.insert(kNone, 0, a, take_one_of_each(pool)), kNone);  // there already: the pages stay the caller's
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(pool.available(0), 5);
  pool.drop(second);
  pool.drop(first);
  EXPECT_EQ(pool.available(0), 7);
}

TEST(PagePool, EvictsByLastUseChildrenFirst) {
  PagePool pool({.pages = {4}, .page_tokens = 1});
  const Block root = pool.insert(kNone, 0, Ids{1}, take_one_of_each(pool));
  const Block old = pool.insert(root, 0, Ids{2}, take_one_of_each(pool));
  pool.drop(old);
  pool.drop(root);
  pool.hold(root);
  const Block young = pool.insert(root, 0, Ids{3}, take_one_of_each(pool));
  pool.drop(young);
  pool.drop(root);
  EXPECT_EQ(pool.available(0), 4);
  pool.take(0);  // the free one
  EXPECT_EQ(pool.cached(), 3);
  pool.take(0);
  EXPECT_EQ(pool.find(root, 0, Ids{2}), kNone);
  EXPECT_EQ(pool.find(root, 0, Ids{3}), young);
  pool.take(0);
  EXPECT_EQ(pool.find(root, 0, Ids{3}), kNone);
  EXPECT_EQ(pool.find(kNone, 0, Ids{1}), root);
  pool.hold(root);
  EXPECT_EQ(pool.available(0), 0);  // held: not to be evicted
  pool.drop(root);
  pool.take(0);
  EXPECT_EQ(pool.cached(), 0);
  EXPECT_EQ(pool.evictions(), 3u);
}

TEST(PagePool, DoesNotTrustHashes) {
  PagePool pool({.pages = {16}, .page_tokens = 2, .hash_mask = 0});
  std::map<int32_t, Block> blocks;
  for (int32_t i = 0; i < 8; ++i) blocks[i] = pool.insert(kNone, 0, Ids{i, i}, take_one_of_each(pool));
  for (int32_t i = 0; i < 8; ++i) EXPECT_EQ(pool.find(kNone, 0, Ids{i, i}), blocks[i]);
  EXPECT_EQ(pool.find(kNone, 0, Ids{0, 1}), kNone);
  EXPECT_EQ(pool.find(blocks[0], 0, Ids{1, 1}), kNone);
  EXPECT_EQ(pool.find(kNone, 7, Ids{1, 1}), kNone);
}

TEST(PagePool, OffFindsNothing) {
  PagePool pool({.pages = {2}, .page_tokens = 1, .cache = false});
  EXPECT_EQ(pool.insert(kNone, 0, Ids{1}, Ids{0}), kNone);
  EXPECT_EQ(pool.find(kNone, 0, Ids{1}), kNone);
}

TEST(PagePool, RandomUseLosesNoPage) {  // random chains held, extended, dropped under pressure
  for (const uint64_t mask : {~uint64_t{0}, uint64_t{3}}) {
    std::mt19937 random(5);
    PagePool pool({.pages = {24, 30}, .page_tokens = 1, .hash_mask = mask});
    struct Chain {
      std::vector<Block> blocks;
    };
    std::vector<Chain> chains;
    for (int i = 0; i < 20000; ++i) {
      if (chains.size() < 5 && random() % 2) {
        Chain chain;
        Block parent = kNone;
        for (;;) {
          parent = pool.find(parent, 0, Ids{static_cast<int32_t>(random() % 3)});
          if (parent == kNone) break;
          pool.hold(parent);
          chain.blocks.push_back(parent);
        }
        chains.push_back(chain);
      } else if (!chains.empty() && random() % 3) {
        Chain& chain = chains[random() % chains.size()];
        if (!pool.available(0) || !pool.available(1) || chain.blocks.size() > 6) continue;
        const auto pages = take_one_of_each(pool);
        const Block block =
            pool.insert(chain.blocks.empty() ? kNone : chain.blocks.back(), 0, Ids{static_cast<int32_t>(random() % 3)}, pages);
        if (block == kNone) {
          for (int32_t g = 0; g < 2; ++g) pool.give(g, pages[static_cast<size_t>(g)]);
        } else {
          chain.blocks.push_back(block);
        }
      } else if (!chains.empty()) {
        Chain& chain = chains[random() % chains.size()];
        while (!chain.blocks.empty()) {
          pool.drop(chain.blocks.back());
          chain.blocks.pop_back();
        }
        std::swap(chain, chains.back());
        chains.pop_back();
      }
    }
    for (Chain& chain : chains) {
      for (; !chain.blocks.empty(); chain.blocks.pop_back()) pool.drop(chain.blocks.back());
    }
    EXPECT_GT(pool.evictions(), 100u);
    EXPECT_EQ(pool.available(0), 24);
    EXPECT_EQ(pool.available(1), 30);
    std::set<int32_t> pages;
    for (int i = 0; i < 24; ++i) pages.insert(pool.take(0));
    EXPECT_EQ(pages.size(), 24u);
    EXPECT_EQ(pool.cached(), 0);
  }
}

}  // namespace
}  // namespace tandem
