// Members are threads of this process, spread over the GPUs that there are: with one GPU they share it, each with a stream of its own (and
// without dependent launches, see peers.h). While one member's kernel waits for another's, nothing may wait for a whole device: copies go
// by stream, memory is freed at the end.
#include "kernels/cuda/peers.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include "tests/kernels/cuda/device_memory.h"

namespace tandem::cuda {
namespace {

using Clock = std::chrono::steady_clock;
using Route = PeerSettings::Route;

// Every member's word to every member; a barrier too.
class Table {
 public:
  explicit Table(int size) : said_(size), size_(size) {}
  std::vector<std::string> exchange(int index, std::string_view mine) {
    std::unique_lock lock(mutex_);
    said_[index] = mine;
    const int round = round_;
    if (++arrived_ == size_) {
      heard_ = said_, arrived_ = 0, ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
    return heard_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  std::vector<std::string> said_, heard_;
  int size_, arrived_ = 0, round_ = 0;
};

int devices() {
  int count = 0;
  cudaGetDeviceCount(&count);
  return count;
}

struct Member {
  int index, size;
  DeviceInfo device;
  cudaStream_t stream = nullptr;
  Table* table;
  std::shared_ptr<AbortWord> abort = std::make_shared<AbortWord>();
  std::unique_ptr<DevicePeers> peers = nullptr;

  Launch launch() const { return {stream, &device, size <= devices()}; }
  void barrier() { table->exchange(index, ""); }
  void prepared() {  // what was enqueued on the default stream is done, on all members
    check(cudaDeviceSynchronize(), "synchronize");
    barrier();
  }
  void wait() { check(cudaStreamSynchronize(stream), "synchronize"); }
  void write(float* to, const std::vector<float>& values) {
    check(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice, stream), "copy");
    wait();
  }
  std::vector<float> read(const float* from, size_t count) {
    std::vector<float> values(count);
    wait();  // a copy into pageable memory holds up those of the other members on this device
    check(cudaMemcpyAsync(values.data(), from, count * sizeof(float), cudaMemcpyDeviceToHost, stream), "copy");
    wait();
    return values;
  }
};

template <class Main>
void run(int size, Route route, size_t longest_bytes, Main&& main) {
  Table table(size);
  std::vector<std::thread> threads;
  for (int index = 0; index < size; ++index) {
    threads.emplace_back([&, index] {
      const int device = index % devices();
      check(cudaSetDevice(device), "device");
      Member member{index, size, device_info(device), nullptr, &table};
      check(cudaStreamCreateWithFlags(&member.stream, cudaStreamNonBlocking), "stream");
      try {
        PeerSettings settings;
        settings.index = index, settings.size = size, settings.launch = member.launch(), settings.longest_bytes = longest_bytes;
        settings.abort = member.abort, settings.route = route;
        member.peers = make_device_peers(settings, [&](std::string_view mine) { return table.exchange(index, mine); });
        main(member);
        member.wait();
      } catch (const std::exception& error) {
        ADD_FAILURE() << "member " << index << ": " << error.what();
        member.abort->raise();
      }
      member.barrier();
      member.peers.reset();
      member.barrier();
      cudaStreamDestroy(member.stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Numbers whose sum depends on the order in which they are added.
std::vector<float> awkward(size_t count, int seed) {
  std::vector<float> values(count);
  uint32_t state = 2654435761u * static_cast<uint32_t>(seed + 1);
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = std::ldexp(static_cast<float>(static_cast<int32_t>(state)), static_cast<int>(state >> 11 & 15) - 40);
  }
  return values;
}
std::vector<float> sum_of(size_t count, int size, int seed) {
  std::vector<float> sum = awkward(count, seed);
  for (int member = 1; member < size; ++member) {
    const auto term = awkward(count, seed + member);
    for (size_t i = 0; i < count; ++i) sum[i] += term[i];
  }
  return sum;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr size_t kMost = (size_t{1} << 20) + 64;

struct Case {
  int size;
  Route route;
};
std::string name_of(const Case& c) {
  const char* routes[] = {"by_size", "eager", "one_shot", "two_shot", "otherwise"};
  return std::to_string(c.size) + "_" + routes[static_cast<int>(c.route)];
}

class Peers : public testing::TestWithParam<Case> {};

TEST_P(Peers, SumInMemberOrder) {
  TANDEM_NEEDS_GPU();
  const auto [size, route] = GetParam();
  if (size > 2 * devices()) GTEST_SKIP() << "the thread blocks of all would not be resident at once";
  run(size, route, 1 << 20, [&](Member& m) {
    EXPECT_TRUE(m.peers->direct());
    DeviceArray<float> values(kMost), x(kMost);
    m.prepared();
    int seed = 0;
    for (const size_t count : {1, 2, 3, 5, 31, 1023, 4096, 4097, 12289, 65536, 65537, 262144, 262147, 524289, 1048576}) {
      for (const size_t offset : {0, 1}) {  // one: not on a 16-byte border
        seed += size;
        const auto expected = sum_of(count, size, seed);
        auto mine = awkward(count, seed + m.index);
        mine.push_back(-7);  // stays
        m.write(values.data() + offset, mine);
        m.peers->all_reduce(values.data() + offset, count);
        auto got = m.read(values.data() + offset, count + 1);
        EXPECT_EQ(got.back(), -7);
        got.pop_back();
        EXPECT_TRUE(same_bits(got, expected)) << "all_reduce of " << count << " at " << offset << ", seed " << seed << ", member " << m.index;

        auto sums = awkward(count, seed + 1000);
        sums.push_back(-7);
        m.write(x.data() + offset, sums);
        mine.pop_back();
        m.write(values.data() + offset, mine);
        m.peers->reduce_into(m.launch(), x.data() + offset, values.data() + offset, 1, static_cast<int64_t>(count));
        got = m.read(x.data() + offset, count + 1);
        for (size_t i = 0; i < count; ++i) sums[i] += expected[i];
        EXPECT_TRUE(same_bits(got, sums)) << "reduce_into of " << count << " at " << offset << ", seed " << seed << ", member " << m.index;
      }
    }
    m.barrier();
  });
}

INSTANTIATE_TEST_SUITE_P(All, Peers,
                         testing::Values(Case{2, Route::by_size}, Case{2, Route::eager}, Case{2, Route::one_shot}, Case{2, Route::two_shot},
                                         Case{3, Route::by_size}, Case{4, Route::by_size}, Case{4, Route::one_shot}),
                         [](const auto& info) { return name_of(info.param); });

TEST(PeersGather, PartsOneAfterTheOther) {
  TANDEM_NEEDS_GPU();
  for (const int size : {2, 3}) {
    run(size, Route::by_size, 64 << 10, [&](Member& m) {
      DeviceArray<float> mine(kMost), all(kMost);
      m.prepared();
      for (const size_t base : {0, 1, 501, 16384, 40001, 128256}) {
        std::vector<size_t> counts;
        std::vector<float> expected;
        for (int i = 0; i < m.size; ++i) {
          counts.push_back(i == 1 ? base / 2 : base + static_cast<size_t>(i));
          const auto part = awkward(counts.back(), 50 + i);
          expected.insert(expected.end(), part.begin(), part.end());
        }
        if (counts[m.index] > 0) m.write(mine.data(), awkward(counts[m.index], 50 + m.index));
        m.write(all.data(), std::vector<float>(expected.size() + 1, -7));
        m.peers->all_gather(mine.data(), counts, all.data());
        auto got = m.read(all.data(), expected.size() + 1);
        EXPECT_EQ(got.back(), -7);
        got.pop_back();
        EXPECT_TRUE(same_bits(got, expected)) << "parts about " << base << ", member " << m.index << " of " << m.size;
      }
      m.barrier();
    });
  }
}

// The same graph again and again, between calls outside of it: how far the members are is known on the devices only.
TEST(PeersGraph, Replays) {
  TANDEM_NEEDS_GPU();
  run(2, Route::by_size, 1 << 20, [&](Member& m) {
    constexpr size_t kSmall = 4096, kLarge = 100003;
    constexpr int kNodes = 40, kReplays = 30;
    DeviceArray<float> small(kSmall), large(kLarge), x(kSmall), y(kLarge);
    x.zero();
    y.zero();
    m.prepared();
    m.write(small.data(), awkward(kSmall, m.index));
    m.write(large.data(), awkward(kLarge, 10 + m.index));
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    check(cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int n = 0; n < kNodes; ++n) {
      m.peers->reduce_into(m.launch(), x.data(), small.data(), 1, kSmall);
      if (n % 3 == 0) m.peers->reduce_into(m.launch(), y.data(), large.data(), 1, kLarge);
    }
    check(cudaStreamEndCapture(m.stream, &graph), "capture");
    check(cudaGraphInstantiate(&ready, graph, 0), "graph");
    m.barrier();
    for (int n = 0; n < kReplays; ++n) {
      check(cudaGraphLaunch(ready, m.stream), "graph");
      if (n % 7 == 0) m.peers->reduce_into(m.launch(), x.data(), small.data(), 2, kSmall / 2);
    }
    const auto repeat = [](const std::vector<float>& term, int times) {
      std::vector<float> sum(term.size(), 0.f);
      for (int n = 0; n < times; ++n) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += term[i];
      }
      return sum;
    };
    EXPECT_TRUE(same_bits(m.read(x.data(), kSmall), repeat(sum_of(kSmall, 2, 0), kNodes * kReplays + (kReplays + 6) / 7)));
    EXPECT_TRUE(same_bits(m.read(y.data(), kLarge), repeat(sum_of(kLarge, 2, 10), (kNodes + 2) / 3 * kReplays)));
    m.barrier();
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
  });
}

TEST(PeersAbort, EndsTheWaitForAnAbsentPeer) {
  TANDEM_NEEDS_GPU();
  for (const Route route : {Route::eager, Route::one_shot, Route::two_shot}) {
    run(2, route, 1 << 20, [&](Member& m) {
      DeviceArray<float> values(100000);
      m.prepared();
      if (m.index == 0) {
        for (int n = 0; n < 100; ++n) m.peers->all_reduce(values.data(), 4096);
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        EXPECT_EQ(cudaStreamQuery(m.stream), cudaErrorNotReady);
        const auto start = Clock::now();
        m.abort->raise();
        m.wait();
        EXPECT_LT(Clock::now() - start, std::chrono::seconds(1));
      }
      m.barrier();
    });
  }
}

TEST(PeersFigures, Latency) {
  TANDEM_NEEDS_GPU();
  struct Figure { size_t bytes; double us[3]; };
  std::vector<Figure> figures;
  for (const size_t kib : {4, 16, 32, 64, 128, 256, 512, 1024, 4096, 32768}) figures.push_back({kib << 10, {0, 0, 0}});
  const Route routes[] = {Route::eager, Route::one_shot, Route::two_shot};
  for (int r = 0; r < 3; ++r) {
    run(2, routes[r], 8 << 20, [&](Member& m) {
      DeviceArray<float> x(8 << 20), partial(8 << 20);
      x.zero();
      partial.zero();
      m.prepared();
      cudaEvent_t from, to;
      check(cudaEventCreate(&from), "event");
      check(cudaEventCreate(&to), "event");
      for (Figure& figure : figures) {
        if (routes[r] == Route::eager && figure.bytes > kEagerBytes) continue;
        const int nodes = figure.bytes > (1 << 20) ? 10 : 200;
        cudaGraph_t graph;
        cudaGraphExec_t ready;
        check(cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal), "capture");
        for (int n = 0; n < nodes; ++n) {
          m.peers->reduce_into(m.launch(), x.data(), partial.data(), 1, static_cast<int64_t>(figure.bytes / sizeof(float)));
        }
        check(cudaStreamEndCapture(m.stream, &graph), "capture");
        check(cudaGraphInstantiate(&ready, graph, 0), "graph");
        double best = 1e9;
        for (int repeat = 0; repeat < 6; ++repeat) {
          m.barrier();
          check(cudaEventRecord(from, m.stream), "event");
          check(cudaGraphLaunch(ready, m.stream), "graph");
          check(cudaEventRecord(to, m.stream), "event");
          m.wait();
          float ms = 0;
          cudaEventElapsedTime(&ms, from, to);
          best = std::min(best, 1e3 * ms / nodes);
        }
        if (m.index == 0) figure.us[r] = best;
        m.barrier();
        cudaGraphExecDestroy(ready);
        cudaGraphDestroy(graph);
      }
      cudaEventDestroy(from);
      cudaEventDestroy(to);
      m.barrier();
    });
  }
  std::printf("[ figures  ] reduce_into over 2 members on %d GPU(s), in a graph, us (0: not taken)\n", std::min(2, devices()));
  std::printf("[ figures  ]     bytes    eager  one_shot  two_shot\n");
  for (const Figure& f : figures) std::printf("[ figures  ] %9zu %8.2f %9.2f %9.2f\n", f.bytes, f.us[0], f.us[1], f.us[2]);
}

}  // namespace
}  // namespace tandem::cuda
