// Which page of the KV caches belongs to whom. A page is an index within its KV group, the same on every rank. Pages are free, taken
// (somebody's own), or held by the prefix cache: a cached block is one full page of every KV group with the keys and values of
// page_tokens tokens, found by (parent block, salt, its ids). Hashes only find candidates; ids are compared. Blocks that nobody holds
// wait in order of last use and are evicted when pages run out. Every operation takes constant time. Not thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace tandem {

struct PagePoolOptions {
  std::vector<int32_t> pages;  // per KV group
  int32_t page_tokens = 64;
  bool cache = true;                  // off: find finds nothing, insert takes nothing
  uint64_t hash_mask = ~uint64_t{0};  // tests make hashes collide with it
};

class PagePool {
 public:
  using Block = int32_t;
  static constexpr Block kNoBlock = -1;

  explicit PagePool(PagePoolOptions options);

  int32_t groups() const { return static_cast<int32_t>(free_.size()); }
  int32_t total(int32_t group) const { return options_.pages[group]; }
  int32_t available(int32_t group) const { return static_cast<int32_t>(free_[group].size()) + idle_; }  // free, or by eviction
  int32_t take(int32_t group);              // needs available(group) > 0; evicts the block that was used longest ago if no page is free
  void give(int32_t group, int32_t page) {  // back to the free ones
    free_[group].push_back(page);
    ++version_;
  }

  // The cached block that continues `parent` (kNoBlock: begins a sequence) with these page_tokens ids, or kNoBlock. Takes no reference.
  Block find(Block parent, uint64_t salt, std::span<const int32_t> ids) const;
  // Caches a full block, takes a reference to it and owns its pages (one a group) from now on. kNoBlock: an equal block is there already
  // (or there is no cache), and the pages stay the caller's. `parent` must be held.
  Block insert(Block parent, uint64_t salt, std::span<const int32_t> ids, std::span<const int32_t> pages);
  void hold(Block block);
  void drop(Block block);  // a sequence drops its deepest block first: so children are always evicted before their parent
  int32_t page(Block block, int32_t group) const { return block_pages_[static_cast<size_t>(block) * free_.size() + group]; }

  uint64_t version() const { return version_; }  // changes whenever a request that did not fit might fit now
  uint64_t evictions() const { return evictions_; }
  int32_t cached() const { return cached_; }  // blocks, held or not
  void clear();                               // everything free, nothing cached: the start of an epoch

 private:
  struct Node {
    uint64_t hash = 0, salt = 0;
    Block parent = kNoBlock, next = kNoBlock;  // next: in the same bucket
    Block older = kNoBlock, newer = kNoBlock;  // among idle ones
    int32_t references = 0;
  };
  uint64_t hash(Block parent, uint64_t salt, std::span<const int32_t> ids) const;
  bool equals(Block block, uint64_t hash, Block parent, uint64_t salt, std::span<const int32_t> ids) const;
  std::span<int32_t> ids_of(Block block) { return {block_ids_.data() + static_cast<size_t>(block) * page_tokens_, page_tokens_}; }
  void unlink(Block block);
  void evict_oldest();

  PagePoolOptions options_;
  size_t page_tokens_;
  std::vector<std::vector<int32_t>> free_;  // per group
  std::vector<Node> nodes_;
  std::vector<int32_t> block_pages_, block_ids_;
  std::vector<Block> unused_, buckets_;
  Block oldest_ = kNoBlock, newest_ = kNoBlock;
  int32_t idle_ = 0, cached_ = 0;
  uint64_t version_ = 0, evictions_ = 0;
};

}  // namespace tandem
