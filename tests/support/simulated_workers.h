// All ranks of a worker group as one object without arithmetic: carries out steps and checks every rule that a step promises (slots,
// serials, pages granted before use and written by one sequence only, ids_from, digests, order of rows). Its model's next id is a hash
// of all ids before it, read back out of the simulated KV pages, so that a wrong page is a wrong id. Throws std::logic_error naming the
// rule that was broken.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/model/step.h"
#include "runtime/serving/engine_options.h"
#include "runtime/serving/request.h"

namespace tandem {

class SimulatedWorkers {
 public:
  // thorough: every row reads all that its attention would see, not only the position before it.
  explicit SimulatedWorkers(const EngineOptions& options, bool thorough = true) : options_(options), thorough_(thorough) {
    slots_.resize(static_cast<size_t>(options.max_batch));
    lanes_.resize(static_cast<size_t>(options.groups));
    for (const int32_t pages : options.kv_pages) {
      cells_.emplace_back(static_cast<size_t>(pages) * static_cast<size_t>(options.page_tokens));
      holders_.emplace_back(static_cast<size_t>(pages));
    }
  }

  // What the model generates after `prompt`, alone: the judge of every schedule. At most `limit` ids, the stop id included.
  static std::vector<int32_t> alone(const Request& request, int32_t context, int32_t vocab) {
    uint64_t h = 0;
    for (const int32_t id : request.prompt) h = chain(h, id);
    const Stopping& stop = request.stopping;
    const int32_t room = context - static_cast<int32_t>(request.prompt.size());
    const int32_t limit = request.all_logits ? 0 : stop.max_tokens > 0 ? std::min(stop.max_tokens, room) : room;
    std::vector<int32_t> out;
    while (static_cast<int32_t>(out.size()) < limit) {
      const bool early = static_cast<int32_t>(out.size()) < stop.min_tokens && !stop.ignore_eos;
      out.push_back(draw(h, request.sampling, early ? std::span<const int32_t>(stop.stop_ids) : std::span<const int32_t>(), vocab));
      h = chain(h, out.back());
      if (!early && !stop.ignore_eos && contains(stop.stop_ids, out.back())) break;
    }
    return out;
  }

  StepResult apply(const Step& step) {
    if (step.number != last_ + 1) broken("step " + std::to_string(step.number) + " after " + std::to_string(last_));
    last_ = step.number;
    if (step.group < 0 || step.group >= options_.groups) broken("group out of range");
    Lane& lane = lanes_[static_cast<size_t>(step.group)];
    if (step.ids_from != lane.posted)
      broken("ids_from is " + std::to_string(step.ids_from) + ", posted was " + std::to_string(lane.posted));
    std::map<SlotId, int32_t> mail;
    mail.swap(lane.mail);
    lane.posted = 0;

    for (Slot& slot : slots_) forget_behind_windows(slot);
    for (const SlotId id : step.releases) release(id);
    for (const Admission& a : step.admissions) admit(a, step.group);
    for (const PageGrant& g : step.grants) grant(g);
    for (const PageCopy& c : step.copies) {
      (void)c;
      broken("copies are not used");
    }

    StepResult result{.number = step.number, .epoch = step.epoch};
    bool prefilling = false;
    int32_t prompt_tokens = 0;
    std::vector<SlotId> seen;
    for (const StepRow& row : step.rows) {
      Slot& slot = held(row.slot);
      if (contains(seen, row.slot)) broken("two rows of one slot");
      seen.push_back(row.slot);
      if (slot.group != step.group) broken("a row of another group's sequence");
      if (row.tokens < 1) broken("a row without tokens");
      if (slot.length == slot.known()) {
        if (row.tokens != 1 || !row.sample || prefilling) broken("a decode row must be one token, sampled, before all prompt rows");
        const auto item = mail.find(row.slot);
        if (item == mail.end()) broken("a decode row whose slot did not sample in step ids_from");
        slot.ids.push_back(item->second);
      } else {
        prefilling = true;
        prompt_tokens += row.tokens;
        if (slot.length + row.tokens > slot.known()) broken("more prompt tokens than there are");
      }
      StepLogits logits{.slot = row.slot, .serial = slot.serial, .first = slot.length, .rows = row.tokens};
      for (int32_t i = 0; i < row.tokens; ++i) {
        const uint64_t h = run(slot, row.slot);
        if (!row.all_logits) continue;
        for (int32_t v = 0; v < options_.vocab; ++v) logits.values.push_back(static_cast<float>(mix(h + static_cast<uint64_t>(v)) % 1000));
      }
      if (row.all_logits) result.logits.push_back(std::move(logits));
      if (row.sample) {
        if (slot.length != slot.known()) broken("sampled before the last known token");
        const int32_t generated = slot.known() - slot.prompt;
        const bool early = generated < slot.min_tokens;
        const int32_t id = draw(slot.last_hash, slot.sampling, early ? std::span<const int32_t>(slot.stop_ids) : std::span<const int32_t>(),
                                options_.vocab);
        result.tokens.push_back({row.slot, slot.serial, id, -0.5f, {}});
        lane.mail[row.slot] = id;
        lane.posted = step.number;
      }
    }
    if (step.rows.empty()) broken("a step without rows");
    if (prompt_tokens > options_.chunk) broken("more prompt tokens than a chunk");
    if (static_cast<int32_t>(step.rows.size()) > (options_.max_batch + options_.groups - 1) / options_.groups)
      broken("too many sequences in a step");
    if (step.digest && step.digest != digest()) broken("digest");
    if (options_.check_digests && !step.digest) broken("digest missing");
    return result;
  }

