// The conformance suite of communicators. In-process worlds run as threads of this process. Under mpirun each process is one rank and
// only the mpi cases run: mpirun -n 2 sharding_comm_test --gtest_filter='*mpi*'. Every rank runs every case in the same order.
#include "sharding/comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "kernels/base/error.h"
#include "sharding/comm/comms.h"
#include "sharding/comm/mailbox.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

#ifdef TANDEM_SLOW_FACTOR
constexpr int kSlow = TANDEM_SLOW_FACTOR;
#else
constexpr int kSlow = 1;
#endif
constexpr milliseconds kPatience{60000 * kSlow};  // so that a hang is a failure

struct World {
  std::string transport;
  int size = 0;  // mpi: the job's
  bool guarded = false;
};
std::ostream& operator<<(std::ostream& out, const World& w) { return out << w.transport << w.size << (w.guarded ? "guarded" : ""); }

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

class Communicators : public testing::TestWithParam<World> {
 protected:
  void SetUp() override {
    if ((GetParam().transport == "mpi") != under_mpirun()) GTEST_SKIP() << "mpi cases run under mpirun, the others without";
  }
  int size() const { return GetParam().transport == "mpi" ? MpiLife::world.size : GetParam().size; }

  // Runs `rank_main` as every rank (of this process). What it throws is a failure.
  void run(const std::function<void(Communicator&)>& rank_main, milliseconds deadline = kPatience) {
    const auto main = [&](std::unique_ptr<Communicator> communicator) {
      if (GetParam().guarded || deadline != kPatience) communicator = make_guarded(std::move(communicator), deadline);
      try {
        rank_main(*communicator);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << communicator->rank() << ": " << error.what();
        communicator->abort();
        if (under_mpirun()) abort_mpi(1);
      }
    };
    if (GetParam().transport == "mpi") return main(make_mpi());
    auto ranks = make_inproc(GetParam().size);
    std::vector<std::thread> threads;
    for (auto& rank : ranks) threads.emplace_back([&main, &rank] { main(std::move(rank)); });
    for (std::thread& thread : threads) thread.join();
  }
};

std::vector<int> everyone(const Communicator& c) {
  std::vector<int> ranks(c.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::vector<std::byte> pattern(size_t bytes, int seed) {
  std::vector<std::byte> data(bytes);
  std::minstd_rand random(seed + 1);
  for (std::byte& b : data) b = static_cast<std::byte>(random());
  return data;
}

template <class Call>
Code code_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Code::internal;
}

TEST_P(Communicators, KnowThemselves) {
  run([&](Communicator& c) {
    EXPECT_EQ(c.size(), size());
    EXPECT_GE(c.rank(), 0);
    EXPECT_LT(c.rank(), c.size());
    EXPECT_EQ(c.transport(), GetParam().transport);
  });
  std::set<std::string_view> names;
  for (const Transport& transport : transports()) names.insert(transport.name);
  EXPECT_EQ(names, (std::set<std::string_view>{"inproc", "mpi", "nccl"})) << "a new transport joins this suite (nccl: nccl_test.cc)";
}

TEST_P(Communicators, MessagesArriveInOrder) {
  run([](Communicator& c) {
    // Round the ring, on all channels, with changing lengths.
    const int to = (c.rank() + 1) % c.size(), from = (c.rank() + c.size() - 1) % c.size();
    if (c.size() == 1) return;
    for (int n = 0; n < 200; ++n) {
      for (int channel = 0; channel < kChannels; ++channel) {
        const auto out = pattern(n * 7 % 301, n * 100 + channel * 10 + c.rank());
        c.send(to, channel, out.data(), out.size());
      }
      for (int channel = kChannels - 1; channel >= 0; --channel) {  // channels do not wait for one another
        const auto expected = pattern(n * 7 % 301, n * 100 + channel * 10 + from);
        std::vector<std::byte> in(expected.size());
        c.receive(from, channel, in.data(), in.size());
        EXPECT_EQ(in, expected);
      }
    }
  });
}

TEST_P(Communicators, EverySize) {
  run([](Communicator& c) {
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{7919}, size_t{4096}, size_t{65537}, size_t{1} << 20, (size_t{1} << 20) + 13}) {
      for (int to = 0; to < c.size(); ++to) {
        const auto out = pattern(bytes, c.rank() * 31 + to);
        if (to != c.rank()) c.send(to, kHiddenChannel, out.data(), bytes);
      }
      for (int from = 0; from < c.size(); ++from) {
        if (from == c.rank()) continue;
        std::vector<std::byte> in(bytes + 2, std::byte{0xa5});
        c.receive(from, kHiddenChannel, in.data() + 1, bytes);
        EXPECT_EQ(in.front(), std::byte{0xa5});
        EXPECT_EQ(in.back(), std::byte{0xa5});
        EXPECT_EQ(std::vector<std::byte>(in.begin() + 1, in.end() - 1), pattern(bytes, from * 31 + c.rank()));
      }
    }
  });
}

