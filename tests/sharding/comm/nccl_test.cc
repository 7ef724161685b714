// Messages and collectives between GPUs. Two ranks: threads of this process with a GPU each ("threads"), or processes under mpirun
// ("mpi"): mpirun -n 2 sharding_comm_test --gtest_filter='*Nccl*mpi*'. Without two GPUs only the refusals are left.
#include "sharding/comm/nccl.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "sharding/comm/comms.h"

#ifndef TANDEM_CUDA

namespace tandem {
namespace {

TEST(Nccl, IsRefusedWithoutCuda) {
  try {
    make_nccl(std::move(make_inproc(1)[0]), 0, nullptr, std::chrono::milliseconds(1000));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::failed_precondition);
    EXPECT_EQ(error.where, "nccl");
  }
}

}  // namespace
}  // namespace tandem

#else

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "kernels/base/cuda/abort_word.h"
#include "kernels/cuda/peers.h"
#include "tests/kernels/cuda/device_memory.h"

namespace tandem {
namespace {

using cuda::check;
using cuda::DeviceArray;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kPatience{20000};
const std::vector<int> kBoth = {0, 1};

int devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

class MpiLife : public testing::Environment {
 public:
  void SetUp() override {
    if (under_mpirun()) world = init_mpi();
  }
  void TearDown() override {
    if (under_mpirun()) finalize_mpi();
  }
  static inline MpiWorld world;
};
const auto* const mpi_life = testing::AddGlobalTestEnvironment(new MpiLife);

struct Rank {
  DeviceCommunicator& c;
  cudaStream_t stream;
  cuda::DeviceInfo device;
  size_t free_before = 0;  // bytes of the GPU, before the communicator was made
  double start = 0;        // seconds to make it

  template <typename T>
  void write(T* to, const std::vector<T>& values) {
    check(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, stream), "copy");
    check(cudaStreamSynchronize(stream), "synchronize");
  }
  template <typename T>
  std::vector<T> read(const T* from, size_t count) {
    std::vector<T> values(count);
    check(cudaMemcpyAsync(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost, stream), "copy");
    c.wait_stream();
    return values;
  }
};

// Runs `rank_main` as both ranks (of this process).
class NcclRanks : public testing::TestWithParam<const char*> {
 protected:
  bool mpi() const { return GetParam() == std::string("mpi"); }
  void SetUp() override {
    if (mpi() != under_mpirun()) GTEST_SKIP() << (mpi() ? "under mpirun only" : "not under mpirun");
    if (mpi() && MpiLife::world.size != 2) GTEST_SKIP() << "two ranks are needed";
    if (devices() < 2) GTEST_SKIP() << "two GPUs are needed (" << devices() << " here)";
  }

  void hosts(const std::function<void(std::unique_ptr<Communicator>)>& main) {
    if (mpi()) return main(make_mpi());
    auto ranks = make_inproc(2);
    std::vector<std::thread> threads;
    for (auto& rank : ranks) threads.emplace_back([&main, &rank] { main(std::move(rank)); });
    for (std::thread& thread : threads) thread.join();
  }

  void run(const std::function<void(Rank&)>& rank_main, milliseconds deadline = kPatience) {
    hosts([&](std::unique_ptr<Communicator> host) {
      const int device = host->rank();
      try {
        check(cudaSetDevice(device), "device");
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "memory");
        {
          const auto begin = Clock::now();
          const auto communicator = make_nccl(std::move(host), device, stream, deadline);
          Rank rank{*communicator, stream, cuda::device_info(device), free, std::chrono::duration<double>(Clock::now() - begin).count()};
          rank_main(rank);
        }
        check(cudaStreamDestroy(stream), "stream");
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << device << ": " << error.what();
      }
    });
  }
};

template <class Call>
Code code_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    std::printf("[ as meant ] %s\n", error.what());
    return error.code;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Code::internal;
}

std::vector<float> awkward(size_t count, int seed) {
  std::vector<float> values(count);
  uint32_t state = 2654435761u * static_cast<uint32_t>(seed + 1);
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = std::ldexp(static_cast<float>(static_cast<int32_t>(state)), static_cast<int>(state >> 11 & 15) - 40);
  }
  return values;
}
std::vector<float> sum(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> sums(a);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += b[i];
  return sums;
}
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

