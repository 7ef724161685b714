// What a device can do: size and compile a program, lay weights out, run. Sizes and kernel choice need no device. A backend outlives
// what it makes. compile() and sizes() may be called from any thread; an Executable belongs to one rank's thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/peer_group.h"
#include "kernels/formats/format.h"
#include "kernels/program/arithmetic.h"
#include "kernels/program/program.h"

namespace tandem {

struct Bucket {  // the largest step that an executable takes
  int32_t rows = 0;       // tokens: chunk + decoding sequences
  int32_t heads = 0;      // rows whose logits are wanted
  int32_t sequences = 0;
  int32_t page_tokens = 64;
  int32_t context = 0;    // longest sequence
};

struct SizeRow { std::string name; uint64_t bytes = 0; };

// A KV group on one rank: `layers` layers whose keys and values share page tables.
struct KvShape { int32_t layers = 0; int64_t kv_heads = 0, head_dim = 0; int64_t window = 0; };
uint64_t page_bytes(const KvShape& shape, int32_t page_tokens, KvType type);  // keys and values of one page, all layers

// Where a weight is used decides its layout.
// vector: norms and biases, always fp32 when resident. router: a product whose few results choose experts.
enum class Use : uint8_t { product, table, product_and_table, vector, router };

struct WeightLayout {
  std::string kernel;              // which kernel will read it, printable
  Use use = Use::product;
  uint64_t weights_bytes = 0, scales_bytes = 0;  // resident, padding included
  uint64_t bytes() const { return weights_bytes + scales_bytes; }
  int64_t rows = 0, cols = 0;
  const Format* format = nullptr;
  const void* opaque = nullptr;    // the backend's own
};

// ---- what a step is, to a backend (host memory; valid during the call)
constexpr int kMaxKvGroups = 4;
struct SequenceRows {               // rows [row, row + rows) are consecutive positions of one sequence, starting at `position`
  int32_t slot = 0, row = 0, rows = 0, position = 0;
  const int32_t* pages[kMaxKvGroups] = {};  // page table of each KV group, long enough for position + rows
};
constexpr int32_t kDrawnId = -1;    // only for an Executable that keeps_ids()
struct StepRows {
  int32_t rows = 0;
  const int32_t* ids = nullptr;        // [rows]; read by the stage that embeds; kDrawnId: what was last drawn for the row's slot
  const int32_t* positions = nullptr;  // [rows]
  std::span<const SequenceRows> sequences;
  std::span<const int32_t> heads;      // rows whose logits are wanted, ascending
};

struct Sampling {  // how one token is chosen; neutral values switch a step off
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;
  float top_p = 1, min_p = 0, typical_p = 1;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t no_repeat_ngram = 0;  // no sequence of so many ids comes twice; 0: off. Carried out by whoever fills SampleRow::forbidden
  uint32_t choice = 0;          // which of several answers with one seed: Philox counter
  uint64_t seed = 0;
  int32_t logprobs = -1;  // how many of the best to report; -1: none, 0: the chosen one's only
};
struct TokenCount { int32_t id, prompt, generated; float bias = 0; };  // occurrences so far; bias: added to the logit before all else
struct SampleRow {
  int32_t head = 0;        // index into StepRows::heads
  int32_t slot = 0;        // whose sequence it is
  int32_t position = 0;    // absolute position of the token to be drawn: Philox counter
  const Sampling* sampling = nullptr;
  std::span<const TokenCount> counts;    // distinct ids: those with a bias, and those seen when a penalty is on
  std::span<const int32_t> forbidden;    // ids that may not be drawn (stop ids before min_tokens, what would repeat an n-gram)
  std::span<const uint32_t> allowed;     // a bit an id, ids beyond the last word not allowed; empty: all are
};
constexpr int kMaxLogprobs = 20;
struct Sampled {
  int32_t id = 0;
  float logprob = 0;  // log-softmax of the raw logits
  int32_t top_count = 0;
  int32_t top_ids[kMaxLogprobs];
  float top_logprobs[kMaxLogprobs];
};

constexpr int kMostUndrawn = 4;

class Executable {
 public:
  virtual ~Executable() = default;
  virtual void bind(WeightId weight, const WeightLayout& layout, const std::byte* resident) = 0;
  virtual void bind_memory(std::span<std::byte> workspace, std::span<const std::span<std::byte>> kv_groups) = 0;
  virtual void bind_peers(PeerGroup* peers) = 0;  // null: alone in its stage
  // Everything is bound: what can be done before the first step. The buffers are those that every forward() will be given.
  virtual void prepare(const float* /*hidden_in*/, float* /*hidden_out*/) {}
  // hidden_in: float[rows, hidden] when the stage receives; hidden_out: float[rows, hidden] when it has no head. Both on the device.
  virtual void forward(const StepRows& step, const float* hidden_in, float* hidden_out) = 0;
  // Draws from the last forward's logits; a device may still be at it when this returns. drawn() waits for the oldest sample() that it
  // was not called for; out: as many as that had rows. At most kMostUndrawn may be left undrawn.
  virtual void sample(std::span<const SampleRow> rows) = 0;
  virtual void drawn(std::span<Sampled> out) = 0;
  // Waits until drawn() would return at once (true) or until `interrupt` is set (false).
  virtual bool wait_drawn(const std::atomic<bool>& /*interrupt*/) { return true; }
  virtual bool keeps_ids() const { return false; }  // what is drawn stays on the device: kDrawnId may be asked for before drawn()
  virtual const float* logits() = 0;  // float[heads, vocab] of the last forward, host-readable until the next; waits
  // Copies of pages inside the caches (copy-on-write): page indices of one group.
  virtual void copy_pages(int32_t group, std::span<const std::pair<int32_t, int32_t>> from_to) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "cpu", "cuda"
  virtual WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) const = 0;
  // Repacks a stored slice into its layout at `destination` (layout.bytes() bytes of this backend's memory).
  virtual void place(const WeightLayout& layout, const QuantizedView& slice, std::byte* destination) = 0;
  // Every buffer of a compiled program, by name: what the plan's workspace rows say and bind_memory takes, as one block.
  virtual std::vector<SizeRow> workspace(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                         const Arithmetic& arithmetic) const = 0;
  virtual std::unique_ptr<Executable> compile(const Program& program, std::span<const KvShape> kv, const Bucket& bucket,
                                              const Arithmetic& arithmetic) = 0;
  virtual void* stream() const { return nullptr; }  // of the device's own kind, in whose order everything above happens; null: no such thing
  // Called now and then while the host waits for the device: throws when the wait is hopeless (a peer is gone). Not on CPUs.
  virtual void watch(std::function<void()> /*check*/) {}
  virtual std::byte* allocate(uint64_t bytes) = 0;  // 64-byte aligned or better, zero pages untouched. Errors: Code::resource_exhausted
  virtual void release(std::byte* memory, uint64_t bytes) = 0;
};

}  // namespace tandem
