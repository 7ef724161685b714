// What a thread did and when, kept for whoever writes it down: a track is a ring of plain records with one writing and one reading thread.
// Recording never allocates, locks, formats or waits; what finds the ring full is dropped and counted. Code that may be traced holds a
// pointer to its track: null means off, and costs a branch. Times are the host's steady clock, which the processes of a host share. A
// device that knows its own times may have a track of its own.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace tandem {

constexpr int kTraceArguments = 5;

// What a kind of event is called; constants, next to the code that records them. The phases are those of Chrome's trace format.
enum class TracePhase : char { span = 'X', instant = 'i', async_begin = 'b', async_point = 'n', async_end = 'e' };
struct TraceName {
  const char* name;
  const char* category;  // async events of the same category and id belong together
  TracePhase phase;
  const char* id = nullptr;                            // what the id is called among the arguments; null: it is none of them
  std::array<const char*, kTraceArguments> arguments{};  // those that are there
  const char* text = nullptr;
};

struct TraceEvent {
  const TraceName* name = nullptr;
  int64_t begin = 0, end = 0;  // ns; end only of a span
  uint64_t id = 0;
  std::array<int32_t, kTraceArguments> arguments{};
  char text[40] = {};  // cut; not terminated when full

  void set_text(std::string_view words) { std::memcpy(text, words.data(), words.size() < sizeof text ? words.size() : sizeof text); }
};

inline int64_t trace_time(std::chrono::steady_clock::time_point at) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}
inline int64_t trace_now() { return trace_time(std::chrono::steady_clock::now()); }

class TraceTrack {
 public:
  static constexpr size_t kEvents = 1 << 14;  // 1.6 MB; at the 20 readings a second of launch/trace_file, 300,000 events a second

  TraceTrack() : ring_(kEvents) {}

  void add(const TraceEvent& event) noexcept {  // the writing thread
    const uint64_t at = written_.load(std::memory_order_relaxed);
    if (at - read_.load(std::memory_order_acquire) == kEvents) {
      dropped_.store(dropped_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      return;
    }
    ring_[at % kEvents] = event;
    written_.store(at + 1, std::memory_order_release);
  }

  bool take(TraceEvent& event) noexcept {  // the reading thread; false: there is none
    const uint64_t at = read_.load(std::memory_order_relaxed);
    if (at == written_.load(std::memory_order_acquire)) return false;
    event = ring_[at % kEvents];
    read_.store(at + 1, std::memory_order_release);
    return true;
  }
  bool empty() const { return read_.load(std::memory_order_relaxed) == written_.load(std::memory_order_acquire); }
  uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }  // since the beginning; any thread

 private:
  std::vector<TraceEvent> ring_;
  alignas(64) std::atomic<uint64_t> written_{0};
  std::atomic<uint64_t> dropped_{0};
  alignas(64) std::atomic<uint64_t> read_{0};
};

// From here to the end of the scope.
class TraceSpan {
 public:
  TraceSpan(TraceTrack* track, const TraceName& name, uint64_t id) : track_(track), name_(name), id_(id) {
    if (track_) begin_ = trace_now();
  }
  ~TraceSpan() {
    if (track_) track_->add({&name_, begin_, trace_now(), id_, arguments_});
  }
  TraceSpan(const TraceSpan&) = delete;

  void arguments(const std::array<int32_t, kTraceArguments>& values) { arguments_ = values; }

 private:
  TraceTrack* track_;
  const TraceName& name_;
  uint64_t id_;
  int64_t begin_ = 0;
  std::array<int32_t, kTraceArguments> arguments_{};
};

}  // namespace tandem