TEST(NcclRefusals, AGpuIsNeededForEachRank) {
  if (under_mpirun()) GTEST_SKIP() << "not under mpirun";
  auto ranks = make_inproc(2);
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&rank] {
      const Code code = code_of([&] { make_nccl(std::move(rank), 0, nullptr, kPatience); });
      EXPECT_TRUE(code == Code::failed_precondition || code == Code::unavailable) << name(code);  // the other one may be gone by then
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(NcclRanks, DeviceMessagesArriveInOrder) {
  run([](Rank& r) {
    EXPECT_EQ(r.c.transport(), "nccl");
    EXPECT_EQ(r.c.size(), 2);
    constexpr size_t kMost = 1 << 20;
    DeviceArray<float> out(kMost), in(kMost);
    check(cudaDeviceSynchronize(), "synchronize");
    for (const size_t count : {1, 2, 3, 1021, 4096, 65537, 1 << 20}) {
      for (const int from : {0, 1}) {
        if (r.c.rank() == from) {
          r.write(out.data(), awkward(count, from + static_cast<int>(count)));
          r.c.send(1 - from, kHiddenChannel, out.data(), count * sizeof(float));
          r.c.wait_stream();
        } else {
          r.c.receive(from, kHiddenChannel, in.data(), count * sizeof(float));
          EXPECT_TRUE(same_bits(r.read(in.data(), count), awkward(count, from + static_cast<int>(count)))) << count << " floats from " << from;
        }
      }
    }
    // As a pipeline does: the sender runs ahead with two buffers in turn.
    constexpr int kSteps = 200;
    constexpr size_t kRow = 4096;
    for (int step = 0; step < kSteps; ++step) {
      if (r.c.rank() == 0) {
        float* buffer = out.data() + (step % 2) * kRow;
        check(cudaMemsetAsync(buffer, step, kRow * sizeof(float), r.stream), "memset");
        r.c.send(1, kHiddenChannel, buffer, kRow * sizeof(float));
      } else {
        r.c.receive(0, kHiddenChannel, in.data() + step * kRow, kRow * sizeof(float));
      }
    }
    r.c.wait_stream();
    if (r.c.rank() == 1) {
      const auto got = r.read(reinterpret_cast<const unsigned char*>(in.data()), kSteps * kRow * sizeof(float));
      size_t wrong = 0;
      for (size_t i = 0; i < got.size(); ++i) wrong += got[i] != static_cast<unsigned char>(i / (kRow * sizeof(float)));
      EXPECT_EQ(wrong, 0u);
    }
  });
}

TEST_P(NcclRanks, HostMemoryGoesByTheHost) {
  run([](Rank& r) {
    const int peer = 1 - r.c.rank();
    for (int channel = 0; channel < kChannels; ++channel) {
      const int out = 10 * channel + r.c.rank();
      int in = -1;
      r.c.send(peer, channel, &out, sizeof out);
      r.c.receive(peer, channel, &in, sizeof in);
      EXPECT_EQ(in, 10 * channel + peer);
      EXPECT_FALSE(r.c.arrived(peer, channel));
    }
    auto values = awkward(1000, r.c.rank());
    r.c.all_reduce(kBoth, values.data(), values.size());
    EXPECT_TRUE(same_bits(values, sum(awkward(1000, 0), awkward(1000, 1))));
    r.c.barrier(kBoth);
    const auto words = exchange(r.c, kBoth, r.c.rank() == 0 ? "left" : "rite");
    EXPECT_EQ(words, (std::vector<std::string>{"left", "rite"}));
  });
}

TEST_P(NcclRanks, CollectivesOnDeviceMemory) {
  run([](Rank& r) {
    constexpr size_t kMost = (1 << 20) + 64;
    DeviceArray<float> mine(kMost), all(kMost);
    check(cudaDeviceSynchronize(), "synchronize");
    for (const size_t count : {1, 3, 17, 1021, 16384, 100003, 1 << 20}) {
      r.write(mine.data(), awkward(count, r.c.rank()));
      r.c.all_reduce(kBoth, mine.data(), count);
      EXPECT_TRUE(same_bits(r.read(mine.data(), count), sum(awkward(count, 0), awkward(count, 1)))) << count;
    }
    for (const size_t second : {1000, 0, 1, 777}) {
      const std::vector<size_t> counts = {1000, second};
      auto expected = awkward(1000, 5);
      const auto tail = awkward(second, 6);
      expected.insert(expected.end(), tail.begin(), tail.end());
      r.write(mine.data(), awkward(counts[r.c.rank()], 5 + r.c.rank()));
      r.c.all_gather(kBoth, mine.data(), counts, all.data());
      EXPECT_TRUE(same_bits(r.read(all.data(), expected.size()), expected)) << second;
    }
    for (const int root : {0, 1}) {
      r.write(mine.data(), awkward(5003, root + 10 * (r.c.rank() != root)));
      r.c.broadcast(kBoth, root, mine.data(), 5003 * sizeof(float));
      EXPECT_TRUE(same_bits(r.read(mine.data(), 5003), awkward(5003, root)));
    }
    r.c.barrier(kBoth);
  });
}

TEST_P(NcclRanks, IntoAGraph) {
  run([](Rank& r) {
    constexpr size_t kCount = 4096;
    DeviceArray<float> values(kCount), other(kCount);
    values.zero();
    other.zero();
    check(cudaDeviceSynchronize(), "synchronize");
    const auto step = [&] {
      r.c.all_reduce(kBoth, values.data(), kCount);
      if (r.c.rank() == 0) r.c.send(1, kHiddenChannel, values.data(), kCount * sizeof(float));
      if (r.c.rank() == 1) r.c.receive(0, kHiddenChannel, other.data(), kCount * sizeof(float));
    };
    step();
    r.c.wait_stream();
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    check(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeRelaxed), "capture");
    for (int n = 0; n < 3; ++n) step();
    check(cudaStreamEndCapture(r.stream, &graph), "capture");
    check(cudaGraphInstantiate(&ready, graph, 0), "graph");
    r.write(values.data(), std::vector<float>(kCount, 1.f + static_cast<float>(r.c.rank())));  // 1 + 2, then doubled five times
    r.c.barrier(kBoth);
    for (int n = 0; n < 2; ++n) check(cudaGraphLaunch(ready, r.stream), "graph");
    EXPECT_EQ(r.read(values.data(), kCount), std::vector<float>(kCount, 96.f));
    if (r.c.rank() == 1) {
      EXPECT_EQ(r.read(other.data(), kCount), std::vector<float>(kCount, 96.f));
    }
    r.c.barrier(kBoth);
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
  });
}