  int32_t held_slots() const {
    return static_cast<int32_t>(std::count_if(slots_.begin(), slots_.end(), [](const Slot& s) { return s.serial != 0; }));
  }

 private:
  struct Cell {
    int32_t id = -1, position = -1;
    uint64_t hash = 0;
  };
  struct Slot {
    uint32_t serial = 0;  // 0: free
    int32_t group = 0, length = 0, prompt = 0, cached = 0, min_tokens = 0;
    Sampling sampling;
    uint64_t last_hash = 0;
    std::vector<int32_t> ids, stop_ids;
    std::vector<int32_t> tables[kMaxKvGroups];
    int32_t dead[kMaxKvGroups] = {};  // leading table entries behind the window
    int32_t known() const { return static_cast<int32_t>(ids.size()); }
  };
  struct Lane {
    uint64_t posted = 0;
    std::map<SlotId, int32_t> mail;
  };

  [[noreturn]] void broken(const std::string& rule) const { throw std::logic_error("step " + std::to_string(last_) + ": " + rule); }
  static bool contains(std::span<const int32_t> list, int32_t id) { return std::find(list.begin(), list.end(), id) != list.end(); }
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  static uint64_t chain(uint64_t h, int32_t id) { return mix(h + 0x9e3779b97f4a7c15 + static_cast<uint32_t>(id)); }
  static int32_t draw(uint64_t h, const Sampling& sampling, std::span<const int32_t> forbidden, int32_t vocab) {
    int32_t id = static_cast<int32_t>(mix(h ^ (sampling.temperature > 0 ? sampling.seed : 0)) % static_cast<uint64_t>(vocab));
    while (contains(forbidden, id)) id = (id + 1) % vocab;
    return id;
  }

  int32_t window(int32_t group) const {
    const size_t g = static_cast<size_t>(group);
    const int32_t w = g < options_.kv_windows.size() ? options_.kv_windows[g] : 0;
    return w > 0 && w < options_.context ? w : 0;
  }
  Slot& held(SlotId id) {
    if (id < 0 || id >= options_.max_batch || !slots_[static_cast<size_t>(id)].serial)
      broken("slot " + std::to_string(id) + " is not held");
    return slots_[static_cast<size_t>(id)];
  }
  int32_t& holders(int32_t group, int32_t page) {
    if (page < 0 || page >= options_.kv_pages[static_cast<size_t>(group)]) broken("page out of range");
    return holders_[static_cast<size_t>(group)][static_cast<size_t>(page)];
  }
  Cell& cell(const Slot& slot, int32_t group, int32_t position) {
    const auto& table = slot.tables[group];
    const size_t block = static_cast<size_t>(position / options_.page_tokens);
    if (block >= table.size()) broken("a page is used that was not granted");
    return cells_[static_cast<size_t>(group)][static_cast<size_t>(table[block] * options_.page_tokens + position % options_.page_tokens)];
  }
  int32_t kv_groups() const { return static_cast<int32_t>(options_.kv_pages.size()); }