TEST_P(Communicators, TwoMessagesMayBeOnTheirWayAndBuffersMayBeReused) {
  run([](Communicator& c) {
    if (c.size() == 1) return;
    const int to = (c.rank() + 1) % c.size(), from = (c.rank() + c.size() - 1) % c.size();
    std::vector<int> buffer(5000);
    for (int round = 0; round < 20; ++round) {
      for (const int n : {0, 1}) {
        std::fill(buffer.begin(), buffer.end(), round * 2 + n);
        c.send(to, kHiddenChannel, buffer.data(), buffer.size() * sizeof(int));  // nobody has received yet
      }
      std::fill(buffer.begin(), buffer.end(), -1);
      for (const int n : {0, 1}) {
        c.receive(from, kHiddenChannel, buffer.data(), buffer.size() * sizeof(int));
        EXPECT_THAT(buffer, testing::Each(round * 2 + n));
      }
    }
  });
}

TEST_P(Communicators, ManyInFlightAreHeldBack) {
  run([](Communicator& c) {
    // The sender runs as far ahead as it may, the receiver is slow now and then; nothing is lost or reordered.
    constexpr int kMessages = 3000;
    if (c.size() == 1) return;
    if (c.rank() == 0) {
      for (int n = 0; n < kMessages; ++n) c.send(c.size() - 1, kMailboxChannel, &n, sizeof n);
    } else if (c.rank() == c.size() - 1) {
      for (int n = 0; n < kMessages; ++n) {
        if (n % 500 == 0) std::this_thread::sleep_for(milliseconds(5));
        int got = -1;
        c.receive(0, kMailboxChannel, &got, sizeof got);
        ASSERT_EQ(got, n);
      }
    }
    c.barrier(everyone(c));
  });
}

TEST_P(Communicators, ALongMessageLeavesWhileItsSenderDoesSomethingElse) {
  run([](Communicator& c) {
    if (c.size() == 1) return;
    constexpr size_t kBytes = 8 << 20;
    c.barrier(everyone(c));
    if (c.rank() == 0) {
      const auto out = pattern(kBytes, 5);
      c.send(1, kHiddenChannel, out.data(), kBytes);
      std::this_thread::sleep_for(milliseconds(1000 * kSlow));  // as a rank does that waits for its next step
    } else if (c.rank() == 1) {
      const auto start = Clock::now();
      std::vector<std::byte> in(kBytes);
      c.receive(0, kHiddenChannel, in.data(), kBytes);
      EXPECT_LT(Clock::now() - start, milliseconds(700 * kSlow));
      EXPECT_TRUE(in == pattern(kBytes, 5));
    }
    c.barrier(everyone(c));
  });
}

TEST_P(Communicators, ArrivedNeverBlocks) {
  run([](Communicator& c) {
    if (c.size() == 1) return;
    const int to = (c.rank() + 1) % c.size(), from = (c.rank() + c.size() - 1) % c.size();
    EXPECT_FALSE(c.arrived(from, kMailboxChannel));
    c.barrier(everyone(c));
    const int out = c.rank();
    c.send(to, kMailboxChannel, &out, sizeof out);
    while (!c.arrived(from, kMailboxChannel)) std::this_thread::yield();
    EXPECT_FALSE(c.arrived(from, kControlChannel));
    int in = -1;
    c.receive(from, kMailboxChannel, &in, sizeof in);
    EXPECT_EQ(in, from);
    EXPECT_FALSE(c.arrived(from, kMailboxChannel));
    c.barrier(everyone(c));
  });
}