std::unique_ptr<cuda::DevicePeers> peers_of(Rank& r, PeerGroup* otherwise = nullptr) {
  cuda::PeerSettings settings;
  settings.index = r.c.rank(), settings.size = 2, settings.launch = {r.stream, &r.device, true}, settings.longest_bytes = 4 << 20;
  settings.abort = r.c.abort_word();
  if (otherwise) settings.route = cuda::PeerSettings::Route::otherwise, settings.otherwise = otherwise;
  return make_device_peers(settings, [&](std::string_view mine) { return exchange(r.c, kBoth, mine); });
}

TEST_P(NcclRanks, PeersReachOneAnothersMemory) {
  run([](Rank& r) {
    DeviceArray<float> x(1 << 20), partial(1 << 20);
    check(cudaDeviceSynchronize(), "synchronize");
    const auto group = make_peer_group(r.c, Mesh{1, 1, 2});
    for (const bool direct : {true, false}) {  // false: as where there is no P2P, over NCCL
      const auto peers = peers_of(r, direct ? nullptr : group.get());
      EXPECT_EQ(peers->direct(), direct);
      const cuda::Launch how{r.stream, &r.device, true};
      for (const size_t count : {1, 4096, 65537, 1 << 20}) {
        r.write(partial.data(), awkward(count, r.c.rank()));
        r.write(x.data(), awkward(count, 9));
        peers->reduce_into(how, x.data(), partial.data(), 1, static_cast<int64_t>(count));
        EXPECT_TRUE(same_bits(r.read(x.data(), count), sum(awkward(count, 9), sum(awkward(count, 0), awkward(count, 1))))) << count;
        const std::vector<size_t> counts = {count / 2, count - count / 2};
        r.write(partial.data(), awkward(counts[r.c.rank()], 20 + r.c.rank()));
        peers->all_gather(how, partial.data(), counts, x.data());
        auto expected = awkward(counts[0], 20);
        const auto tail = awkward(counts[1], 21);
        expected.insert(expected.end(), tail.begin(), tail.end());
        EXPECT_TRUE(same_bits(r.read(x.data(), count), expected)) << count;
      }
    }
  });
}

