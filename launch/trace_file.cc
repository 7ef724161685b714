#include "launch/trace_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr auto kBetweenReadings = 50ms, kLastPatience = 1000ms;  // the latter: for the lock, at the end
constexpr size_t kMostText = 1 << 20;   // formatted before it is written
constexpr off_t kLongestLine = 64 << 10;

void append(std::string& text, auto number) {
  char digits[24];
  text.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

void append_microseconds(std::string& text, int64_t ns) {
  append(text, ns / 1000);
  const auto rest = static_cast<int>(ns % 1000);
  const char digits[] = {'.', static_cast<char>('0' + rest / 100), static_cast<char>('0' + rest / 10 % 10), static_cast<char>('0' + rest % 10)};
  text.append(digits, sizeof digits);
}

std::string json_text(std::string_view words) { return nlohmann::json(words).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace); }

// One of the arguments; a comma before all but the first.
void append_key(std::string& text, const char* key, bool& first) {
  if (!first) text += ',';
  first = false;
  text += '"';
  text += key;
  text += "\":";
}

void append_line(std::string& text, const TraceEvent& event, int process, int thread) {
  const TraceName& name = *event.name;
  const bool async = name.phase == TracePhase::async_begin || name.phase == TracePhase::async_point || name.phase == TracePhase::async_end;
  text += "{\"name\":\"";
  text += name.name;
  text += "\",\"cat\":\"";
  text += name.category;
  text += "\",\"ph\":\"";
  text += static_cast<char>(name.phase);
  text += "\",\"pid\":";
  append(text, process);
  text += ",\"tid\":";
  append(text, thread);
  text += ",\"ts\":";
  append_microseconds(text, event.begin);
  if (name.phase == TracePhase::span) {
    text += ",\"dur\":";
    append_microseconds(text, event.end - event.begin);
  }
  if (name.phase == TracePhase::instant) text += ",\"s\":\"p\"";
  if (async) {
    text += ",\"id\":\"";
    append(text, event.id);
    text += '"';
  }
  text += ",\"args\":{";
  bool first = true;
  if (name.id) {
    append_key(text, name.id, first);
    append(text, event.id);
  }
  for (size_t i = 0; i < name.arguments.size() && name.arguments[i]; ++i) {
    append_key(text, name.arguments[i], first);
    append(text, event.arguments[i]);
  }
  if (name.text) {
    append_key(text, name.text, first);
    text += json_text({event.text, strnlen(event.text, sizeof event.text)});
  }
  text += "}},\n";
}

void append_name(std::string& text, const char* of, int process, int thread, const std::string& argument) {
  text += "{\"name\":\"";
  text += of;
  text += "\",\"ph\":\"M\",\"pid\":";
  append(text, process);
  text += ",\"tid\":";
  append(text, thread);
  text += ",\"args\":{" + argument + "}},\n";
}

constexpr TraceName kDropped{"dropped events", "trace", TracePhase::instant, "dropped"};

