// tandem probe: what it measures of this machine, alone and as ranks of an MPI job, is a cluster that plan takes; wrong options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "sharding/cluster.h"
#include "tests/support/run_binary.h"

namespace tandem {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// As run_tandem, under mpirun.
Ran run_ranks(int ranks, const std::string& arguments) {
  const TemporaryFolder folder;
  const std::string line = "timeout 60 mpirun --allow-run-as-root --oversubscribe --bind-to none -n " + std::to_string(ranks) + " " TANDEM_BINARY " " + arguments +
                           " </dev/null >" + (folder / "out") + " 2>" + (folder / "err");
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_whole(folder / "out"), read_whole(folder / "err")};
}

TEST(Probe, OfThisMachine) {
  const Ran ran = run_tandem("probe --device cpu");
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Cluster cluster = cluster_from_json(json::parse(ran.out), "probe");
  ASSERT_EQ(cluster.devices.size(), 1u);
  const Device& cpu = cluster.devices[0];
  EXPECT_EQ(cpu.id, "cpu");
  EXPECT_TRUE(cpu.is_cpu);
  EXPECT_GT(cpu.total_bytes, uint64_t{1} << 28);
  EXPECT_GT(cpu.free_bytes, 0u);
  EXPECT_LE(cpu.free_bytes, cpu.total_bytes);
  EXPECT_GT(cpu.bandwidth, 1e8);
  EXPECT_TRUE(cluster.links.empty());
}

TEST(Probe, OfRanksAndTheirLinks) {
  const TemporaryFolder folder;
  const std::string file = folder / "cluster.json";
  const Ran ran = run_ranks(3, "probe --device cpu -o " + file);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("cpu:2"));
  const Cluster cluster = cluster_from_json(json::parse(read_whole(file)), file);
  ASSERT_EQ(cluster.devices.size(), 3u);
  uint64_t free = 0;
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(cluster.devices[static_cast<size_t>(rank)].id, "cpu:" + std::to_string(rank));
    EXPECT_GT(cluster.devices[static_cast<size_t>(rank)].bandwidth, 1e8);
    free += cluster.devices[static_cast<size_t>(rank)].free_bytes;
  }
  EXPECT_LE(free, local_cpus(1, 1).devices[0].total_bytes) << "memory of one host is shared by its ranks";
  EXPECT_EQ(cluster.links.size(), 6u) << "each pair both ways";
  for (const Link& link : cluster.links) {
    EXPECT_NE(link.from, link.to);
    EXPECT_GT(link.latency, 0);
    EXPECT_LT(link.latency, 1);
    EXPECT_GT(link.bandwidth, 1e6);
  }
  const Ran plan = run_tandem("plan preset:smollm2-135m --cluster " + file + " --json");
  ASSERT_EQ(plan.code, 0) << plan.err;
  EXPECT_EQ(json::parse(plan.out)["devices"].size(), 3u);
}

TEST(Probe, WrongOptionsAreOneLine) {
  for (const char* bad : {"probe --device gpu", "probe --threads -1", "probe -o /no/such/folder/cluster.json"}) {
    const Ran ran = run_tandem(bad);
    EXPECT_EQ(ran.code, 2) << bad;
    EXPECT_EQ(error_lines(ran), 1) << bad << "\n" << ran.err;
  }
  const Ran ranks = run_ranks(2, "probe --device gpu");
  EXPECT_EQ(ranks.code, 2);
  EXPECT_EQ(error_lines(ranks), 1) << ranks.err;
  EXPECT_THAT(ranks.err, HasSubstr("--device"));
}

}  // namespace
}  // namespace tandem
