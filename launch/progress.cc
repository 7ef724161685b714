#include "launch/progress.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "launch/signals.h"
#include "launch/terminal.h"

namespace tandem {
namespace {

using Seconds = std::chrono::duration<double>;
constexpr std::chrono::milliseconds kPatience{1000}, kFrame{150}, kLine{3000};
constexpr int kMostBars = 8;  // more lanes are shown as one

std::string number(double value, const char* unit) {
  char text[48];
  std::snprintf(text, sizeof text, value < 10 ? "%.1f %s" : "%.0f %s", value, unit);
  return text;
}

std::string amount(uint64_t count, const std::string& unit) {
  if (!unit.empty()) return std::to_string(count) + " " + unit;
  const double bytes = static_cast<double>(count);
  return count >= uint64_t{1} << 30 ? number(bytes / 0x1p30, "GiB") : number(bytes / 0x1p20, "MiB");
}

std::string time_left(double seconds) {
  char text[48];
  const long whole = static_cast<long>(seconds + 0.5);
  if (whole < 120) {
    std::snprintf(text, sizeof text, "%ld s left", whole);
  } else {
    std::snprintf(text, sizeof text, "%ld min %02ld s left", whole / 60, whole % 60);
  }
  return text;
}

}  // namespace

std::string progress_line(const std::string& label, uint64_t done, uint64_t total, double seconds, int bar, const std::string& unit) {
  done = std::min(done, total);
  const double share = total == 0 ? 0 : static_cast<double>(done) / static_cast<double>(total);
  std::string line = label;
  if (bar > 0) {
    const auto full = static_cast<size_t>(share * bar);
    line += "  [" + std::string(full, '#') + std::string(static_cast<size_t>(bar) - full, '-') + "]";
  }
  char percent[16];
  std::snprintf(percent, sizeof percent, "  %3.0f %%  ", share * 100);
  line += percent + amount(done, unit) + " of " + amount(total, unit);
  if (share > 0 && done < total) line += "  " + time_left(seconds * (1 - share) / share);
  return line;
}

struct Progress::Core {
  struct Lane { std::atomic<uint64_t> done{0}, total{0}; };
  struct Shown { std::string label; uint64_t done, total; };

  Core(std::string what, int lanes, std::string unit)
      : what_(std::move(what)), unit_(std::move(unit)), bars_(is_terminal(stderr)), lanes_(static_cast<size_t>(std::max(lanes, 1))), thread_([this] { run(); }) {}

  ~Core() { finish(); }

  void finish() {
    {
      std::lock_guard lock(mutex_);
      finished_ = true;
    }
    wake_.notify_all();
    std::lock_guard joining(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

  void update(int lane, uint64_t done, uint64_t total) {
    if (lane < 0 || static_cast<size_t>(lane) >= lanes_.size()) return;
    lanes_[static_cast<size_t>(lane)].done.store(done, std::memory_order_relaxed);
    lanes_[static_cast<size_t>(lane)].total.store(total, std::memory_order_relaxed);
  }

  void run() {
    std::unique_lock lock(mutex_);
    const auto over = [this] { return finished_; };
    if (wake_.wait_for(lock, kPatience, over)) return;
    int drawn = 0;
    do {
      if (complete()) break;
      const double seconds = Seconds(std::chrono::steady_clock::now() - began_).count();
      std::string out;
      if (drawn > 0) out += "\r\x1b[" + std::to_string(drawn) + "A";
      const std::vector<Shown> shown = snapshot();
      const int width = columns(stderr);
      for (const Shown& lane : shown) {
        if (lane.total == 0) {  // not begun
          if (bars_) out += lane.label + "  waiting\x1b[K\n";
          continue;
        }
        std::string line = progress_line(lane.label, lane.done, lane.total, seconds, bars_ ? std::clamp(width - 75, 10, 40) : 0, unit_);
        if (bars_ && line.size() >= static_cast<size_t>(width)) line.resize(static_cast<size_t>(width) - 1);
        out += line + (bars_ ? "\x1b[K\n" : "\n");
      }
      if (bars_) drawn = static_cast<int>(shown.size());
      if (may_report_errors()) std::fwrite(out.data(), 1, out.size(), stderr);
    } while (!wake_.wait_for(lock, bars_ ? kFrame : kLine, over));
    if (drawn > 0) std::fprintf(stderr, "\r\x1b[%dA\x1b[J", drawn);
  }

  bool complete() const {
    return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.total.load() > 0 && lane.done.load() >= lane.total.load(); });
  }

  std::vector<Shown> snapshot() const {
    std::vector<Shown> shown;
    if (lanes_.size() == 1 || lanes_.size() > kMostBars) {
      Shown all{what_, 0, 0};
      for (const Lane& lane : lanes_) {
        all.done += lane.done.load(std::memory_order_relaxed);
        all.total += lane.total.load(std::memory_order_relaxed);
      }
      return {all};
    }
    for (size_t i = 0; i < lanes_.size(); ++i) {
      shown.push_back({what_ + "  rank " + std::to_string(i), lanes_[i].done.load(std::memory_order_relaxed), lanes_[i].total.load(std::memory_order_relaxed)});
    }
    return shown;
  }

  const std::string what_, unit_;
  const bool bars_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::vector<Lane> lanes_;
  std::mutex mutex_, join_mutex_;
  std::condition_variable wake_;
  bool finished_ = false;
  std::thread thread_;
};

Progress::Progress(std::string what, int lanes, std::string unit) : core_(std::make_shared<Core>(std::move(what), lanes, std::move(unit))) {}
Progress::~Progress() { core_->finish(); }
void Progress::finish() { core_->finish(); }

void Progress::update(int lane, uint64_t done, uint64_t total) { core_->update(lane, done, total); }

std::function<void(uint64_t, uint64_t)> Progress::lane(int lane) {
  return [core = core_, lane](uint64_t done, uint64_t total) { core->update(lane, done, total); };
}

}  // namespace tandem
