// Progress of long work on stderr, one lane a rank: bars with bytes and the time left when stderr is a terminal, a plain line every few
// seconds otherwise; nothing at all when the work is over within a second, nothing more once every lane is at its total. Every function
// may be called from any thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace tandem {

class Progress {
 public:
  // `what` as in "loading"; `unit` "" counts bytes, else things of that name ("tokens").
  Progress(std::string what, int lanes, std::string unit = "");
  ~Progress();  // as finish()

  void update(int lane, uint64_t done, uint64_t total);  // cheap
  void finish();                                         // takes bars away; no output after it

  // For a rank's loader: takes (done, total).
  std::function<void(uint64_t done, uint64_t total)> lane(int lane);

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // lanes may outlive the Progress
};

// One lane as text, "rank 0  [#####-----]  50 %  1.0 of 2.0 GiB  12 s left". seconds: since it began; bar: its width, 0 for none.
std::string progress_line(const std::string& label, uint64_t done, uint64_t total, double seconds, int bar, const std::string& unit);

}  // namespace tandem
