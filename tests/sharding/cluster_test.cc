#include "sharding/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "kernels/base/error.h"

namespace tandem {
namespace {

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
  return "nothing was refused";
}

TEST(Bytes, AreReadExactly) {
  const auto bytes = [](const char* text) { return parse_bytes(text, "--x"); };
  EXPECT_EQ(bytes("1000"), 1000u);
  EXPECT_EQ(bytes("0"), 0u);
  EXPECT_EQ(bytes("7B"), 7u);
  EXPECT_EQ(bytes("20GiB"), 20ull << 30);
  EXPECT_EQ(bytes("1.5GB"), 1500000000u);
  EXPECT_EQ(bytes("0.1GiB"), 107374182u);
  EXPECT_EQ(bytes("2TiB"), 2ull << 40);
  EXPECT_EQ(bytes("3KB"), 3000u);
  for (const char* wrong : {"", "GiB", "-1", "+1", "1.5", "1.5B", ".5GiB", "1.GiB", "1..5GiB", "20 GiB", "20gib", "20Gb", "20G", "1e9",
                            "0x10", "20GiBs", "99999999TiB", "99999999999999999999"}) {
    EXPECT_THAT(refusal([&] { parse_bytes(wrong, "--x"); }),
                testing::StartsWith("--x: \"" + std::string(wrong) + "\" is not a number of bytes"))
        << wrong;
  }
}

TEST(Bytes, AreWrittenWithTheirUnit) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(3ull << 29), "1.50 GiB");
  EXPECT_EQ(human_bytes((1ull << 30) - 1), "1.00 GiB");
}

TEST(Cluster, FromGpuNames) {
  const Cluster cluster = cluster_from_gpus("2xrtx3090,1xA4000,h200");
  ASSERT_EQ(cluster.devices.size(), 4u);
  EXPECT_EQ(cluster.devices[0].kind, "rtx3090");
  EXPECT_EQ(cluster.devices[1].id, "1");
  EXPECT_EQ(cluster.devices[2].kind, "a4000");
  EXPECT_EQ(cluster.devices[3].kind, "h200");
  for (const Device& device : cluster.devices) {
    EXPECT_FALSE(device.is_cpu);
    EXPECT_EQ(device.free_bytes, device.total_bytes);
    EXPECT_EQ(device.reserve_bytes, std::max<uint64_t>(512 << 20, device.total_bytes / 50));
    EXPECT_GT(device.bandwidth, 1e11);
  }
  EXPECT_NEAR(static_cast<double>(cluster.devices[0].total_bytes), 23.58 * (1ull << 30), 1e7);
  for (const char* wrong : {"rtx9999", "0xrtx3090", "99999xrtx3090", "", "2x", "rtx3090,", "-1xrtx3090"}) {
    EXPECT_THAT(refusal([&] { cluster_from_gpus(wrong); }), testing::StartsWith("--gpus: ")) << wrong;
  }
  EXPECT_THAT(gpu_names(), testing::Contains("rtx4090"));
}

TEST(Cluster, MaxMemoryReplacesAndCreates) {
  Cluster cluster = cluster_from_gpus("2xrtx3090");
  apply_max_memory(cluster, "0=20GiB,2=10GiB,cpu=64GiB,far/0=1GB");
  ASSERT_EQ(cluster.devices.size(), 5u);
  EXPECT_EQ(cluster.devices[0].free_bytes, 20ull << 30);
  EXPECT_EQ(cluster.devices[0].kind, "rtx3090");
  EXPECT_EQ(cluster.devices[1].free_bytes, cluster.devices[1].total_bytes);
  EXPECT_EQ(cluster.devices[2].id, "2");
  EXPECT_EQ(cluster.devices[2].reserve_bytes, 512ull << 20);
  EXPECT_TRUE(cluster.devices[3].is_cpu);
  EXPECT_EQ(cluster.devices[4].node, "far");
  for (const char* wrong : {"", "0", "=1GiB", "0=", "0=1GiB,0=2GiB", "0=1gb"}) {
    EXPECT_THAT(refusal([&] { apply_max_memory(cluster, wrong); }), testing::StartsWith("--max-memory: ")) << wrong;
  }
}

TEST(Cluster, ThisMachine) {
  const Cluster one = local_cpus(1, 4), four = local_cpus(4, 1);
  ASSERT_EQ(one.devices.size(), 1u);
  ASSERT_EQ(four.devices.size(), 4u);
  EXPECT_EQ(one.devices[0].id, "cpu");
  EXPECT_EQ(four.devices[3].id, "cpu:3");
  EXPECT_TRUE(four.devices[3].is_cpu);
  EXPECT_GT(one.devices[0].free_bytes, 0u);
  EXPECT_LE(one.devices[0].free_bytes, one.devices[0].total_bytes);
  EXPECT_EQ(four.devices[1].total_bytes, one.devices[0].total_bytes / 4);
  Cluster shared = four;
  apply_max_memory(shared, "cpu=8GiB");
  ASSERT_EQ(shared.devices.size(), 4u);
  for (const Device& device : shared.devices) EXPECT_EQ(device.free_bytes, 2ull << 30);
}

TEST(Cluster, JsonRoundTripAndRefusals) {
  Cluster cluster = cluster_from_gpus("1xrtx3090,1xa4000");
  cluster.links.push_back({"0", "1", 1e-5, 2e10});
  const nlohmann::json json = to_json(cluster);
  EXPECT_EQ(to_json(cluster_from_json(json, "c.json")), json);
  const auto refused = [](const char* text) { return refusal([&] { cluster_from_json(nlohmann::json::parse(text), "c.json"); }); };
  EXPECT_EQ(refused("[]"), "c.json: is [] (must be an object)");
  EXPECT_EQ(refused("{}"), "c.json: devices: is missing (must be a list of objects)");
  EXPECT_EQ(refused(R"({"devices":[]})"), "c.json: devices: is [] (must be a list of at least one device)");
  EXPECT_EQ(refused(R"({"devices":[{"id":"0"}]})"), "c.json: devices[0].total_bytes: is missing (must be a whole number from 0 up)");
  EXPECT_EQ(refused(R"({"devices":[{"id":"0","total_bytes":-1}]})"),
            "c.json: devices[0].total_bytes: is -1 (must be a whole number from 0 up)");
  EXPECT_EQ(refused(R"({"devices":[{"id":"0","total_bytes":1.5}]})"),
            "c.json: devices[0].total_bytes: is 1.5 (must be a whole number from 0 up)");
  EXPECT_EQ(refused(R"({"devices":[{"id":0,"total_bytes":1}]})"), "c.json: devices[0].id: is 0 (must be a text)");
  EXPECT_EQ(refused(R"({"devices":[{"id":"a","total_bytes":1},{"id":"a","total_bytes":1}]})"),
            "c.json: devices: device a is there twice (ids are unique)");
  EXPECT_EQ(refused(R"({"devices":[{"id":"a","total_bytes":1}],"links":[{"from":"a","to":"b"}]})"),
            "c.json: links[0].to: is \"b\" (must be the id of one of the devices)");
  const Cluster least =
      cluster_from_json(nlohmann::json::parse(R"({"devices":[{"id":"cpu","total_bytes":2e9,"colour":"blue"}]})"), "c.json");
  EXPECT_TRUE(least.devices[0].is_cpu);
  EXPECT_EQ(least.devices[0].free_bytes, 2000000000u);
}

}  // namespace
}  // namespace tandem
