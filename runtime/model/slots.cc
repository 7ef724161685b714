#include "runtime/model/slots.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace tandem {
namespace {

TokenCount& count_of(std::vector<TokenCount>& counts, int32_t id) {
  auto at = std::lower_bound(counts.begin(), counts.end(), id, [](const TokenCount& c, int32_t v) { return c.id < v; });
  if (at == counts.end() || at->id != id) at = counts.insert(at, TokenCount{id, 0, 0});
  return *at;
}

void add_count(std::vector<TokenCount>& counts, int32_t id, bool prompt) {
  TokenCount& count = count_of(counts, id);
  (prompt ? count.prompt : count.generated)++;
}

bool is_allowed(const Slot& slot, int32_t id) {
  const auto word = static_cast<size_t>(id) / 32;
  return word < slot.allowed.size() && (slot.allowed[word] >> (id % 32) & 1);
}

void allow(Slot& slot, const std::vector<int32_t>& ids) {
  slot.allowed.clear();
  slot.allowed_count = 0;
  for (const int32_t id : ids) {
    if (id < 0) fail(Code::internal, "step", "allows the id " + std::to_string(id));
    const auto word = static_cast<size_t>(id) / 32;
    if (word >= slot.allowed.size()) slot.allowed.resize(word + 1);
    if (!is_allowed(slot, id)) ++slot.allowed_count;
    slot.allowed[word] |= uint32_t{1} << (id % 32);
  }
}

}  // namespace

bool has_penalty(const Sampling& s) { return s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0; }

bool follows_ids(const Sampling& s) { return has_penalty(s) || s.no_repeat_ngram > 0; }

std::span<const int32_t> forbidden_now(Slot& slot, int64_t vocab) {
  std::vector<int32_t>& ids = slot.forbidden;
  ids.clear();
  if (slot.generated < slot.min_tokens) ids = slot.stop_ids;
  if (slot.sampling.no_repeat_ngram <= 0) return ids;
  const size_t others = ids.size();
  slot.history.append_followers(ids);
  const auto may_be_drawn = static_cast<size_t>(slot.allowed.empty() ? vocab : slot.allowed_count);
  if (ids.size() < may_be_drawn) return ids;
  std::vector<int32_t> distinct = ids;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto gone = std::count_if(distinct.begin(), distinct.end(), [&](int32_t id) { return slot.allowed.empty() || is_allowed(slot, id); });
  if (static_cast<size_t>(gone) >= may_be_drawn) ids.resize(others);
  return ids;
}

Slot& Slots::operator[](SlotId id) {
  if (id < 0 || static_cast<size_t>(id) >= slots_.size() || !slots_[static_cast<size_t>(id)].used) {
    fail(Code::internal, "step", "names slot " + std::to_string(id) + ", which holds no sequence");
  }
  return slots_[static_cast<size_t>(id)];
}

void Slots::apply(const Step& step) {
  for (SlotId id : step.releases) (*this)[id].used = false;
  for (const Admission& admission : step.admissions) {
    if (admission.slot < 0 || admission.slot > 1 << 20) fail(Code::internal, "step", "admits to slot " + std::to_string(admission.slot));
    if (static_cast<size_t>(admission.slot) >= slots_.size()) slots_.resize(static_cast<size_t>(admission.slot) + 1);
    Slot& slot = slots_[static_cast<size_t>(admission.slot)];
    if (slot.used) fail(Code::internal, "step", "admits to slot " + std::to_string(admission.slot) + ", which is taken");
    slot.used = true;
    slot.serial = admission.serial;
    slot.length = admission.cached;
    slot.prompt_tokens = admission.prompt_tokens;
    slot.min_tokens = admission.min_tokens;
    slot.sampling = admission.sampling;
    slot.ids.clear();
    slot.ids.reserve(static_cast<size_t>(context_) + 1);
    slot.ids.assign(admission.ids.begin(), admission.ids.end());
    slot.admitted = static_cast<int32_t>(slot.ids.size());
    slot.stop_ids = admission.stop_ids;
    for (auto& pages : slot.pages) {
      pages.clear();
      pages.reserve(static_cast<size_t>(context_ / page_tokens_ + 1));
    }
    slot.generated = static_cast<int32_t>(slot.ids.size()) - slot.prompt_tokens;
    slot.counts.clear();
    for (size_t i = 0; i < admission.bias_ids.size(); ++i) count_of(slot.counts, admission.bias_ids[i]).bias += admission.biases[i];
    allow(slot, admission.allowed_ids);
    slot.history.start(slot.sampling.no_repeat_ngram);
    if (slot.sampling.no_repeat_ngram > 0) {
      for (const int32_t id : slot.ids) slot.history.push(id);
    }
    if (has_penalty(slot.sampling)) {
      for (size_t i = 0; i < slot.ids.size(); ++i) add_count(slot.counts, slot.ids[i], i < static_cast<size_t>(slot.prompt_tokens));
    }
  }
  for (const PageGrant& grant : step.grants) {
    if (grant.group < 0 || grant.group >= kMaxKvGroups) fail(Code::internal, "step", "grants pages of KV group " + std::to_string(grant.group));
    auto& pages = (*this)[grant.slot].pages[grant.group];
    pages.insert(pages.end(), grant.pages.begin(), grant.pages.end());
  }
}

void Slots::append(SlotId id, uint32_t serial, int32_t token) {
  if (static_cast<size_t>(id) >= slots_.size()) return;
  Slot& slot = slots_[static_cast<size_t>(id)];
  if (slot.used && slot.serial == serial) slot.ids.push_back(token);
}

uint64_t Slots::digest() const {
  uint64_t sum = 0;
  for (size_t id = 0; id < slots_.size(); ++id) {
    const Slot& slot = slots_[id];
    if (!slot.used) continue;
    size_t pages = 0;
    for (const auto& table : slot.pages) pages += table.size();
    sum += slot_digest(static_cast<SlotId>(id), slot.serial, slot.length, static_cast<int32_t>(pages));
  }
  return sum;
}

void Slots::count(SlotId id, uint32_t serial, int32_t token) {
  if (static_cast<size_t>(id) >= slots_.size()) return;
  Slot& slot = slots_[static_cast<size_t>(id)];
  if (!slot.used || slot.serial != serial) return;
  if (has_penalty(slot.sampling)) add_count(slot.counts, token, false);
  if (slot.sampling.no_repeat_ngram > 0) slot.history.push(token);
}

}  // namespace tandem