  void forget_behind_windows(Slot& slot) {
    if (!slot.serial) return;
    for (int32_t g = 0; g < kv_groups(); ++g) {
      if (!window(g)) continue;
      while (slot.dead[g] < static_cast<int32_t>(slot.tables[g].size()) &&
             (slot.dead[g] + 1) * options_.page_tokens <= slot.length - window(g) + 1) {
        --holders(g, slot.tables[g][static_cast<size_t>(slot.dead[g]++)]);
      }
    }
  }

  void release(SlotId id) {
    Slot& slot = held(id);
    for (int32_t g = 0; g < kv_groups(); ++g) {
      for (size_t b = static_cast<size_t>(slot.dead[g]); b < slot.tables[g].size(); ++b) --holders(g, slot.tables[g][b]);
    }
    slot = Slot{};
  }

  void admit(const Admission& a, int32_t group) {
    if (a.slot < 0 || a.slot >= options_.max_batch) broken("admission to a slot out of range");
    Slot& slot = slots_[static_cast<size_t>(a.slot)];
    if (slot.serial) broken("admission to a slot that is held");
    if (a.serial <= last_serial_) broken("serials must grow");
    last_serial_ = a.serial;
    if (a.ids.empty() || a.cached < 0 || a.cached >= static_cast<int32_t>(a.ids.size()) || a.cached % options_.page_tokens)
      broken("admission: cached");
    if (a.prompt_tokens < 1 || a.prompt_tokens > static_cast<int32_t>(a.ids.size())) broken("admission: prompt_tokens");
    slot.serial = a.serial;
    slot.group = group;
    slot.length = slot.cached = a.cached;
    slot.prompt = a.prompt_tokens;
    slot.min_tokens = a.min_tokens;
    slot.sampling = a.sampling;
    slot.ids = a.ids;
    slot.stop_ids = a.stop_ids;
  }

  void grant(const PageGrant& g) {
    Slot& slot = held(g.slot);
    if (g.group < 0 || g.group >= kv_groups()) broken("grant to a KV group out of range");
    auto& table = slot.tables[g.group];
    for (const int32_t page : g.pages) {
      const bool shared = static_cast<int32_t>(table.size()) < slot.cached / options_.page_tokens;
      if (holders(g.group, page)++ != 0 && !shared) broken("a page is granted that another slot holds");
      table.push_back(page);
    }
  }

  // One token of a slot: reads what attention would see, writes its own place, gives the hash of all ids up to it.
  uint64_t run(Slot& slot, SlotId id) {
    const int32_t p = slot.length;
    for (int32_t g = 0; g < kv_groups(); ++g) {
      const int32_t from = std::max(thorough_ ? 0 : p - 1, window(g) ? p - window(g) + 1 : 0);
      for (int32_t q = std::max(0, from); q < p; ++q) {
        const Cell& c = cell(slot, g, q);
        if (c.position != q || c.id != slot.ids[static_cast<size_t>(q)])
          broken("slot " + std::to_string(id) + " finds another's keys at position " + std::to_string(q));
      }
    }
    const uint64_t before = p ? cell(slot, 0, p - 1).hash : 0;
    const int32_t token = slot.ids[static_cast<size_t>(p)];
    const uint64_t h = chain(before, token);
    for (int32_t g = 0; g < kv_groups(); ++g) {
      const int32_t page = (cell(slot, g, p), slot.tables[g][static_cast<size_t>(p / options_.page_tokens)]);
      if (holders(g, page) != 1) broken("a page is written that two slots hold");
      cell(slot, g, p) = {token, p, h};
    }
    ++slot.length;
    slot.last_hash = h;
    return h;
  }

  uint64_t digest() const {
    uint64_t sum = 0;
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (!slots_[i].serial) continue;
      size_t pages = 0;
      for (const auto& table : slots_[i].tables) pages += table.size();
      sum += slot_digest(static_cast<SlotId>(i), slots_[i].serial, slots_[i].length, static_cast<int32_t>(pages));
    }
    return sum;
  }

  EngineOptions options_;
  bool thorough_;
  uint64_t last_ = 0;
  uint32_t last_serial_ = 0;
  std::vector<Slot> slots_;
  std::vector<Lane> lanes_;
  std::vector<std::vector<Cell>> cells_;       // per KV group
  std::vector<std::vector<int32_t>> holders_;  // per KV group, page: slots that could still read or write it
};

}  // namespace tandem
