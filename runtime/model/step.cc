#include "runtime/model/step.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr uint32_t kStepMark = 0x50455453;    // "STEP"
constexpr uint32_t kResultMark = 0x544c5352;  // "RSLT"

class Writer {
 public:
  explicit Writer(size_t expected) { out_.reserve(expected); }
  template <typename T>
  void value(T v) {
    static_assert(std::is_arithmetic_v<T>);
    const size_t at = out_.size();
    out_.resize(at + sizeof v);
    std::memcpy(out_.data() + at, &v, sizeof v);
  }
  void count(size_t n) {
    if (n > std::numeric_limits<uint32_t>::max()) fail(Code::internal, "step", "more than 2^32 elements in a list");
    value(static_cast<uint32_t>(n));
  }
  template <typename T>
  void list(const std::vector<T>& values) {
    static_assert(std::is_arithmetic_v<T>);
    count(values.size());
    const size_t at = out_.size(), bytes = values.size() * sizeof(T);
    out_.resize(at + bytes);
    if (bytes) std::memcpy(out_.data() + at, values.data(), bytes);
  }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const char* what) : bytes_(bytes), what_(what) {}
  template <typename T>
  T value() {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    if (bytes_.size() < sizeof(T)) malformed("ends early");
    T v;
    std::memcpy(&v, bytes_.data(), sizeof v);
    bytes_ = bytes_.subspan(sizeof v);
    return v;
  }
  // A count of elements of which each takes at least `least` bytes: never more than what is left can hold.
  size_t count(size_t least) {
    const size_t n = value<uint32_t>();
    if (n > bytes_.size() / least) malformed("has a list longer than itself");
    return n;
  }
  template <typename T>
  std::vector<T> list() {
    const size_t n = count(sizeof(T));
    std::vector<T> values(n);
    if (n) std::memcpy(values.data(), bytes_.data(), n * sizeof(T));
    bytes_ = bytes_.subspan(n * sizeof(T));
    return values;
  }
  void mark(uint32_t expected) {
    if (value<uint32_t>() != expected) malformed("does not begin with its mark");
  }
  void end() {
    if (!bytes_.empty()) malformed("has bytes after its end");
  }

 private:
  [[noreturn]] void malformed(const char* how) { fail(Code::internal, what_, std::string("malformed: ") + how); }
  std::span<const std::byte> bytes_;
  const char* what_;
};

// Fewest bytes that an element takes on the wire, per list.
constexpr size_t kLeastAdmission = 5 * 4 + (4 + 4 + 3 * 4 + 3 * 4 + 2 * 4 + 8 + 4) + 5 * 4, kLeastGrant = 3 * 4, kLeastCopy = 3 * 4,
                 kLeastRow = 2 * 4 + 1, kLeastToken = 5 * 4, kLeastTop = 2 * 4, kLeastLogits = 5 * 4;

void write(Writer& w, const Sampling& s) {
  w.value(s.temperature);
  w.value(s.top_k);
  w.value(s.top_p);
  w.value(s.min_p);
  w.value(s.typical_p);
  w.value(s.repetition_penalty);
  w.value(s.presence_penalty);
  w.value(s.frequency_penalty);
  w.value(s.no_repeat_ngram);
  w.value(s.choice);
  w.value(s.seed);
  w.value(s.logprobs);
}

Sampling read_sampling(Reader& r) {
  Sampling s;
  s.temperature = r.value<float>();
  s.top_k = r.value<int32_t>();
  s.top_p = r.value<float>();
  s.min_p = r.value<float>();
  s.typical_p = r.value<float>();
  s.repetition_penalty = r.value<float>();
  s.presence_penalty = r.value<float>();
  s.frequency_penalty = r.value<float>();
  s.no_repeat_ngram = r.value<int32_t>();
  s.choice = r.value<uint32_t>();
  s.seed = r.value<uint64_t>();
  s.logprobs = r.value<int32_t>();
  return s;
}

uint64_t mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t slot_digest(SlotId slot, uint32_t serial, int32_t length, int32_t pages) {
  const uint64_t who = uint64_t{static_cast<uint32_t>(slot)} << 32 | serial;
  const uint64_t what = uint64_t{static_cast<uint32_t>(length)} << 32 | static_cast<uint32_t>(pages);
  return mix(mix(who + 0x9e3779b97f4a7c15) + what);
}

