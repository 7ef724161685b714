#include "launch/bandwidth.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/base/threads.h"

namespace tandem {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

uint64_t sum(const uint64_t* words, size_t count) {
  uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
  for (size_t i = 0; i + 8 <= count; i += 8) {
    a += words[i];
    b += words[i + 1];
    c += words[i + 2];
    d += words[i + 3];
    e += words[i + 4];
    f += words[i + 5];
    g += words[i + 6];
    h += words[i + 7];
  }
  return a + b + c + d + e + f + g + h;
}

// Busy seconds of all cores, and of this process.
double busy_total() {
  std::ifstream file("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0;
  file >> cpu >> user >> nice >> system;
  return (user + nice + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}
double busy_own() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

}  // namespace

double measure_read_bandwidth(int threads) {
  constexpr size_t kWords = (256u << 20) / sizeof(uint64_t);
  std::vector<uint64_t> words(kWords, 1);
  Team team(threads);
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    const double started = now();
    team.run([&](int member) {
      const auto [begin, end] = part(static_cast<int64_t>(kWords), member, threads);
      sums[static_cast<size_t>(member) * 8] += sum(words.data() + begin, static_cast<size_t>(end - begin));
    });
    best = std::max(best, static_cast<double>(kWords * sizeof(uint64_t)) / (now() - started));
  }
  return sums[0] == 0 ? 0 : best;
}

OtherLoad::OtherLoad() : total_(busy_total()), own_(busy_own()), started_(now()) {}
double OtherLoad::cores() {
  const double seconds = std::max(1e-3, now() - started_);
  return std::max(0.0, ((busy_total() - total_) - (busy_own() - own_)) / seconds);
}

}  // namespace tandem