// What a wait must not outlast when the peer is absent.
constexpr milliseconds kSoon{3000};

TEST_P(NcclRanks, AbortEndsEveryWait) {
  for (const char* where : {"receive", "all_reduce", "peers", "nothing"}) {
    SCOPED_TRACE(where);
    run([&](Rank& r) {
      DeviceArray<float> values(1 << 20);
      check(cudaDeviceSynchronize(), "synchronize");
      r.c.all_reduce(kBoth, values.data(), 1000);
      r.c.wait_stream();
      const auto peers = peers_of(r);
      r.c.barrier(kBoth);
      if (r.c.rank() == 1) {  // absent; in a process of its own it hears nothing of the abort
        std::this_thread::sleep_for(milliseconds(600));
        return;
      }
      std::thread other([&] {
        std::this_thread::sleep_for(milliseconds(150));
        r.c.abort();
      });
      const auto start = Clock::now();
      const Code code = code_of([&] {
        if (where == std::string("receive")) {
          r.c.receive(1, kHiddenChannel, values.data(), 4096);
        } else if (where == std::string("all_reduce")) {
          r.c.all_reduce(kBoth, values.data(), 1 << 20);
        } else if (where == std::string("peers")) {
          for (int n = 0; n < 50; ++n) peers->all_reduce(values.data(), n % 2 ? 4096 : 1 << 20);
        } else {
          std::this_thread::sleep_for(milliseconds(300));
        }
        r.c.wait_stream();
      });
      EXPECT_EQ(code, Code::aborted);
      EXPECT_EQ(code_of([&] { r.c.send(1, kHiddenChannel, values.data(), 4); }), Code::aborted);  // for good
      EXPECT_EQ(code_of([&] { r.c.check(); }), Code::aborted);
      check(cudaStreamSynchronize(r.stream), "the stream after an abort");
      EXPECT_LT(Clock::now() - start, kSoon);
      other.join();
    });
  }
}

TEST_P(NcclRanks, ADeadlineEndsAWait) {
  for (const char* where : {"receive", "peers"}) {
    SCOPED_TRACE(where);
    run(
        [&](Rank& r) {
          DeviceArray<float> values(4096);
          check(cudaDeviceSynchronize(), "synchronize");
          r.c.all_reduce(kBoth, values.data(), 1000);
          r.c.wait_stream();
          const auto peers = peers_of(r);
          r.c.barrier(kBoth);
          const auto start = Clock::now();
          if (r.c.rank() == 0) {
            EXPECT_EQ(code_of([&] {
                        if (where == std::string("receive")) {
                          r.c.receive(1, kHiddenChannel, values.data(), 4096);
                        } else {
                          peers->all_reduce(values.data(), 4096);
                        }
                        r.c.wait_stream();
                      }),
                      Code::deadline_exceeded);
            check(cudaStreamSynchronize(r.stream), "the stream after an abort");
            EXPECT_LT(Clock::now() - start, milliseconds(1500) + kSoon);
          } else {
            std::this_thread::sleep_for(milliseconds(2200));
          }
        },
        milliseconds(1500));
  }
}

TEST_P(NcclRanks, AnAbsentRankEndsTheStart) {
  hosts([](std::unique_ptr<Communicator> host) {
    if (host->rank() == 1) {
      std::this_thread::sleep_for(milliseconds(1500));
      host->abort();
      return;
    }
    const auto start = Clock::now();
    EXPECT_EQ(code_of([&] { make_nccl(std::move(host), 0, nullptr, milliseconds(500)); }), Code::deadline_exceeded);
    EXPECT_LT(Clock::now() - start, kSoon);
  });
}

