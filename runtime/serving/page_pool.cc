#include "runtime/serving/page_pool.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace tandem {
namespace {

uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

PagePool::PagePool(PagePoolOptions options) : options_(std::move(options)), page_tokens_(static_cast<size_t>(options_.page_tokens)) {
  if (options_.pages.empty()) bad_input("kv_pages", "no KV group (pages of at least one)");
  if (options_.page_tokens <= 0) bad_input("page", std::to_string(options_.page_tokens) + " tokens a page (at least 1)");
  free_.resize(options_.pages.size());
  const size_t blocks =
      options_.cache ? static_cast<size_t>(std::max(0, *std::min_element(options_.pages.begin(), options_.pages.end()))) : 0;
  nodes_.resize(blocks);
  block_pages_.resize(blocks * free_.size());
  block_ids_.resize(blocks * page_tokens_);
  buckets_.resize(std::bit_ceil(std::max<size_t>(blocks, 1)));
  clear();
}

void PagePool::clear() {
  for (size_t group = 0; group < free_.size(); ++group) {
    free_[group].clear();
    for (int32_t page = options_.pages[group]; page-- > 0;) free_[group].push_back(page);
  }
  unused_.clear();
  for (Block block = static_cast<Block>(nodes_.size()); block-- > 0;) unused_.push_back(block);
  std::fill(buckets_.begin(), buckets_.end(), kNoBlock);
  oldest_ = newest_ = kNoBlock;
  idle_ = cached_ = 0;
  ++version_;
}

int32_t PagePool::take(int32_t group) {
  if (free_[group].empty()) evict_oldest();
  const int32_t page = free_[group].back();
  free_[group].pop_back();
  return page;
}

uint64_t PagePool::hash(Block parent, uint64_t salt, std::span<const int32_t> ids) const {
  uint64_t h = parent == kNoBlock ? mix(salt + 0x9e3779b97f4a7c15) : nodes_[parent].hash;
  for (const int32_t id : ids) h = mix(h + 0x9e3779b97f4a7c15 + static_cast<uint32_t>(id));
  return h & options_.hash_mask;
}

bool PagePool::equals(Block block, uint64_t hash, Block parent, uint64_t salt, std::span<const int32_t> ids) const {
  const Node& node = nodes_[block];
  const int32_t* own = block_ids_.data() + static_cast<size_t>(block) * page_tokens_;
  return node.hash == hash && node.parent == parent && node.salt == salt && std::equal(ids.begin(), ids.end(), own);
}

PagePool::Block PagePool::find(Block parent, uint64_t salt, std::span<const int32_t> ids) const {
  if (!cached_) return kNoBlock;
  const uint64_t h = hash(parent, salt, ids);
  Block block = buckets_[h & (buckets_.size() - 1)];
  while (block != kNoBlock && !equals(block, h, parent, salt, ids)) block = nodes_[block].next;
  return block;
}

PagePool::Block PagePool::insert(Block parent, uint64_t salt, std::span<const int32_t> ids, std::span<const int32_t> pages) {
  if (!options_.cache || find(parent, salt, ids) != kNoBlock) return kNoBlock;
  // Every cached block owns a page of the smallest group and the caller brings one more, so a node is left.
  const Block block = unused_.back();
  unused_.pop_back();
  Node& node = nodes_[block];
  node = {.hash = hash(parent, salt, ids), .salt = salt, .parent = parent, .references = 1};
  Block& bucket = buckets_[node.hash & (buckets_.size() - 1)];
  node.next = bucket;
  bucket = block;
  std::copy(ids.begin(), ids.end(), ids_of(block).begin());
  std::copy(pages.begin(), pages.end(), block_pages_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(block) * free_.size()));
  ++cached_;
  ++version_;
  return block;
}

void PagePool::hold(Block block) {
  if (nodes_[block].references++ == 0) unlink(block);
}

void PagePool::drop(Block block) {
  Node& node = nodes_[block];
  if (--node.references > 0) return;
  node.older = newest_;
  node.newer = kNoBlock;
  (newest_ == kNoBlock ? oldest_ : nodes_[newest_].newer) = block;
  newest_ = block;
  ++idle_;
  ++version_;
}

void PagePool::unlink(Block block) {
  Node& node = nodes_[block];
  (node.older == kNoBlock ? oldest_ : nodes_[node.older].newer) = node.newer;
  (node.newer == kNoBlock ? newest_ : nodes_[node.newer].older) = node.older;
  --idle_;
}

void PagePool::evict_oldest() {
  const Block block = oldest_;
  if (block == kNoBlock) fail(Code::internal, "page pool", "a page was taken when none was available");
  unlink(block);
  Block* link = &buckets_[nodes_[block].hash & (buckets_.size() - 1)];
  while (*link != block) link = &nodes_[*link].next;
  *link = nodes_[block].next;
  for (int32_t group = 0; group < groups(); ++group) free_[group].push_back(page(block, group));
  unused_.push_back(block);
  --cached_;
  ++evictions_;
}

}  // namespace tandem
