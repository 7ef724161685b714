#include "launch/addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <sstream>

#include "kernels/base/error.h"

namespace tandem {
namespace {

constexpr size_t kMostAddresses = 16;

struct Attempt {
  std::string address;
  int fd = -1;
};

// A connection on its way to "IP:PORT"; -1 when there is no such way.
int begin_connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  if (inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) != 1) return -1;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd >= 0 && connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 && errno != EINPROGRESS) {
    close(fd);
    return -1;
  }
  return fd;
}

}  // namespace

std::vector<std::string> host_addresses() {
  std::vector<std::string> found;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return found;
  for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
    if ((at->ifa_flags & IFF_UP) == 0 || (at->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET_ADDRSTRLEN] = {};
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr, text, sizeof text);
    if (found.size() < kMostAddresses) found.emplace_back(text);
  }
  freeifaddrs(all);
  return found;
}

std::string dial_addresses(const std::string& listening) {
  const size_t colon = listening.rfind(':');
  const std::string host = listening.substr(0, colon), port = listening.substr(colon);
  if (host != "0.0.0.0") return listening;
  std::string list;
  for (const std::string& address : host_addresses()) list += (list.empty() ? "" : ",") + address + port;
  return list.empty() ? "127.0.0.1" + port : list;
}

std::string reachable_address(const std::string& addresses, double seconds) {
  if (addresses.find(',') == std::string::npos) return addresses;
  std::vector<std::string> theirs;
  std::istringstream list(addresses);
  for (std::string address; std::getline(list, address, ',');) theirs.push_back(address);
  const std::vector<std::string> ours = host_addresses();
  const auto is_ours = [&](const std::string& address) {
    return std::find(ours.begin(), ours.end(), address.substr(0, address.rfind(':'))) != ours.end();
  };
  if (!std::all_of(theirs.begin(), theirs.end(), is_ours)) std::erase_if(theirs, is_ours);

  std::vector<Attempt> attempts;
  for (const std::string& address : theirs) {
    if (const int fd = begin_connect(address); fd >= 0) attempts.push_back({address, fd});
  }
  std::string chosen;
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (chosen.empty() && !attempts.empty()) {
    std::vector<pollfd> wanted;
    for (const Attempt& attempt : attempts) wanted.push_back({attempt.fd, POLLOUT, 0});
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    if (left <= 0 || poll(wanted.data(), wanted.size(), static_cast<int>(left)) <= 0) break;
    for (size_t i = wanted.size(); i-- > 0;) {  // backwards: an earlier one wins
      if (wanted[i].revents == 0) continue;
      int error = 0;
      socklen_t size = sizeof error;
      getsockopt(wanted[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error == 0) {
        chosen = attempts[i].address;
      } else {
        close(wanted[i].fd);
        attempts.erase(attempts.begin() + static_cast<ptrdiff_t>(i));
      }
    }
  }
  for (const Attempt& attempt : attempts) close(attempt.fd);
  if (chosen.empty())
    fail(Code::unavailable, "control stream",
         "no way from " + (ours.empty() ? "here" : ours.front()) + " to the coordinator at " + addresses);
  return chosen;
}

}  // namespace tandem
