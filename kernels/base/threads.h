// A rank's team of compute threads. The team walks a program together: run() gives the same function to every member, barrier()
// joins them. One owner thread calls run(); it is member 0 itself, so a team of one starts no thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

namespace tandem {

class Team {
 public:
  explicit Team(int size);  // size - 1 threads are started and sleep until run()
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Calls work(member) on every member at once and returns when all are done. An exception of any member is rethrown here; the
  // others must not wait in barrier() for one that threw (a member that may throw does so before its first barrier or never).
  void run(const std::function<void(int member)>& work);
  // Every member of a run() calls it the same number of times. Spins at most 20 us, then sleeps on a futex.
  void barrier();

 private:
  struct State;
  std::unique_ptr<State> state_;
  int size_;
};

// Part `index` of `count` nearly equal parts of [0, total).
inline std::pair<int64_t, int64_t> part(int64_t total, int index, int count) {
  return {total * index / count, total * (index + 1) / count};
}

int allowed_cores();  // cores in the process's affinity mask

}  // namespace tandem
