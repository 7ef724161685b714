// --trace: a file of what ranks and engine do, for chrome://tracing and Perfetto. It is a JSON array, an event a line, written by a thread
// of its own twenty times a second and closed at the end; the viewers read one without its end as well. All processes of a host write the
// same file, whole lines at a time under a lock on it: the coordinator's own part creates and closes it, the ranks' parts join. A part's memory
// is its tracks' rings; what they had to drop is counted and said in the file. Thread-safe; a track belongs to one thread at a time.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "kernels/base/trace.h"

namespace tandem {

class TraceFile {
 public:
  // The coordinator's part. Nothing is there of an older file's content once begin() was called; a file that was made here and never
  // begun is removed. `warn` hears once why nothing more can be written. Errors: Code::invalid_argument naming --trace.
  static std::shared_ptr<TraceFile> create(const std::string& path, std::function<void(const std::string&)> warn);
  // A rank's part, by the path() of the coordinator's. Null when there is no such file.
  static std::shared_ptr<TraceFile> join(const std::string& path);
  virtual ~TraceFile() = default;  // writes what is left

  virtual void begin() = 0;
  virtual std::string path() const = 0;  // absolute
  // A row of the picture. Process and thread are numbers that rows are known by; asked again, the same track comes back. It keeps this part
  // alive.
  virtual std::shared_ptr<TraceTrack> track(int process, const std::string& process_name, int thread, const std::string& thread_name) = 0;
};

// The rows' numbers.
constexpr int kCoordinatorProcess = 1;
constexpr int rank_process(int rank) { return 1000 + rank; }

}  // namespace tandem