std::vector<std::byte> encode(const Step& step) {
  size_t expected = 64 + step.releases.size() * 4 + step.copies.size() * 12 + step.rows.size() * 9;
  for (const Admission& a : step.admissions) expected += kLeastAdmission + 4 * (a.ids.size() + a.stop_ids.size() + 2 * a.biases.size() + a.allowed_ids.size());
  for (const PageGrant& g : step.grants) expected += kLeastGrant + 4 * g.pages.size();
  Writer w(expected);
  w.value(kStepMark);
  w.value(step.number);
  w.value(step.epoch);
  w.value(step.group);
  w.value(step.ids_from);
  w.value(step.digest);
  w.list(step.releases);
  w.count(step.admissions.size());
  for (const Admission& a : step.admissions) {
    w.value(a.slot);
    w.value(a.serial);
    w.value(a.cached);
    w.value(a.prompt_tokens);
    w.value(a.min_tokens);
    write(w, a.sampling);
    w.list(a.ids);
    w.list(a.stop_ids);
    w.list(a.bias_ids);
    w.list(a.biases);
    w.list(a.allowed_ids);
  }
  w.count(step.grants.size());
  for (const PageGrant& g : step.grants) {
    w.value(g.slot);
    w.value(g.group);
    w.list(g.pages);
  }
  w.count(step.copies.size());
  for (const PageCopy& c : step.copies) {
    w.value(c.group);
    w.value(c.from);
    w.value(c.to);
  }
  w.count(step.rows.size());
  for (const StepRow& row : step.rows) {
    w.value(row.slot);
    w.value(row.tokens);
    w.value(static_cast<uint8_t>(row.sample | row.all_logits << 1));
  }
  return w.take();
}

Step decode_step(std::span<const std::byte> bytes) {
  Reader r(bytes, "step");
  Step step;
  r.mark(kStepMark);
  step.number = r.value<uint64_t>();
  step.epoch = r.value<uint32_t>();
  step.group = r.value<int32_t>();
  step.ids_from = r.value<uint64_t>();
  step.digest = r.value<uint64_t>();
  step.releases = r.list<SlotId>();
  step.admissions.resize(r.count(kLeastAdmission));
  for (Admission& a : step.admissions) {
    a.slot = r.value<int32_t>();
    a.serial = r.value<uint32_t>();
    a.cached = r.value<int32_t>();
    a.prompt_tokens = r.value<int32_t>();
    a.min_tokens = r.value<int32_t>();
    a.sampling = read_sampling(r);
    a.ids = r.list<int32_t>();
    a.stop_ids = r.list<int32_t>();
    a.bias_ids = r.list<int32_t>();
    a.biases = r.list<float>();
    a.allowed_ids = r.list<int32_t>();
    if (a.bias_ids.size() != a.biases.size()) fail(Code::internal, "step", "malformed: has biases without ids");
  }
  step.grants.resize(r.count(kLeastGrant));
  for (PageGrant& g : step.grants) {
    g.slot = r.value<int32_t>();
    g.group = r.value<int32_t>();
    g.pages = r.list<int32_t>();
  }
  step.copies.resize(r.count(kLeastCopy));
  for (PageCopy& c : step.copies) {
    c.group = r.value<int32_t>();
    c.from = r.value<int32_t>();
    c.to = r.value<int32_t>();
  }
  step.rows.resize(r.count(kLeastRow));
  for (StepRow& row : step.rows) {
    row.slot = r.value<int32_t>();
    row.tokens = r.value<int32_t>();
    const uint8_t flags = r.value<uint8_t>();
    if (flags > 3) fail(Code::internal, "step", "malformed: has a row with unknown flags");
    row.sample = flags & 1;
    row.all_logits = flags & 2;
  }
  r.end();
  return step;
}

std::vector<std::byte> encode(const StepResult& result) {
  size_t expected = 64 + result.tokens.size() * kLeastToken;
  for (const StepToken& t : result.tokens) expected += kLeastTop * t.top.size();
  for (const StepLogits& l : result.logits) expected += kLeastLogits + 4 * l.values.size();
  Writer w(expected);
  w.value(kResultMark);
  w.value(result.number);
  w.value(result.epoch);
  w.value(result.seconds);
  w.count(result.tokens.size());
  for (const StepToken& t : result.tokens) {
    w.value(t.slot);
    w.value(t.serial);
    w.value(t.id);
    w.value(t.logprob);
    w.count(t.top.size());
    for (const auto& [id, logprob] : t.top) {
      w.value(id);
      w.value(logprob);
    }
  }
  w.count(result.logits.size());
  for (const StepLogits& l : result.logits) {
    w.value(l.slot);
    w.value(l.serial);
    w.value(l.first);
    w.value(l.rows);
    w.list(l.values);
  }
  return w.take();
}

StepResult decode_result(std::span<const std::byte> bytes) {
  Reader r(bytes, "step result");
  StepResult result;
  r.mark(kResultMark);
  result.number = r.value<uint64_t>();
  result.epoch = r.value<uint32_t>();
  result.seconds = r.value<double>();
  result.tokens.resize(r.count(kLeastToken));
  for (StepToken& t : result.tokens) {
    t.slot = r.value<int32_t>();
    t.serial = r.value<uint32_t>();
    t.id = r.value<int32_t>();
    t.logprob = r.value<float>();
    t.top.resize(r.count(kLeastTop));
    for (auto& [id, logprob] : t.top) {
      id = r.value<int32_t>();
      logprob = r.value<float>();
    }
  }
  result.logits.resize(r.count(kLeastLogits));
  for (StepLogits& l : result.logits) {
    l.slot = r.value<int32_t>();
    l.serial = r.value<uint32_t>();
    l.first = r.value<int32_t>();
    l.rows = r.value<int32_t>();
    l.values = r.list<float>();
  }
  r.end();
  return result;
}

}  // namespace tandem
