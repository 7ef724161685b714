// Speed of the CPU products: one token (decode) and many (prefill), over matrices of a small model's shapes laid out one after the
// other as a loader places them, and over one matrix beyond the caches. Prints bytes, GB/s, GMAC/s and the fraction of the read
// bandwidth measured beside. The best of many short repeats, in processor time when one thread runs: other processes on the machine
// only ever add to it (but they do share caches and memory).
//
//   linear_bench [--format NAME] [--kernel SUBSTRING] [--threads N] [--tokens N] [--seconds S]
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cpu/linear.h"
#include "kernels/formats/format.h"

namespace tandem::cpu {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double cpu_seconds() {  // of this thread: time in which others had the core does not count
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Huge pages where the system grants them: 4 KiB pages cost a fifth of the bandwidth in page walks.
class Arena {
 public:
  explicit Arena(size_t bytes) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (data_ == MAP_FAILED) std::abort();
    madvise(data_, bytes + kHuge, MADV_HUGEPAGE);
    aligned_ = data_ + (kHuge - reinterpret_cast<uintptr_t>(data_) % kHuge) % kHuge;
  }
  ~Arena() { munmap(data_, bytes_ + kHuge); }
  Arena(const Arena&) = delete;
  std::byte* data() { return aligned_; }

 private:
  static constexpr size_t kHuge = 2 << 20;
  size_t bytes_;
  std::byte *data_, *aligned_;
};

// Threads that run work(thread) together, again and again, and are woken by spinning.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) {
      others_.emplace_back([this, i] {
        for (int seen = 0;;) {
          while (round_.load(std::memory_order_acquire) == seen) {
          }
          ++seen;
          if (stop_) return;
          (*work_)(i);
          done_.fetch_add(1, std::memory_order_release);
        }
      });
    }
  }
  ~Team() {
    stop_ = true;
    round_.fetch_add(1, std::memory_order_release);
    for (auto& t : others_) t.join();
  }
  int threads() const { return threads_; }
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    done_.store(0);
    round_.fetch_add(1, std::memory_order_release);
    work(0);
    while (done_.load(std::memory_order_acquire) != threads_ - 1) {
    }
  }

 private:
  int threads_;
  bool stop_ = false;
  std::atomic<int> round_{0}, done_{0};
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::thread> others_;
};

double best_of(double seconds, bool alone, const std::function<void()>& body) {
  double best = 1e30;
  const double end = now() + seconds;
  for (int i = 0; i < 3 || now() < end; ++i) {
    const double start = alone ? cpu_seconds() : now();
    body();
    best = std::min(best, (alone ? cpu_seconds() : now()) - start);
  }
  return best;
}

using Lanes = int64_t __attribute__((vector_size(32)));
__attribute__((target_clones("avx2", "default"))) int64_t read_all(const std::byte* data, size_t bytes) {
  Lanes sum[4] = {};
  for (size_t at = 0; at < bytes; at += 256) {
    for (int i = 0; i < 256; i += 64) __builtin_prefetch(data + at + 10240 + i);
    for (int i = 0; i < 8; ++i) sum[i % 4] += *reinterpret_cast<const Lanes*>(data + at + i * 32);
  }
  const Lanes all = sum[0] + sum[1] + sum[2] + sum[3];
  int64_t total = 0;
  for (int i = 0; i < 4; ++i) total += all[i];
  return total;
}
// In pieces short enough to fit between two interruptions, from an area that no cache holds.
double read_bandwidth(Team& team, double seconds) {
  constexpr size_t kBytes = 512 << 20, kPiece = 16 << 20;
  Arena arena(kBytes);
  std::memset(arena.data(), 1, kBytes);
  std::atomic<int64_t> sink{0};
  const size_t share = kPiece / static_cast<size_t>(team.threads()) / 256 * 256;
  size_t at = 0;
  const double best = best_of(seconds, team.threads() == 1, [&] {
    team.run([&](int i) { sink += read_all(arena.data() + at + static_cast<size_t>(i) * share, share); });
    at = (at + kPiece) % kBytes;
  });
  return static_cast<double>(share) * team.threads() / best;
}

struct Matrix {
  int64_t rows, cols, tiles;
  uint64_t bytes;
  std::byte* resident = nullptr;
};
struct Shape {
  int64_t rows, cols;
};

// Random codes, and scales around 0.01: subnormal numbers would be slow for reasons of their own.
std::vector<std::byte*> random_stored(const Format& format, int64_t rows, int64_t cols, std::vector<std::vector<std::byte>>& keep) {
  std::vector<std::byte*> out;
  std::minstd_rand random(1);
  for (const Component& c : format.components(rows, cols)) {
    auto& part = keep.emplace_back(c.bytes);
    out.push_back(part.data());
    if (is_float(c.dtype)) {
      std::vector<float> values(c.bytes / size(c.dtype));
      for (float& v : values) v = 0.005f + 0.01f * static_cast<float>(random() & 0xffff) / 65536.0f;
      narrow(c.dtype, values.data(), values.size(), part.data());
    } else {
      for (auto& b : part) b = static_cast<std::byte>(random() >> 8 & 0x2f);
    }
  }
  return out;
}

struct Case {
  const char* name;
  std::vector<Shape> shapes;
};