TEST_P(NcclRanks, Figures) {
  run([&](Rank& r) {
    size_t made = 0, after = 0, total = 0;
    cudaMemGetInfo(&made, &total);
    DeviceArray<float> values(16 << 20);
    values.zero();
    check(cudaDeviceSynchronize(), "synchronize");
    const auto peers = peers_of(r);
    const auto measure = [&](int rounds, const std::function<void()>& round) {
      double best = 1e9;
      for (int repeat = 0; repeat < 5; ++repeat) {
        r.c.barrier(kBoth);
        const auto from = Clock::now();
        for (int n = 0; n < rounds; ++n) round();
        r.c.wait_stream();
        best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - from).count() / rounds);
      }
      return best;
    };
    if (r.c.rank() == 0) std::printf("[ figures  ] %s: start %.2f s\n", GetParam(), r.start);
    for (const size_t bytes : {8 << 10, 16 << 10, 4 << 20, 64 << 20}) {
      const int rounds = bytes > (1 << 20) ? 20 : 200;
      const auto exchange_once = [&] {
        if (r.c.rank() == 0) r.c.send(1, kHiddenChannel, values.data(), bytes);
        r.c.receive(1 - r.c.rank(), kHiddenChannel, values.data(), bytes);
        if (r.c.rank() == 1) r.c.send(0, kHiddenChannel, values.data(), bytes);
      };
      const double both_ways = measure(rounds, exchange_once);
      const double stream = measure(rounds, [&] {
        if (r.c.rank() == 0) r.c.send(1, kHiddenChannel, values.data(), bytes);
        if (r.c.rank() == 1) r.c.receive(0, kHiddenChannel, values.data(), bytes);
      });
      cudaGraph_t graph;
      cudaGraphExec_t ready;
      check(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeRelaxed), "capture");
      for (int n = 0; n < 10; ++n) exchange_once();
      check(cudaStreamEndCapture(r.stream, &graph), "capture");
      check(cudaGraphInstantiate(&ready, graph, 0), "graph");
      const double in_graph = measure(10, [&] { check(cudaGraphLaunch(ready, r.stream), "graph"); }) / 10;
      if (r.c.rank() == 0) {
        std::printf("[ figures  ] %s: %zu bytes one way %.1f us (in a graph %.1f), one after the other %.1f us (%.0f GB/s)\n", GetParam(), bytes,
                    both_ways / 2, in_graph / 2, stream, static_cast<double>(bytes) / stream / 1e3);
      }
      cudaGraphExecDestroy(ready);
      cudaGraphDestroy(graph);
    }
    for (const size_t bytes : {16 << 10, 256 << 10, 1 << 20, 4 << 20, 32 << 20}) {
      double us[2];
      for (const bool direct : {false, true}) {
        const auto reduce = [&] { direct ? peers->all_reduce(values.data(), bytes / 4) : r.c.all_reduce(kBoth, values.data(), bytes / 4); };
        const int nodes = bytes > (1 << 20) ? 10 : 200;
        reduce();
        r.c.wait_stream();
        cudaGraph_t graph;
        cudaGraphExec_t ready;
        check(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeRelaxed), "capture");
        for (int n = 0; n < nodes; ++n) reduce();
        check(cudaStreamEndCapture(r.stream, &graph), "capture");
        check(cudaGraphInstantiate(&ready, graph, 0), "graph");
        us[direct] = measure(5, [&] { check(cudaGraphLaunch(ready, r.stream), "graph"); }) / nodes;
        r.c.barrier(kBoth);
        cudaGraphExecDestroy(ready);
        cudaGraphDestroy(graph);
      }
      if (r.c.rank() == 0) {
        std::printf("[ figures  ] %s: all_reduce of %zu bytes in a graph: NCCL %.1f us, peers %.1f us\n", GetParam(), bytes, us[0], us[1]);
      }
    }
    cudaMemGetInfo(&after, &total);
    if (r.c.rank() == 0) {
      const double used = (r.free_before - after) / 1e6 - values.bytes() / 1e6 - peers->bytes() / 1e6;
      std::printf("[ figures  ] %s: GPU memory taken by NCCL: %.0f MB at the start, %.0f MB after use; by peers: %.0f MB\n", GetParam(),
                  (r.free_before - made) / 1e6, used, peers->bytes() / 1e6);
    }
    r.c.barrier(kBoth);
  });
}

INSTANTIATE_TEST_SUITE_P(All, NcclRanks, testing::Values("threads", "mpi"), [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem

#endif
