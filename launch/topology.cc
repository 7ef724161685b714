#include "launch/topology.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"

namespace tandem {
namespace {

constexpr int kMostThreads = 64;  // of a rank

}  // namespace

int share_cores(int local_rank, int local_size) {
  cpu_set_t all, mine;
  CPU_ZERO(&all);
  for (int core = 0; core < CPU_SETSIZE; ++core) CPU_SET(core, &all);
  // The kernel cuts the mask down to what the container allows; what comes back are the host's cores that may be used.
  if (sched_setaffinity(0, sizeof all, &all) != 0 || sched_getaffinity(0, sizeof all, &all) != 0) return threads_for(0, local_size);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &all)) cores.push_back(core);
  }
  const int total = static_cast<int>(cores.size());
  if (local_size > total) return 1;  // more ranks than cores: let the kernel share
  CPU_ZERO(&mine);
  for (int i = total * local_rank / local_size; i < total * (local_rank + 1) / local_size; ++i) CPU_SET(cores[static_cast<size_t>(i)], &mine);
  sched_setaffinity(0, sizeof mine, &mine);
  return std::min(CPU_COUNT(&mine), kMostThreads);
}

int threads_for(int asked, int ranks_here) { return asked > 0 ? asked : std::clamp(allowed_cores() / std::max(1, ranks_here), 1, kMostThreads); }

void sleep_precisely() { prctl(PR_SET_TIMERSLACK, 1000); }

void die_with_parent() {
  const pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before the kernel knew
}

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::string executable_path() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) fail(Code::internal, "/proc/self/exe", "cannot be read");
  return {path, static_cast<size_t>(length)};
}

std::string random_secret() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) fail(Code::internal, "getrandom", "gave too few bytes");
  std::string text;
  for (unsigned char byte : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string build_id() {
  struct stat info;
  if (stat("/proc/self/exe", &info) != 0) return "unknown";
  return std::to_string(info.st_size) + "-" + std::to_string(info.st_mtim.tv_sec);
}

}  // namespace tandem
