// Two hosts, played by two network namespaces with a cable between them: ranks on both, through a launch agent in ssh's place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

using nlohmann::json;

constexpr const char* kHere = "10.213.77.1";
constexpr const char* kThere = "10.213.77.2";

bool shell(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

class Hosts : public testing::Test {
 protected:
  void SetUp() override {
    adopt_orphans();
    const std::string id = std::to_string(getpid());
    here_ = "tandem-here-" + id, there_ = "tandem-there-" + id, cable_ = "tdm" + id;
    if (geteuid() != 0) GTEST_SKIP() << "only root can make network namespaces";
    if (!shell("ip netns add " + here_)) GTEST_SKIP() << "this machine does not allow network namespaces (ip netns add)";
    ASSERT_TRUE(shell("ip netns add " + there_));
    if (!shell("ip link add " + cable_ + "a netns " + here_ + " type veth peer name " + cable_ + "b netns " + there_))
      GTEST_SKIP() << "this machine has no veth";
    for (const auto& [space, end, address] : {std::tuple(here_, "a", kHere), {there_, "b", kThere}}) {
      ASSERT_TRUE(shell("ip -n " + space + " addr add " + address + "/24 dev " + cable_ + end));
      ASSERT_TRUE(shell("ip -n " + space + " link set lo up && ip -n " + space + " link set " + cable_ + end + " up"));
      // The same address on both, as container bridges have it: nobody must dial it.
      ASSERT_TRUE(shell("ip -n " + space + " link add bridge0 type bridge && ip -n " + space +
                        " addr add 172.31.255.1/24 dev bridge0 && ip -n " + space + " link set bridge0 up"));
    }
    std::ofstream(agent()) << "#!/bin/sh\nshift\nexec ip netns exec " << there_ << " sh -c \"$*\"\n";
    ASSERT_TRUE(shell("chmod +x " + agent()));
  }
  void TearDown() override {
    EXPECT_THAT(wait_childless(getpid(), 10 * kSlowFactor), testing::IsEmpty()) << "processes were left behind";
    shell("ip netns del " + here_);
    shell("ip netns del " + there_);
  }

  std::string agent() const { return folder_ / "agent.sh"; }
  std::vector<std::string> here(std::vector<std::string> words) const {
    words.insert(words.begin(), {"ip", "netns", "exec", here_});
    return words;
  }
  std::vector<std::string> job() const {
    std::vector<std::string> words = here(mpirun_words(2));
    words.insert(words.end(), {"--mca", "plm_rsh_agent", agent(), "--mca", "btl_tcp_if_include", "10.213.77.0/24", "--host",
                               std::string(kHere) + "," + kThere});
    return words;
  }
  Ran run(const std::vector<std::string>& words, double seconds = 60 * kSlowFactor) const {
    Process process(words);
    const int code = process.wait(seconds).value_or(-1);
    return {code, process.out(), process.err()};
  }
  Ran client(const std::string& address, const std::string& max_tokens) const {
    return run(here({TANDEM_BINARY, "client", address, "--connect-seconds", "10", "--prompt-ids", "1,2,3", "--max-tokens", max_tokens,
                     "--ignore-eos", "--temperature", "0", "--json"}));
  }
  // Asks until there is an answer: health is inside of the namespace.
  json answer(const std::string& address) const {
    Ran ran;
    for (const Stopwatch clock; clock.seconds() < 60 * kSlowFactor;) {
      ran = client(address, "12");
      if (ran.code == 0) return json::parse(ran.out)["token_ids"];
    }
    ADD_FAILURE() << ran.err;
    return json();
  }
  static json answer_of_one_rank() {
    Process process(
        {TANDEM_BINARY, "generate", kLlama, "--prompt-ids", "1,2,3", "--max-tokens", "12", "--ignore-eos", "--temperature", "0", "--json"});
    EXPECT_EQ(process.wait(60 * kSlowFactor), 0) << process.err();
    return json::parse(process.out())["token_ids"];
  }
  // Ranks whose network is the other host's.
  std::vector<pid_t> ranks_there(pid_t below) const {
    std::vector<pid_t> found;
    char there[256] = {}, its[256] = {};
    Process probe({"ip", "netns", "exec", there_, "readlink", "/proc/self/ns/net"});
    probe.wait(10 * kSlowFactor);
    std::snprintf(there, sizeof there, "%s", probe.out().c_str());
    there[std::strcspn(there, "\n")] = 0;
    for (const pid_t pid : descendants(below)) {
      const ssize_t size = readlink(("/proc/" + std::to_string(pid) + "/ns/net").c_str(), its, sizeof its - 1);
      if (size > 0 && std::string_view(its, static_cast<size_t>(size)) == there && command_of(pid).starts_with(TANDEM_BINARY))
        found.push_back(pid);
    }
    return found;
  }

  TemporaryFolder folder_;
  std::string here_, there_, cable_;
};

TEST_F(Hosts, GenerateAnswersAsOneRank) {
  std::vector<std::string> words = job();
  words.insert(words.end(), {TANDEM_BINARY, "generate", kLlama, "--prompt-ids", "1,2,3", "--max-tokens", "12", "--ignore-eos",
                             "--temperature", "0", "--json"});
  const Ran ran = run(words);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["token_ids"], answer_of_one_rank());
}

