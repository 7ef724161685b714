// What a token costs the coordinator: 32 streams, read by another process (this program again, asked for LoadClient.Main). Figures that
// are printed; the bounds are far from them, because the machine may be busy.
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstdlib>
#include <thread>

#include "tests/rpc/served.h"

extern char** environ;

namespace tandem {
namespace {

constexpr int kStreams = 32, kTokens = 400;

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

EngineOptions wide() {
  EngineOptions options = toy_engine();
  options.max_batch = kStreams;
  options.kv_pages = {4096};
  return options;
}

TEST(LoadClient, Main) {
  const char* address = std::getenv("TANDEM_TEST_LOAD");
  if (address == nullptr) GTEST_SKIP() << "runs only as the client process of another test";
  Client client{std::string(address)};
  std::vector<std::jthread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([&, i] { client.generate(ask_text("stream " + std::to_string(i), kTokens), {}); });
  }
  threads.clear();
  _exit(0);
}

TEST(Budget, CoordinatorPerToken) {
  double engine_alone = 0;
  {
    const EngineOptions options = wide();
    FakeGroup group(options, Served::with_time(slow_steps(2)));
    Engine engine(options, group);
    engine.start();
    ASSERT_TRUE(engine.wait_for(EngineState::serving, limit(20000)));
    const double before = cpu_seconds();
    std::vector<std::shared_ptr<FakeSink>> sinks;
    for (int i = 0; i < kStreams; ++i) {
      Prepared prepared = prepare(ask_text("stream " + std::to_string(i), kTokens), toy_text(options.context));
      sinks.push_back(std::make_shared<FakeSink>());
      engine.submit(std::move(prepared.request), sinks.back());
    }
    for (const auto& sink : sinks) ASSERT_TRUE(sink->wait());
    engine_alone = (cpu_seconds() - before) / (kStreams * kTokens) * 1e6;
  }

  Served s(wide(), slow_steps(2));
  s.start();
  const std::string load = "TANDEM_TEST_LOAD=" + s.server->address();
  std::vector<char*> environment;
  for (char** at = environ; *at != nullptr; ++at) environment.push_back(*at);
  environment.push_back(const_cast<char*>(load.c_str()));
  environment.push_back(nullptr);
  char program[] = "/proc/self/exe", filter[] = "--gtest_filter=LoadClient.Main", quiet[] = "--gtest_brief=1";
  char* arguments[] = {program, filter, quiet, nullptr};
  const double before = cpu_seconds();
  const auto began = Clock::now();
  pid_t child = 0;
  ASSERT_EQ(posix_spawn(&child, program, nullptr, nullptr, arguments, environment.data()), 0);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  const double all = (cpu_seconds() - before) / (kStreams * kTokens) * 1e6;
  const double rate = kStreams * kTokens / std::chrono::duration<double>(Clock::now() - began).count();
  std::printf("[ figures  ] 32 streams at %.0f tokens/s: %.1f us of CPU a token, of which engine and fake workers alone %.1f us\n", rate,
              all, engine_alone);
  EXPECT_LT(all, 150 * kSlowFactor);
}

}  // namespace
}  // namespace tandem