void measure(const LinearKernel& kernel, const Format& format, const Case& c, int64_t tokens, Team& team, double bandwidth,
             double seconds) {
  std::vector<Matrix> matrices;
  uint64_t total = 0;
  double macs = 0;
  int64_t most_cols = 0, most_rows = 0;
  for (const Shape& s : c.shapes) {
    const auto b = kernel.resident(format, s.rows, s.cols);
    matrices.push_back({s.rows, s.cols, (s.rows + kernel.row_tile - 1) / kernel.row_tile, (b.weights + b.scales + 63) / 64 * 64});
    total += matrices.back().bytes;
    macs += static_cast<double>(s.rows * s.cols) * static_cast<double>(tokens);
    most_cols = std::max(most_cols, s.cols);
    most_rows = std::max(most_rows, s.rows);
  }
  Arena arena(total);
  std::byte* at = arena.data();
  double pack_seconds = 0;
  std::vector<std::vector<std::byte>> keep;
  Shape kept{0, 0};
  QuantizedView view{&format};
  for (Matrix& m : matrices) {
    if (kept.rows != m.rows || kept.cols != m.cols) {
      keep.clear();
      const auto parts = random_stored(format, m.rows, m.cols, keep);
      view.rows = m.rows, view.cols = m.cols;
      for (size_t i = 0; i < parts.size(); ++i) view.data[i] = parts[i];
      kept = {m.rows, m.cols};
    }
    m.resident = at;
    at += m.bytes;
    const double start = team.threads() == 1 ? cpu_seconds() : now();
    team.run([&](int i) { kernel.pack(view, m.tiles * i / team.threads(), m.tiles * (i + 1) / team.threads(), m.resident); });
    pack_seconds += (team.threads() == 1 ? cpu_seconds() : now()) - start;
  }
  std::vector<float> x(static_cast<size_t>(tokens * most_cols)), y(static_cast<size_t>(tokens * most_rows));
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(random);
  const Features features = detect_features();
  std::vector<Int8Block> blocks(static_cast<size_t>(tokens * int8_blocks(most_cols)));
  quantize_rows(x.data(), most_cols, most_cols, 0, tokens, blocks.data(), features);
  Input input;
  input.values = x.data();
  input.stride = most_cols;
  input.int8 = {blocks.data(), int8_blocks(most_cols)};
  const double best = best_of(seconds, team.threads() == 1, [&] {
    team.run([&](int i) {
      for (const Matrix& m : matrices) {
        kernel.multiply(m.resident, m.rows, m.cols, input, tokens, m.tiles * i / team.threads(), m.tiles * (i + 1) / team.threads(),
                        y.data(), most_rows);
      }
    });
  });
  const double gbs = static_cast<double>(total) / best * 1e-9;
  std::printf("%-24s %-8s %-10s %4ld tok %8.1f MB %10.1f us %7.1f GB/s %5.1f%% %8.1f GMAC/s  pack %5.2f GB/s\n", kernel.name,
              std::string(format.name()).c_str(), c.name, static_cast<long>(tokens), static_cast<double>(total) * 1e-6, best * 1e6, gbs,
              100 * gbs * 1e9 / bandwidth, macs / best * 1e-9, static_cast<double>(total) / pack_seconds * 1e-9);
  std::fflush(stdout);
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

int run(int argc, char** argv) {
  std::string format_name, kernel_name, case_name;
  int threads = 1;
  int64_t only_tokens = 0;
  double seconds = 0.4;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--format") format_name = value;
    if (option == "--kernel") kernel_name = value;
    if (option == "--case") case_name = value;
    if (option == "--threads") threads = std::stoi(value);
    if (option == "--tokens") only_tokens = std::stol(value);
    if (option == "--seconds") seconds = std::stod(value);
  }
  Team team(threads);
  const double bandwidth = read_bandwidth(team, 0.5);
  std::printf("%s, %d of %u cores, read %.1f GB/s\n", processor().c_str(), threads, std::thread::hardware_concurrency(), bandwidth * 1e-9);
  Case layers{"layers", {}}, layer{"layer", {}};  // SmolLM2-135M
  for (int l = 0; l < 30; ++l) {
    for (const Shape s : {Shape{576, 576}, {192, 576}, {192, 576}, {576, 576}, {1536, 576}, {1536, 576}, {576, 1536}}) {
      layers.shapes.push_back(s);
      if (l == 0) layer.shapes.push_back(s);
    }
  }
  Case large{"1b layer", {}};  // one layer of Llama-3.2-1B
  for (const Shape s : {Shape{2048, 2048}, {512, 2048}, {512, 2048}, {2048, 2048}, {8192, 2048}, {8192, 2048}, {2048, 8192}}) {
    large.shapes.push_back(s);
  }
  const Case cases[] = {layers, layer, large, {"head", {{49152, 576}}}, {"beyond", {{32768, 4096}}}, {"in cache", {{576, 576}}}};
  for (const LinearKernel* kernel : linear_kernels(detect_features())) {
    if (kernel->format.empty() || std::string(kernel->name).find(kernel_name) == std::string::npos) continue;
    const Format& f = format(kernel->format);
    if (!format_name.empty() && f.name() != format_name) continue;
    for (const Case& c : cases) {
      if (!case_name.empty() && case_name != c.name) continue;
      const std::string name = c.name;
      for (const int64_t tokens : {int64_t{1}, int64_t{4}, int64_t{128}}) {
        if (only_tokens != 0 && tokens != only_tokens) continue;
        if (tokens == 4 && name != "beyond") continue;
        // One layer is short enough to be timed between two interruptions.
        if (name == "layer" ? tokens != 128 : tokens == 128 && name != "1b layer") continue;
        if (f.block() == 256 && c.shapes[0].cols % 256 != 0) continue;
        measure(*kernel, f, c, tokens, team, bandwidth, tokens > 1 ? seconds * 2 : seconds);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace tandem::cpu

int main(int argc, char** argv) {
  try {
    return tandem::cpu::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