TEST_F(Hosts, ServeUnderMpirun) {
  std::vector<std::string> words = job();
  words.insert(words.end(), {TANDEM_BINARY, "serve", kLlama, "--listen", "127.0.0.1:0"});
  Process server(words);
  const std::string address = server.line("listening on ", 30 * kSlowFactor).value_or("");
  ASSERT_NE(address, "") << server.err();
  EXPECT_EQ(answer(address), answer_of_one_rank());
  const std::vector<pid_t> remote = ranks_there(server.pid());
  ASSERT_EQ(remote.size(), 1u);
  send_signal(remote[0], SIGKILL);
  EXPECT_TRUE(server.line("error: rank 1: ", 3 * kSlowFactor).has_value()) << server.err();
  const auto code = server.wait(8 * kSlowFactor);  // Open MPI takes some 4 s to end daemons on other hosts
  ASSERT_TRUE(code.has_value()) << "the job outlives its remote rank";
  EXPECT_NE(*code, 0);
}

TEST_F(Hosts, ServeStartsRanksOnHosts) {
  Process server(
      here({TANDEM_BINARY, "serve", kLlama, "--ranks", "2", "--hosts", std::string(kHere) + "," + kThere, "--listen", "127.0.0.1:0"}),
      {"OMPI_MCA_plm_rsh_agent=" + agent(), "OMPI_MCA_btl_tcp_if_include=10.213.77.0/24"});
  const std::string address = server.line("listening on ", 30 * kSlowFactor).value_or("");
  ASSERT_NE(address, "") << server.err();
  const json expected = answer_of_one_rank();
  EXPECT_EQ(answer(address), expected);
  std::vector<pid_t> remote = ranks_there(server.pid());
  ASSERT_EQ(remote.size(), 1u);

  send_signal(remote[0], SIGKILL);  // a rank lost over there
  EXPECT_EQ(answer(address), expected);

  remote = ranks_there(server.pid());
  ASSERT_EQ(remote.size(), 1u);
  const ProcessHandle cut_off(remote[0]);
  ASSERT_TRUE(shell("ip -n " + here_ + " link set " + cable_ + "a down"));  // the cable pulled: nothing says that it is
  EXPECT_TRUE(cut_off.wait_gone(6 * kSlowFactor)) << "a rank outlives its lease";
  ASSERT_TRUE(shell("ip -n " + here_ + " link set " + cable_ + "a up"));
  EXPECT_EQ(answer(address), expected);

  server.signal(SIGKILL);  // the coordinator lost: nobody stays behind, over there neither (TearDown looks)
}

}  // namespace
}  // namespace tandem::e2e
