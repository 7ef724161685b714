// quantize, killed and started beside itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/process.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;
namespace fs = std::filesystem;

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::directory_iterator(folder)) all[entry.path().filename()] = read_whole(entry.path());
  return all;
}

// Killed at any moment, it ends as if it had not been.
TEST(Quantize, GoesOnAfterAKill) {
  const TemporaryFolder folder;
  const std::string command = "quantize preset:smollm2-135m --weights synthetic:3 --format keep --shard-size 8MB -o ", whole = folder / "whole", out = folder / "out";
  ASSERT_EQ(run_tandem(command + whole).code, 0);
  int killed = 0;
  for (int kill = 0; kill < 8 && killed < 2; ++kill) {  // where it is when it is killed hangs on this machine's speed
    Process process({TANDEM_BINARY, "quantize", "preset:smollm2-135m", "--weights", "synthetic:3", "--format", "keep", "--shard-size", "8MB", "-o", out});
    for (int i = 0; i < 2000 && !process.wait(0.002); ++i) {
      const auto done = fs::exists(out) ? std::distance(fs::directory_iterator(out), fs::directory_iterator()) : 0;
      if (done >= 6 * (killed + 1)) break;
    }
    process.signal(SIGKILL);
    const auto code = process.wait(10 * kSlowFactor);
    ASSERT_TRUE(code);
    if (*code == 0) {
      fs::remove_all(out);
      continue;
    }
    ++killed;
    EXPECT_FALSE(fs::exists(out + "/config.json"));
  }
  ASSERT_GT(killed, 0);
  const Ran ran = run_tandem(command + out + " --json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_GT(json::parse(ran.out)["resumed_bytes"], 0);
  EXPECT_TRUE(contents(out) == contents(whole));
}

TEST(Quantize, OneProcessAFolder) {
  const TemporaryFolder folder;
  Process first({TANDEM_BINARY, "quantize", "preset:smollm2-135m", "--weights", "synthetic", "--format", "keep", "--threads", "1", "-o", folder / "out"});
  for (int i = 0; i < 5000 && !fs::exists(folder / "out/.tandem-unfinished") && !first.wait(0.001); ++i) {}
  first.signal(SIGSTOP);
  const Ran second = run_tandem("quantize preset:smollm2-135m --weights synthetic --format keep --threads 1 -o " + (folder / "out"));
  if (fs::exists(folder / "out/config.json")) GTEST_SKIP() << "the first was done before it could be stopped";
  EXPECT_EQ(second.code, 2);
  EXPECT_THAT(second.err, HasSubstr("another process"));
}

}  // namespace
}  // namespace tandem