class Part final : public TraceFile, public std::enable_shared_from_this<Part> {
 public:
  Part(std::string path, int file, bool owns, bool made, std::function<void(const std::string&)> warn)
      : path_(std::move(path)), file_(file), owns_(owns), made_(made), warn_(std::move(warn)) {}
  ~Part() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
      write_down(true);
    } else if (made_) {
      std::remove(path_.c_str());
    }
    close(file_);
  }

  void begin() override {
    if (owns_) {
      if (ftruncate(file_, 0) != 0) return give_up(errno);
      put("[\n");
    }
    thread_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      while (!wake_.wait_for(lock, kBetweenReadings, [this] { return ending_; })) {
        lock.unlock();
        write_down(false);
        lock.lock();
      }
    });
  }

  std::string path() const override { return path_; }

  std::shared_ptr<TraceTrack> track(int process, const std::string& process_name, int thread, const std::string& thread_name) override {
    const std::lock_guard lock(mutex_);
    const auto same = [&](const Row& row) { return row.process == process && row.thread == thread; };
    auto found = std::find_if(rows_.begin(), rows_.end(), same);
    if (found == rows_.end()) {
      append_name(names_, "process_name", process, thread, "\"name\":" + json_text(process_name));
      append_name(names_, "process_sort_index", process, thread, "\"sort_index\":" + std::to_string(process));
      append_name(names_, "thread_name", process, thread, "\"name\":" + json_text(thread_name));
      rows_.emplace_back();
      found = std::prev(rows_.end());
      found->process = process;
      found->thread = thread;
    }
    return {shared_from_this(), &found->track};
  }

 private:
  struct Row {
    int process = 0, thread = 0;
    uint64_t dropped = 0;  // and said so
    TraceTrack track;
  };

  // On the writing thread, or at the end without it.
  void write_down(bool last) {
    if (failed_) return;
    std::vector<Row*> rows;
    {
      const std::lock_guard lock(mutex_);
      for (Row& row : rows_) rows.push_back(&row);
      text_.swap(names_);
    }
    const bool nothing = text_.empty() && std::all_of(rows.begin(), rows.end(), [](Row* row) { return row->track.empty(); });
    if (nothing && !(last && owns_)) return;
    if (!hold(last)) {  // another part writes; the rings keep what they have
      const std::lock_guard lock(mutex_);
      names_.insert(0, std::exchange(text_, {}));
      return;
    }
    if (ready_for_more()) {
      for (Row* row : rows) write_down(*row);
      if (last && owns_) {
        const int64_t now = trace_now();
        constexpr TraceName kEnd{"end of trace", "trace", TracePhase::instant};
        append_line(text_, {&kEnd, now, now}, kCoordinatorProcess, 1);
        text_.replace(text_.size() - 2, 2, "\n]\n");
      }
      flush();
    }
    flock(file_, LOCK_UN);
  }

  void write_down(Row& row) {
    TraceEvent event;
    for (size_t left = TraceTrack::kEvents; left > 0 && row.track.take(event); --left) {  // bounded: it may be filled meanwhile
      append_line(text_, event, row.process, row.thread);
      if (text_.size() >= kMostText) flush();
    }
    const uint64_t dropped = row.track.dropped();
    if (dropped == row.dropped) return;
    const int64_t now = trace_now();
    append_line(text_, {&kDropped, now, now, dropped - row.dropped}, row.process, row.thread);
    row.dropped = dropped;
  }

  // The lock on the file, against the other parts.
  bool hold(bool last) {
    const auto until = std::chrono::steady_clock::now() + (last ? kLastPatience : 10ms);
    while (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      if (std::chrono::steady_clock::now() >= until) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }

  // A process that was killed may have left half a line, which is cut. False: the file has been closed.
  bool ready_for_more() {
    struct stat about {};
    if (fstat(file_, &about) != 0 || about.st_size < 2) return true;
    std::string end(static_cast<size_t>(std::min(about.st_size, off_t{2})), '\0');
    if (pread(file_, end.data(), 2, about.st_size - 2) != 2) return true;
    if (end == "]\n") return false;
    if (end[1] == '\n') return true;
    end.resize(static_cast<size_t>(std::min(about.st_size, kLongestLine)));
    const off_t from = about.st_size - static_cast<off_t>(end.size());
    if (pread(file_, end.data(), end.size(), from) != static_cast<ssize_t>(end.size())) return true;
    const size_t whole = end.rfind('\n');
    return whole == std::string::npos || ftruncate(file_, from + static_cast<off_t>(whole) + 1) == 0;
  }

  void flush() {
    put(text_);
    text_.clear();
  }

  // All of it or nothing.
  void put(std::string_view text) {
    struct stat about {};
    if (failed_ || fstat(file_, &about) != 0) return;
    while (!text.empty()) {
      const ssize_t wrote = write(file_, text.data(), text.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) {
        const int error = errno;
        (void)!ftruncate(file_, about.st_size);
        return give_up(error);
      }
      text.remove_prefix(static_cast<size_t>(wrote));
    }
  }

  void give_up(int error) {
    if (failed_) return;
    failed_ = true;
    if (warn_) warn_("--trace: " + path_ + " cannot be written any more: " + std::strerror(error) + " (what was written can be read; all else goes on)");
  }

  const std::string path_;
  const int file_;
  const bool owns_, made_;
  const std::function<void(const std::string&)> warn_;
  bool failed_ = false;  // of the writing thread
  std::string text_;     // likewise
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::string names_;     // of rows that are new
  std::deque<Row> rows_;  // tracks stay where they are
  std::thread thread_;
};

}  // namespace

std::shared_ptr<TraceFile> TraceFile::create(const std::string& path, std::function<void(const std::string&)> warn) {
  constexpr int kMode = 0666, kFlags = O_RDWR | O_APPEND | O_CLOEXEC | O_NONBLOCK;
  const auto cannot = [&](const std::string& why) { bad_input("--trace", "cannot write " + path + ": " + why + " (must be a file in a folder that can be written)"); };
  int file = open(path.c_str(), kFlags | O_CREAT | O_EXCL, kMode);
  const bool made = file >= 0;
  if (!made && errno == EEXIST) file = open(path.c_str(), kFlags | O_CREAT, kMode);  // through a link
  if (file < 0) cannot(std::strerror(errno));
  struct stat about {};
  if (fstat(file, &about) != 0 || !S_ISREG(about.st_mode)) {
    close(file);
    cannot("it is no regular file");
  }
  std::error_code ignored;
  const fs::path whole = fs::absolute(path, ignored);
  return std::make_shared<Part>(whole.empty() ? path : whole.string(), file, true, made, std::move(warn));
}

std::shared_ptr<TraceFile> TraceFile::join(const std::string& path) {
  const int file = open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return nullptr;
  auto part = std::make_shared<Part>(path, file, false, false, nullptr);
  part->begin();
  return part;
}

}  // namespace tandem