// Numbers whose sum depends on the order in which they are added.
std::vector<float> awkward(size_t count, int rank) {
  std::vector<float> values(count);
  std::minstd_rand random(rank + 77);
  for (float& v : values) v = std::ldexp(static_cast<float>(random()) - 1e9f, static_cast<int>(random() % 40) - 50);
  return values;
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_TRUE(got.empty() || std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
}

void check_collectives(Communicator& c, const std::vector<int>& members) {
  SCOPED_TRACE(members.size());
  const size_t me = std::find(members.begin(), members.end(), c.rank()) - members.begin();
  for (const size_t count : {0, 1, 3, 17, 1021, 2048, 16384, 16385, 100003}) {
    std::vector<float> expected = awkward(count, members[0]);
    for (size_t i = 1; i < members.size(); ++i) {
      const auto term = awkward(count, members[i]);
      for (size_t k = 0; k < count; ++k) expected[k] += term[k];
    }
    auto values = awkward(count, c.rank());
    c.all_reduce(members, values.data(), count);
    expect_same_bits(values, expected);
  }
  for (const size_t base : {0, 1, 501, 40001}) {
    std::vector<size_t> counts;
    std::vector<float> expected;
    for (size_t i = 0; i < members.size(); ++i) {
      counts.push_back(i == 1 ? 0 : base + i);  // unequal, and one gives nothing
      const auto part = awkward(counts.back(), members[i]);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    const auto mine = awkward(counts[me], c.rank());
    std::vector<float> all(expected.size(), NAN);
    c.all_gather(members, mine.data(), counts, all.data());
    expect_same_bits(all, expected);
  }
  for (const int root : members) {
    for (const size_t bytes : {0, 1, 5003, 200000}) {
      auto data = c.rank() == root ? pattern(bytes, root) : std::vector<std::byte>(bytes);
      c.broadcast(members, root, data.data(), bytes);
      EXPECT_TRUE(data == pattern(bytes, root));
    }
  }
  for (int n = 0; n < 20; ++n) c.barrier(members);
}

TEST_P(Communicators, CollectivesOverAll) {
  run([](Communicator& c) { check_collectives(c, everyone(c)); });
}

TEST_P(Communicators, CollectivesOverGroups) {
  run([](Communicator& c) {
    for (const auto& in_group : {std::function<int(int)>([](int r) { return r % 2; }), std::function<int(int)>([](int r) { return r / 2; }),
                                 std::function<int(int)>([](int r) { return r == 0 ? 0 : 1; })}) {
      std::vector<int> members;
      for (int rank = 0; rank < c.size(); ++rank) {
        if (in_group(rank) == in_group(c.rank())) members.push_back(rank);
      }
      check_collectives(c, members);
    }
    c.barrier(everyone(c));
  });
}

TEST_P(Communicators, BarrierWaitsForTheLast) {
  run([](Communicator& c) {
    const int last = c.size() - 1;
    const auto start = Clock::now();
    if (c.rank() == last) std::this_thread::sleep_for(milliseconds(50));
    c.barrier(everyone(c));
    EXPECT_GE(Clock::now() - start, milliseconds(c.size() == 1 ? 50 : 25));
  });
}

TEST_P(Communicators, PeerGroupsAreStages) {
  run([](Communicator& c) {
    EXPECT_EQ(make_peer_group(c, Mesh{c.size(), 1, 1}), nullptr);
    for (const int group : {2, 4}) {
      if (c.size() % group != 0) continue;
      const Mesh mesh{c.size() / group, 1, group};
      const auto peers = make_peer_group(c, mesh);
      ASSERT_NE(peers, nullptr);
      EXPECT_EQ(peers->size(), group);
      EXPECT_EQ(peers->index(), c.rank() % group);
      float value = static_cast<float>(c.rank());
      peers->all_reduce(&value, 1);
      const int first = c.rank() / group * group;
      EXPECT_EQ(value, static_cast<float>(group * first + group * (group - 1) / 2));
      const std::vector<size_t> counts(group, 1);
      std::vector<float> all(group);
      value = static_cast<float>(c.rank());
      peers->all_gather(&value, counts, all.data());
      for (int i = 0; i < group; ++i) EXPECT_EQ(all[i], static_cast<float>(first + i));
    }
  });
}

TEST_P(Communicators, MailReachesTheFirstStage) {
  run([](Communicator& c) {
    for (int group = 1; group <= c.size(); ++group) {
      if (c.size() % group != 0) continue;
      const Mesh mesh{c.size() / group, 1, group};
      const auto mailbox = make_mailbox(c, mesh);
      const auto letter = [](uint64_t step) {
        std::vector<MailItem> items(step * 13 % 97);  // some fit into one message, some need two
        for (size_t i = 0; i < items.size(); ++i) items[i] = {static_cast<int32_t>(i), static_cast<int32_t>(step * 1000 + i)};
        return items;
      };
      const bool posts = mesh.stage(c.rank()) == mesh.pp - 1, reads = mesh.stage(c.rank()) == 0;
      for (uint64_t step = 1; step <= 40; step += 2) {  // two in flight
        for (const uint64_t s : {step, step + 1}) {
          if (posts) mailbox->post(s, letter(s));
        }
        for (const uint64_t s : {step, step + 1}) {
          if (!reads) continue;
          while (!mailbox->ready()) std::this_thread::yield();
          const auto items = mailbox->wait(s), expected = letter(s);
          ASSERT_EQ(items.size(), expected.size());
          for (size_t i = 0; i < items.size(); ++i) {
            EXPECT_EQ(items[i].slot, expected[i].slot);
            EXPECT_EQ(items[i].id, expected[i].id);
          }
        }
      }
      if (posts) mailbox->post(100, {});
      EXPECT_TRUE(!reads || code_of([&] { mailbox->wait(101); }) == Code::internal);
      c.barrier(everyone(c));
    }
  });
}

TEST_P(Communicators, AWrongLengthIsABug) {
  run([](Communicator& c) {
    if (c.size() == 1) return;
    const std::vector<char> out(70000, 'x');
    std::vector<char> in(70000);
    if (c.rank() == 0) {
      for (const size_t bytes : {size_t{8}, size_t{8}, size_t{70000}, size_t{3}}) c.send(1, kControlChannel, out.data(), bytes);
    } else if (c.rank() == 1) {
      EXPECT_EQ(code_of([&] { c.receive(0, kControlChannel, in.data(), 16); }), Code::internal);
      EXPECT_EQ(code_of([&] { c.receive(0, kControlChannel, in.data(), 4); }), Code::internal);
      EXPECT_EQ(code_of([&] { c.receive(0, kControlChannel, in.data(), 100); }), Code::internal);
      c.receive(0, kControlChannel, in.data(), 3);  // the wrong ones were consumed
    }
    EXPECT_EQ(code_of([&] { c.send(c.size(), 0, nullptr, 0); }), Code::internal);
    EXPECT_EQ(code_of([&] { c.send(0, kChannels, nullptr, 0); }), Code::internal);
    const std::vector<int> others = {c.rank() + 1};
    EXPECT_EQ(code_of([&] { c.barrier(others); }), Code::internal);
    c.barrier(everyone(c));
  });
}

TEST_P(Communicators, AbortEndsEveryWait) {
  for (const char* where : {"receive", "send", "barrier"}) {
    SCOPED_TRACE(where);
    run([&](Communicator& c) {
      if (c.size() == 1) return;
      const int peer = (c.rank() + 1) % c.size();
      // Nobody receives and one never comes to the barrier, so all but the last wait for ever.
      std::thread other([&] {
        std::this_thread::sleep_for(milliseconds(60));
        c.abort();
      });
      const auto start = Clock::now();
      const std::vector<std::byte> big(100000);
      EXPECT_EQ(code_of([&] {
                  if (where == std::string("receive") || c.rank() == c.size() - 1) {
                    std::byte unused{};
                    c.receive(peer, kHiddenChannel, &unused, 1);
                  } else if (where == std::string("send")) {
                    for (;;) c.send(peer, kControlChannel, big.data(), big.size());
                  } else {
                    c.barrier(everyone(c));
                  }
                }),
                Code::aborted);
      EXPECT_LT(Clock::now() - start, milliseconds(1000 * kSlow));
      other.join();
      EXPECT_EQ(code_of([&] { c.send(peer, kHiddenChannel, nullptr, 0); }), Code::aborted);  // for good
      EXPECT_EQ(code_of([&] { c.arrived(peer, kHiddenChannel); }), Code::aborted);
    });
  }
}

TEST_P(Communicators, ADeadlineEndsAWait) {
  run(
      [](Communicator& c) {
        if (c.size() == 1) return;
        const int peer = (c.rank() + 1) % c.size();
        const auto start = Clock::now();
        std::byte unused{};
        const Code code = code_of([&] { c.receive(peer, kHiddenChannel, &unused, 1); });
        // Threads of one process are aborted together by whoever is first.
        EXPECT_TRUE(code == Code::deadline_exceeded || (code == Code::aborted && c.transport() == "inproc")) << name(code);
        EXPECT_GE(Clock::now() - start, milliseconds(150));
        EXPECT_LT(Clock::now() - start, milliseconds(1500 * kSlow));
        EXPECT_THROW(c.send(peer, kHiddenChannel, nullptr, 0), Error);
      },
      milliseconds(200));
}

TEST_P(Communicators, WaitingIsIdle) {
  run([](Communicator& c) {
    if (c.size() == 1) return;
    c.barrier(everyone(c));
    const auto cpu_seconds = [&] {
      rusage usage{};
      getrusage(c.transport() == "mpi" ? RUSAGE_SELF : RUSAGE_THREAD, &usage);
      return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
             1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    };
    if (c.rank() == 0) {
      std::this_thread::sleep_for(milliseconds(2000));
      for (int to = 1; to < c.size(); ++to) c.send(to, kHiddenChannel, nullptr, 0);
    } else {
      const double before = cpu_seconds();
      c.receive(0, kHiddenChannel, nullptr, 0);
      const double share = (cpu_seconds() - before) / 2.0;
      EXPECT_LT(share, 0.05 * kSlow);
      if (c.rank() == 1)
        std::printf("[ figures  ] %s, %d ranks: waiting uses %.2f %% of a core\n", std::string(c.transport()).c_str(), c.size(),
                    100 * share);
    }
    c.barrier(everyone(c));
  });
}

TEST_P(Communicators, Latency) {
  run([](Communicator& c) {
    if (c.size() == 1 || c.size() > 2) return;
    const auto members = everyone(c);
    std::vector<float> values(2048);
    const auto measure = [&](int rounds, const auto& round) {
      double best = 1e9;
      for (int repeat = 0; repeat < 5; ++repeat) {
        c.barrier(members);
        const auto start = Clock::now();
        for (int n = 0; n < rounds; ++n) round();
        best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - start).count() / rounds);
      }
      return best;
    };
    const double there_and_back = measure(500, [&] {
      if (c.rank() == 0) c.send(1, kHiddenChannel, values.data(), 8192);
      c.receive(1 - c.rank(), kHiddenChannel, values.data(), 8192);
      if (c.rank() == 1) c.send(0, kHiddenChannel, values.data(), 8192);
    });
    const double all_reduce = measure(500, [&] { c.all_reduce(members, values.data(), 2048); });
    std::vector<float> large(1 << 20);
    const double large_reduce = measure(5, [&] { c.all_reduce(members, large.data(), large.size()); });
    if (c.rank() == 0) {
      std::printf("[ figures  ] %s, 2 ranks: 8 KiB one way %.1f us, all_reduce of 8 KiB %.1f us, of 4 MiB %.0f us\n",
                  std::string(c.transport()).c_str(), there_and_back / 2, all_reduce, large_reduce);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, Communicators,
                         testing::Values(World{"inproc", 1}, World{"inproc", 2}, World{"inproc", 3}, World{"inproc", 4}, World{"inproc", 8},
                                         World{"inproc", 4, true}, World{"mpi", 0}, World{"mpi", 0, true}),
                         [](const auto& info) {
                           return info.param.transport + (info.param.size ? std::to_string(info.param.size) : "") +
                                  (info.param.guarded ? "_guarded" : "");
                         });

TEST(Inproc, ARankThatIsGoneIsReported) {
  auto ranks = make_inproc(3);
  const int value = 7;
  ranks[2]->send(0, kHiddenChannel, &value, sizeof value);
  ranks[2].reset();
  int got = 0;
  ranks[0]->receive(2, kHiddenChannel, &got, sizeof got);  // what it sent before is still there
  EXPECT_EQ(got, 7);
  EXPECT_EQ(code_of([&] { ranks[0]->receive(2, kHiddenChannel, &got, sizeof got); }), Code::unavailable);
  EXPECT_EQ(code_of([&] { ranks[0]->arrived(2, kHiddenChannel); }), Code::unavailable);
  EXPECT_EQ(code_of([&] {
              for (int n = 0; n < 100; ++n) ranks[0]->send(2, kHiddenChannel, &value, sizeof value);
            }),
            Code::unavailable);
  ranks[1]->send(0, kHiddenChannel, &value, sizeof value);  // the others go on
  ranks[0]->receive(1, kHiddenChannel, &got, sizeof got);
}

}  // namespace
}  // namespace tandem
